"""Connections. Nothing outside gateway/db sees the driver: it sees rows, and LedgerAway."""

import asyncio
import contextlib
import functools
from asyncio.staggered import staggered_race
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from gateway.core.dsn import CONNECT_SECONDS_MAX, Dsn, parse_dsn
from gateway.db.queries import queries

Connection = asyncpg.Connection
Row = Mapping[str, Any]

# SQLSTATE classes that say nothing about whether a statement took effect, or that another connection may do better:
# connection lost, completion unknown, cancelled, shut down or not yet up, out of resources or of connections, failed by
# its operating system, reading only (a former primary), ended while idle in a transaction, and a prepared statement
# that is not there or there twice, since a pooler changed servers.
_AWAY_STATES = ("08", "40003", "57014", "57P", "53", "58", "25006", "25P03", "26000", "42P05")
# Rolled back for the sake of another: the same statement may be sent again at once.
RETRIED_STATES = ("40001", "40P01", "55P03")
_RETRIES_MAX = 5
# The next of several servers is tried beside the first one once that has been silent for this long.
_STAGGER_SECONDS = 0.3
_STATEMENTS_MAX = 100


class LedgerAway(Exception):
    """The database cannot be reached, or did not say whether it did what was asked."""


def is_away(error: BaseException, connection: Connection | None = None) -> bool:
    """Whether `error` means that the database is away, rather than that it refused the statement.

    The driver's own complaints mean it only where they come from a `connection` that has been lost.
    """
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "").startswith(_AWAY_STATES)
    # A statement has two steps, and one that is dropped between them fails in the driver's own attributes.
    if isinstance(error, (asyncpg.InterfaceError, AttributeError)):
        return connection is not None and _is_lost(connection)
    return isinstance(error, (LedgerAway, OSError, TimeoutError, asyncpg.InternalClientError))


def _is_lost(connection: Connection) -> bool:
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:
        return True  # a pool's stand-in, whose connection is gone


def _drop(connection: Connection) -> None:
    with contextlib.suppress(asyncpg.InterfaceError):  # gone already
        connection.terminate()


