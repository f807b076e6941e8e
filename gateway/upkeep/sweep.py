"""The sweep: holds whose gateway died are charged what was checkpointed, and released."""

import asyncio
from dataclasses import dataclass

import orjson

from gateway.db.lanes import Lane, LaneFull, Operation, OperationRefused, Outcome
from gateway.db.pool import Database, LedgerAway
from gateway.metrics import Metrics

BATCH = 500


@dataclass(frozen=True, slots=True)
class Swept:
    """Holds seen past twice their validity, and how many open ones this run resolved: calls whose gateway died.

    The others were declined. They held nothing, and are cleared away.
    """

    due: int
    expired: int

    def __bool__(self) -> bool:
        return self.due > 0


class Sweep:
    """Finds due holds and asks wallet_apply to expire them; by the database's clock, it alone decides."""

    name = "sweep"

    def __init__(self, database: Database, lane: Lane, metrics: Metrics, *, interval_seconds: float) -> None:
        self._database = database
        self._lane = lane
        self._metrics = metrics
        self.interval_seconds = interval_seconds

    async def run_once(self) -> Swept:
        """One bounded batch. Raises LedgerAway."""
        rows = await self._database.fetch("holds_due", BATCH)
        answers = []
        try:
            for row in rows:
                hold_id = str(row["hold_id"])
                document = orjson.dumps({"op": "expire", "hold": hold_id})
                answers.append(self._lane.submit(Operation(str(row["wallet_id"]), hold_id, document)))
        except LaneFull:
            pass  # calls come first; the next run takes the rest
        expired = 0
        results = await asyncio.gather(*answers, return_exceptions=True)
        for row, result in zip(rows, results, strict=False):
            if isinstance(result, (LedgerAway, OperationRefused)):
                raise result
            if not isinstance(result, BaseException) and result.outcome is Outcome.EXPIRED:
                expired += bool(row["is_open"])
        self._metrics.swept.inc(expired)
        return Swept(len(rows), expired)
