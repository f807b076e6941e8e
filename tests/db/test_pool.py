"""Connections: what means that the ledger is away, and what does not."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from gateway.clock import new_id
from gateway.db.pool import Database, LedgerAway, connect, is_away
from tests.support.postgres import ScratchPostgres

NOWHERE = "postgresql://farebox@/farebox?host=/nonexistent"


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = Database(database_url, connections_max=2)
    yield opened
    await opened.close()


def postgres_error(state: str) -> BaseException:
    return asyncpg.PostgresError.new({"C": state, "M": "said by a server"})


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        *((postgres_error(state), True) for state in ("08000", "08006", "40003", "57P01", "57P03", "53300", "25006")),
        *((postgres_error(state), False) for state in ("40001", "40P01", "23505", "23514", "22003", "42P01", "P0001")),
        (asyncpg.InterfaceError("connection is closed"), True),
        (asyncpg.DataError("not a uuid"), False),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (ValueError(), False),
        (KeyError(), False),
    ],
    ids=lambda value: getattr(value, "sqlstate", None) or type(value).__name__,
)
def test_only_silence_is_away(error: BaseException, expected: bool) -> None:
    assert is_away(error) is expected


async def test_nobody_there_is_away(scratch: ScratchPostgres) -> None:
    with pytest.raises(LedgerAway):
        await connect(NOWHERE)
    with pytest.raises(LedgerAway):
        await connect(scratch.dsn("absent"))
    database = Database(NOWHERE)
    with pytest.raises(LedgerAway):
        await database.fetch("database_alive")
    await database.close()
    await database.close()


async def test_a_refused_statement_is_not_away(database: Database) -> None:
    with pytest.raises(asyncpg.DataError):
        await database.fetch("wallet_get", "not-a-uuid")
    with pytest.raises(asyncpg.CheckViolationError):
        await database.fetch("wallet_create", new_id(), "test", -1)
    assert await database.fetch_one("wallet_get", new_id()) is None
    assert [tuple(row.values()) for row in await database.fetch("database_alive")] == [(1,)]


async def test_a_slow_statement_is_away(database_url: str) -> None:
    database, blocker = Database(database_url, statement_seconds=0.05), await asyncpg.connect(database_url)
    change = blocker.transaction()
    await change.start()
    await blocker.execute("LOCK TABLE wallets")
    with pytest.raises(LedgerAway):
        await database.fetch("wallet_get", new_id())
    await change.rollback()
    assert await database.fetch_one("wallet_get", new_id()) is None
    await blocker.close()
    await database.close()


async def test_it_is_back_once_the_server_is(database: Database, database_url: str) -> None:
    other = await asyncpg.connect(database_url)
    async with database.connection() as connection:
        pid = connection.get_server_pid()
        await other.execute("SELECT pg_terminate_backend($1)", pid)
        with pytest.raises(LedgerAway):
            async with database.connection():
                await connection.fetchval("SELECT pg_sleep(1)")
    assert await database.fetch_one("database_alive") is not None
    await other.close()


async def test_connections_are_few_and_all_are_served(database: Database, database_url: str) -> None:
    await asyncio.gather(*(database.fetch("database_alive") for _ in range(50)))
    other = await asyncpg.connect(database_url)
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'farebox' AND datname = current_database()"
    assert await other.fetchval(count) <= 2
    await database.close()
    assert await database.fetch_one("database_alive") is not None, "it opens again when it is needed"
    await other.close()