class Doubts:
    """Hears on one connection whether a commit may have stayed on this server alone.

    Where the wait for a synchronous standby is cancelled (pg_cancel_backend, a cancel request), PostgreSQL answers as
    if all were well, and only warns before that: the commit is local, and a promoted standby lacks it.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.raised = False
        connection.add_log_listener(self._heard)

    def _heard(self, _connection: object, message: object) -> None:
        # Its text is the server's language and its SQLSTATE is the one of any warning: every warning is a doubt.
        severity = getattr(message, "severity_en", None) or getattr(message, "severity", "")
        self.raised = self.raised or severity == "WARNING"

    def close(self) -> None:
        """Stop listening."""
        if not _is_lost(self._connection):
            self._connection.remove_log_listener(self._heard)


async def connect(dsn: str, *, turn: int = 0) -> asyncpg.Connection:
    """One connection of its own, to a server that takes writes where the DSN names several. Raises LedgerAway.

    `turn` says which of them is tried first: a caller whose connection failed had better begin with another.
    """
    try:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            return await _open_one_of(parse_dsn(dsn), turn)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        # Whatever keeps a connection from being made (no such database, a wrong password, too many connections).
        raise LedgerAway(_reason(error)) from error
    except (OSError, TimeoutError, ValueError) as error:  # ValueError: no DSN at all
        raise LedgerAway(type(error).__name__) from error


def _reason(error: Exception) -> str:
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return "no server takes writes"
    return type(error).__name__


async def _open_one_of(dsn: Dsn, turn: int) -> asyncpg.Connection:
    if not dsn.hosts:
        return await _open(dsn)
    first = turn % len(dsn.hosts)
    order = [*dsn.hosts[first:], *dsn.hosts[:first]]
    tries = [functools.partial(_open, dsn, host=host, port=port) for host, port in order]
    # A host that swallows packets must not keep us from the one that answers.
    connection, _, failures = await staggered_race(tries, _STAGGER_SECONDS)
    if connection is not None:
        return cast(asyncpg.Connection, connection)
    # What a server said is worth more than that another one is away.
    told: list[Exception] = [error for error in failures if error is not None]
    said = [error for error in told if isinstance(error, (asyncpg.PostgresError, asyncpg.InternalClientError))]
    raise (said or told)[0]


async def _open(dsn: Dsn, *, host: str | None = None, port: int | None = None) -> asyncpg.Connection:
    return await asyncpg.connect(
        dsn.driver_dsn,
        host=host,
        port=port,
        timeout=dsn.connect_seconds,
        target_session_attrs=SessionAttribute(dsn.target),
        statement_cache_size=_STATEMENTS_MAX if dsn.statements_max is None else dsn.statements_max,
        server_settings={"application_name": "farebox"},
    )


async def is_pooled(connection: Connection) -> bool:
    """Whether a pooler stands between: the process that was greeted is not the one that answers."""
    pid = await connection.fetchval(queries()["database_backend"])
    return bool(connection.get_server_pid() != pid)


class Database:
    """A small pool for reads and rare writes. Calls do not use it: they go through the lane."""

    def __init__(self, dsn: str, *, connections_max: int = 4, statement_seconds: float = 30.0) -> None:
        self.dsn = dsn
        self._connections_max = connections_max
        self._statement_seconds = statement_seconds
        self._pool: asyncpg.Pool | None = None
        self._opening = asyncio.Lock()

    async def close(self) -> None:
        self.drop()

    def drop(self) -> None:
        """Drop every connection, and whatever waits for an answer on one: the server was found silent. Whoever asks
        next gets a new one."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.terminate()

    async def _open(self) -> asyncpg.Pool:
        async with self._opening:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    connect=self._connect, min_size=0, max_size=self._connections_max
                )
        return self._pool

    async def _connect(self, *_: object, **__: object) -> Connection:
        # Called by the pool, with arguments of its own that a DSN has already answered.
        return await connect(self.dsn)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A pooled connection. Raises LedgerAway for whatever happens inside because the database is away."""
        pool = self._pool or await self._open()
        try:
            pooled = await pool.acquire(timeout=5.0)
        except (OSError, asyncpg.PostgresError, asyncpg.InternalClientError) as error:
            raise LedgerAway(type(error).__name__) from error
        except asyncpg.InterfaceError as error:
            if pool is self._pool:
                raise
            raise LedgerAway("dropped") from error
        connection = cast(Connection, pooled)  # a proxy with the same methods
        if pool is not self._pool:
            _drop(connection)
            raise LedgerAway("dropped")
        doubts: Doubts | None = None
        try:
            doubts = Doubts(connection)  # raises for one that was lost on its way here
            yield connection
        except (asyncio.CancelledError, TimeoutError) as error:
            # Whoever waited has given up: the pool must not wait on for an answer that may never come.
            _drop(connection)
            if isinstance(error, TimeoutError):
                raise LedgerAway("TimeoutError") from error
            raise
        except Exception as error:
            if is_away(error, connection):
                _drop(connection)  # such as one to a former primary: the next one is made anew
                raise LedgerAway(type(error).__name__) from error
            raise
        finally:
            if doubts is not None:
                doubts.close()
            # The pool's own shield would leave a failure to nobody, where whoever waits is cancelled.
            await asyncio.shield(_release(pool, pooled))
        if doubts.raised:
            raise LedgerAway("a warning: the commit may not have reached the standby")

    async def fetch(self, name: str, *arguments: object) -> Sequence[Row]:
        """The rows of a named statement, sent again where it was rolled back for another's sake. Raises LedgerAway."""
        for tries_left in reversed(range(_RETRIES_MAX)):
            try:
                async with self.connection() as connection:
                    rows = await connection.fetch(queries()[name], *arguments, timeout=self._statement_seconds)
                    return cast(Sequence[Row], rows)
            except asyncpg.PostgresError as error:
                if error.sqlstate not in RETRIED_STATES:
                    raise
                if not tries_left:
                    raise LedgerAway(type(error).__name__) from error
        raise AssertionError("the last try returns or raises")

    async def fetch_one(self, name: str, *arguments: object) -> Row | None:
        """The first row of a named statement, or None. Raises LedgerAway."""
        rows = await self.fetch(name, *arguments)
        return rows[0] if rows else None


async def _release(pool: asyncpg.Pool, connection: Any) -> None:
    """Give a connection back. One that is lost cannot be reset, and whoever had it has been told."""
    try:
        await pool.release(connection, timeout=5.0)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
        _drop(connection)
