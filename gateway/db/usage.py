"""Usage events in bulk, for the export: one snapshot, a batch at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from gateway.db.pool import Database, Row
from gateway.db.queries import queries
from gateway.db.streams import lift_time_limits, stream

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Calls of one wallet, or of all (None), that began at `since` or later and before `until`."""

    wallet_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def arguments(self) -> tuple[str | None, UUID, UUID]:
        """Of the statements: ids carry the time at which they were made, and partitions follow it."""
        since = least_id(self.since) if self.since is not None else UUID(int=0)
        until = least_id(self.until) if self.until is not None else UUID(int=2**128 - 1)
        return self.wallet_id, since, until


def least_id(moment: datetime) -> UUID:
    """The least UUIDv7-ordered id at or after `moment`, to the millisecond."""
    return UUID(int=max((moment - _EPOCH) // _MILLISECOND, 0) << 80)


def began_at(call_id: UUID) -> datetime:
    """When a call began: its id is a UUIDv7."""
    return _EPOCH + (call_id.int >> 80) * _MILLISECOND


async def export(
    database: Database,
    wanted: Wanted,
    write: Callable[[Sequence[Row]], None],
    *,
    on_total: Callable[[int], None] | None = None,
) -> int:
    """Give every call to `write`, in batches by wallet and id; how many there were. Raises LedgerAway.

    `on_total` hears first how many there will be: that costs a count. What `write` raises must not be an OSError, which
    means here that the ledger is away.
    """
    done = 0
    async with (
        database.connection() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        await connection.execute(queries()["usage_keep"])
        await lift_time_limits(connection)
        if on_total is not None:
            on_total(await connection.fetchval(queries()["usage_export_count"], *wanted.arguments()))
        async for rows in stream(connection, queries()["usage_export"], *wanted.arguments()):
            write([dict(row) for row in rows])
            done += len(rows)
    return done
