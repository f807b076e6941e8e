"""Looks at the responses that work in the background, so that each is settled when it ends, whoever asks for it."""

import asyncio
import logging

from gateway.db import responses as store
from gateway.db.pool import Database, LedgerAway
from gateway.db.responses import Owner
from gateway.metrics import Metrics
from gateway.request.background import Background

_log = logging.getLogger("farebox.upkeep")

BATCH = 200
FORGET_BATCH = 500
_AT_ONCE_MAX = 16
# Longer than a look may take.
_LEASE_SECONDS = 90.0


class LookAtBackground:
    """A bounded number at a time, so many of them at once."""

    name = "background"

    def __init__(self, database: Database, background: Background, metrics: Metrics, interval_seconds: float) -> None:
        self._database = database
        self._background = background
        self._metrics = metrics
        self.interval_seconds = interval_seconds

    async def run_once(self) -> int:
        """How many were settled. Raises LedgerAway."""
        owners = await store.due(self._database, BATCH, lease_seconds=_LEASE_SECONDS)
        room = asyncio.Semaphore(_AT_ONCE_MAX)

        async def look(owner: Owner) -> bool:
            async with room:
                try:
                    return await self._background.look(owner)
                except LedgerAway:
                    raise
                except Exception as error:  # a bug with one must not keep the others unsettled
                    self._metrics.crashes.inc()
                    _log.exception("a response could not be looked at", exc_info=error)
                    return False

        results = await asyncio.gather(*(look(owner) for owner in owners), return_exceptions=True)
        self._metrics.background.set(await store.unsettled(self._database))
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return sum(result is True for result in results)


class ForgetResponses:
    """Whose a response was is forgotten when its upstream has forgotten it."""

    name = "forget_responses"
    interval_seconds = 60.0

    def __init__(self, database: Database) -> None:
        self._database = database

    async def run_once(self) -> int:
        """How many were deleted. Raises LedgerAway."""
        deleted = 0
        while count := await store.forget(self._database, FORGET_BATCH):
            deleted += count
            if count < FORGET_BATCH:
                break
        return deleted
