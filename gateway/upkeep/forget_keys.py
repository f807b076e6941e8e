"""Idempotency keys past their time are deleted, with the replies kept under them."""

from gateway.db import idempotency
from gateway.db.pool import Database

BATCH = 500
_BATCHES_MAX = 20


class ForgetKeys:
    """Small batches, so that no statement is long; what is left waits for the next run."""

    name = "forget_keys"
    interval_seconds = 60.0

    def __init__(self, database: Database) -> None:
        self._database = database

    async def run_once(self) -> int:
        """How many were deleted. Raises LedgerAway."""
        deleted = 0
        for _ in range(_BATCHES_MAX):
            count = await idempotency.forget(self._database, BATCH)
            deleted += count
            if count < BATCH:
                break
        return deleted
