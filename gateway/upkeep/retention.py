"""Months of usage events: made ahead of the calls that need them, and dropped past their retention."""

from dataclasses import dataclass

from gateway.db.pool import Database
from gateway.db.queries import queries

# What a run drops at most; the next run goes on.
MONTHS_MAX = 12
# A month's charges are summed before it is dropped; nothing waits for that.
_DROP_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Retained:
    """The months that a run dropped, and why it stopped: nothing (left), held or busy."""

    dropped: tuple[str, ...] = ()
    stopped_by: str = "nothing"

    def __bool__(self) -> bool:
        return bool(self.dropped) or self.stopped_by == "held"


class Partitions:
    """Makes the partitions of coming months, and drops those past `retention_days` (None: never)."""

    name = "partitions"

    def __init__(
        self, database: Database, *, retention_days: int | None = None, interval_seconds: float = 3_600.0
    ) -> None:
        self._database = database
        self._retention_days = retention_days
        self.interval_seconds = interval_seconds

    async def run_once(self) -> Retained:
        """Raises LedgerAway."""
        await self._database.fetch("usage_partitions_ensure")
        dropped: list[str] = []
        if self._retention_days is None:
            return Retained()
        while len(dropped) < MONTHS_MAX:
            async with self._database.connection() as connection:
                statement = queries()["usage_partition_drop"]
                row = await connection.fetchrow(statement, self._retention_days, timeout=_DROP_SECONDS)
            assert row is not None
            if row["outcome"] != "dropped":
                return Retained(tuple(dropped), row["outcome"])
            dropped.append(row["month"])
        return Retained(tuple(dropped))
