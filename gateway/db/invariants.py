"""The named queries that return no row on a healthy database, run in one snapshot."""

from collections.abc import Mapping
from typing import cast

from gateway.db.pool import Connection, Database, Row
from gateway.db.queries import invariants, queries


async def broken_invariants(connection: Connection) -> Mapping[str, list[Row]]:
    """Every invariant with the rows that break it, mostly none, on the caller's connection and snapshot."""
    return {name: cast(list[Row], await connection.fetch(statement)) for name, statement in invariants().items()}


async def failing_invariants(database: Database) -> dict[str, int]:
    """How many rows break each invariant now, all seen in one snapshot. Raises LedgerAway."""
    async with (
        database.connection() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        await connection.execute(queries()["usage_keep"])
        return {name: len(rows) for name, rows in (await broken_invariants(connection)).items()}
