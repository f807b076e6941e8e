"""More rows than fit into memory: read through a server-side cursor, a batch at a time."""

from collections.abc import AsyncIterator, Sequence

import asyncpg

from gateway.db.pool import Connection
from gateway.db.queries import queries

BATCH_ROWS = 2_000


async def stream(connection: Connection, statement: str, *arguments: object) -> AsyncIterator[Sequence[asyncpg.Record]]:
    """The rows of a statement in batches. The caller is in a transaction, and has called `lift_time_limits`."""
    cursor = await connection.cursor(statement, *arguments)
    while rows := await cursor.fetch(BATCH_ROWS):
        yield rows


async def lift_time_limits(connection: Connection) -> None:
    """Let this transaction take as long as it takes, whatever the role's settings; with room to sort."""
    await connection.fetch(queries()["audit_session"])
