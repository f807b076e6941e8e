"""Connections. Nothing outside gateway/db sees the driver: it sees rows, and LedgerAway."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import asyncpg

from gateway.db.queries import queries

Connection = asyncpg.Connection
Row = Mapping[str, Any]

# SQLSTATE classes that say nothing about whether a statement took effect: connection lost, statement completion
# unknown, shut down, too many connections, and reading only (a former primary).
_AWAY_STATES = ("08", "40003", "57P", "53", "25006")


class LedgerAway(Exception):
    """The database cannot be reached, or did not say whether it did what was asked."""


def is_away(error: BaseException) -> bool:
    """Whether `error` means that the database is away, rather than that it refused the statement."""
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "").startswith(_AWAY_STATES)
    return isinstance(error, (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError))


async def connect(dsn: str, *, timeout_seconds: float = 5.0) -> asyncpg.Connection:
    """One connection of its own. Raises LedgerAway."""
    try:
        return await asyncpg.connect(dsn, timeout=timeout_seconds, server_settings={"application_name": "farebox"})
    except Exception as error:
        if is_away(error) or isinstance(error, (asyncpg.PostgresError, ValueError)):  # ValueError: no DSN at all
            raise LedgerAway(f"{type(error).__name__}") from error
        raise


class Database:
    """A small pool for reads and rare writes. Calls do not use it: they go through the lane."""

    def __init__(self, dsn: str, *, connections_max: int = 4, statement_seconds: float = 30.0) -> None:
        self.dsn = dsn
        self._connections_max = connections_max
        self._statement_seconds = statement_seconds
        self._pool: asyncpg.Pool | None = None
        self._opening = asyncio.Lock()

    async def close(self) -> None:
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None

    async def _open(self) -> asyncpg.Pool:
        async with self._opening:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    self.dsn,
                    min_size=0,
                    max_size=self._connections_max,
                    timeout=5.0,
                    server_settings={"application_name": "farebox"},
                )
        return self._pool

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A pooled connection. Raises LedgerAway for whatever happens inside because the database is away."""
        try:
            pool = self._pool or await self._open()
            async with pool.acquire(timeout=5.0) as connection:
                try:
                    yield cast(Connection, connection)  # a proxy with the same methods
                except (asyncio.CancelledError, TimeoutError):
                    # Whoever waited has given up: the pool must not wait on for an answer that may never come.
                    connection.terminate()
                    raise
        except Exception as error:
            if is_away(error):
                raise LedgerAway(type(error).__name__) from error
            raise

    async def fetch(self, name: str, *arguments: object) -> Sequence[Row]:
        """The rows of a named statement. Raises LedgerAway."""
        async with self.connection() as connection:
            rows = await connection.fetch(queries()[name], *arguments, timeout=self._statement_seconds)
            return cast(Sequence[Row], rows)

    async def fetch_one(self, name: str, *arguments: object) -> Row | None:
        """The first row of a named statement, or None. Raises LedgerAway."""
        rows = await self.fetch(name, *arguments)
        return rows[0] if rows else None
