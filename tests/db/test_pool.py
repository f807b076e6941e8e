"""Connections: what means that the ledger is away, and what does not."""

import asyncio
import gc
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from gateway.clock import new_id
from gateway.db.pool import Database, LedgerAway, connect, is_away, is_pooled
from gateway.tasks import spawn, stop
from tests.support.lane_bench import dropped_when_prepared
from tests.support.ledger_proxy import ledger_proxy
from tests.support.postgres import ScratchPostgres
from tests.support.shop import until

NOWHERE = "postgresql://farebox@/farebox?host=/nonexistent"


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = Database(database_url, connections_max=2)
    yield opened
    await opened.close()


def postgres_error(state: str) -> BaseException:
    return asyncpg.PostgresError.new({"C": state, "M": "said by a server"})


UNKNOWN = (
    *("08000", "08003", "08006", "08P01", "40003", "57014", "57P01", "57P02", "57P03", "57P05", "53100", "53300"),
    *("25006", "25P03", "26000", "42P05", "58030"),
)
KNOWN = ("40001", "40P01", "55P03", "22003", "23505", "23514", "42501", "42883", "42P01", "P0001", "XX000")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        *((postgres_error(state), True) for state in UNKNOWN),
        *((postgres_error(state), False) for state in KNOWN),
        (asyncpg.DataError("not a uuid"), False),
        (asyncpg.InterfaceError("another operation is in progress"), False),
        (asyncpg.InternalClientError("unexpected state"), True),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (ValueError(), False),
        (KeyError(), False),
    ],
    ids=lambda value: getattr(value, "sqlstate", None) or type(value).__name__,
)
def test_only_silence_is_away(error: BaseException, expected: bool) -> None:
    assert is_away(error) is expected


async def test_misuse_is_not_silence_but_a_lost_connection_is(database_url: str) -> None:
    connection = await connect(database_url)
    sleeping = spawn(connection.fetchval("SELECT pg_sleep(0.2)"), name="sleep")
    await asyncio.sleep(0.05)
    with pytest.raises(asyncpg.InterfaceError) as busy:
        await connection.fetchval("SELECT 1")
    assert not is_away(busy.value, connection)
    await sleeping
    connection.terminate()
    with pytest.raises(asyncpg.InterfaceError) as lost:
        await connection.fetchval("SELECT 1")
    assert is_away(lost.value, connection)


@pytest.mark.parametrize(("role", "database"), [("", "absent"), ("nobody", "postgres")], ids=["3D000", "28xxx"])
async def test_a_connection_that_a_wrong_name_prevents_is_away(
    scratch: ScratchPostgres, role: str, database: str
) -> None:
    """A key that is not cached is answered 503 then, not 500."""
    dsn = scratch.dsn(database)
    parts = urlsplit(dsn)
    if role:
        dsn = urlunsplit(parts._replace(netloc=f"{role}:{role}@"))
    with pytest.raises(LedgerAway) as refused:
        await connect(dsn)
    assert getattr(refused.value.__cause__, "sqlstate", "")[:2] in ("3D", "28")
    opened = Database(dsn)
    with pytest.raises(LedgerAway):
        await opened.fetch("database_backend")
    await opened.close()


async def test_nobody_there_is_away(scratch: ScratchPostgres) -> None:
    with pytest.raises(LedgerAway):
        await connect(NOWHERE)
    with pytest.raises(LedgerAway):
        await connect(scratch.dsn("absent"))
    database = Database(NOWHERE)
    with pytest.raises(LedgerAway):
        await database.fetch("database_backend")
    await database.close()
    await database.close()


async def test_a_refused_statement_is_not_away(database: Database) -> None:
    with pytest.raises(asyncpg.DataError):
        await database.fetch("wallet_get", "not-a-uuid")
    with pytest.raises(asyncpg.CheckViolationError):
        await database.fetch("wallet_create", new_id(), "test", -1)
    assert await database.fetch_one("wallet_get", new_id()) is None
    assert [row["pid"] > 0 for row in await database.fetch("database_backend")] == [True]


async def test_a_slow_statement_is_away(database_url: str) -> None:
    database, blocker = Database(database_url, statement_seconds=0.5), await asyncpg.connect(database_url)
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

    async def be_cut_off() -> None:
        async with database.connection() as connection:
            await other.execute("SELECT pg_terminate_backend($1)", connection.get_server_pid())
            await connection.fetchval("SELECT pg_sleep(1)")

    with pytest.raises(LedgerAway):
        await be_cut_off()
    assert await database.fetch_one("database_backend") is not None
    await other.close()


async def test_what_is_rolled_back_for_another_is_sent_again(database: Database, database_url: str) -> None:
    name = urlsplit(database_url).path[1:]
    other = await asyncpg.connect(database_url)
    await other.execute(f"ALTER DATABASE {name} SET lock_timeout = '50ms'")
    wallet_id = new_id()
    async with other.transaction():
        await other.execute("LOCK TABLE wallets IN EXCLUSIVE MODE")
        with pytest.raises(LedgerAway):
            await database.fetch("wallet_create", wallet_id, "test", 0)
        creating = spawn(database.fetch("wallet_create", wallet_id, "test", 0), name="create")
        await asyncio.sleep(0.12)
    await creating
    assert await database.fetch_one("wallet_get", wallet_id) is not None
    await other.close()


async def test_a_commit_with_a_warning_is_not_an_answer(database: Database) -> None:
    async def say(severity: str) -> None:
        async with database.connection() as connection:
            await connection.execute(f"DO $$ BEGIN RAISE {severity} 'said by a server'; END $$")

    with pytest.raises(LedgerAway):
        await say("WARNING")
    await say("NOTICE")


# Several hosts --------------------------------------------------------------------------------------------------------


def address(dsn: str) -> str:
    """host:port as a DSN has it."""
    return urlsplit(dsn).netloc.rpartition("@")[2]


@asynccontextmanager
async def black_hole() -> AsyncIterator[str]:
    """A host that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=8) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@asynccontextmanager
async def reading_only(scratch: ScratchPostgres, database_url: str) -> AsyncIterator[str]:
    """As `database_url`, on a server that takes no writes."""
    name = urlsplit(database_url).path[1:]
    other = await asyncpg.connect(scratch.dsn("postgres"))
    await other.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    try:
        yield database_url
    finally:
        await other.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        await other.close()


async def test_of_several_hosts_the_first_that_answers_is_taken(database_url: str) -> None:
    async with ledger_proxy(database_url) as proxy, black_hole() as hole:
        for hosts in (f"{hole},{address(proxy.dsn)}", f"127.0.0.1:1,{hole},{address(proxy.dsn)}"):
            dsn = proxy.dsn.replace(address(proxy.dsn), hosts)
            for turn in range(3):
                began = time.monotonic()
                connection = await connect(dsn, turn=turn)
                assert time.monotonic() - began < 2.0, "a silent host must not keep us from the next"
                assert await connection.fetchval("SELECT 1") == 1
                await connection.close()
        opened = Database(dsn)
        assert await opened.fetch_one("database_backend") is not None
        await opened.close()


async def test_a_server_that_takes_no_writes_is_passed_over(scratch: ScratchPostgres, database_url: str) -> None:
    async with ledger_proxy(database_url) as proxy, reading_only(scratch, database_url):
        for dsn in (
            proxy.dsn + "&target_session_attrs=read-write",
            proxy.dsn.replace(address(proxy.dsn), f"{address(proxy.dsn)},127.0.0.1:1"),
        ):
            with pytest.raises(LedgerAway, match="no server takes writes"):
                await connect(dsn)
        connection = await connect(proxy.dsn)  # a single host is taken as it is, for doctor to say what is wrong
        await connection.close()


async def test_the_turn_says_which_host_is_first(database_url: str) -> None:
    async with ledger_proxy(database_url) as one, ledger_proxy(database_url) as two:
        dsn = one.dsn.replace(address(one.dsn), f"{address(one.dsn)},{address(two.dsn)}")
        for turn in range(4):
            connection = await connect(dsn, turn=turn)
            await until(lambda turn=turn: (one.connections, two.connections) == ((1, 0) if turn % 2 == 0 else (0, 1)))  # type: ignore[misc]
            await connection.close()
            await until(lambda: one.connections + two.connections == 0)


async def test_a_host_that_is_silent_alone_is_given_up(database_url: str) -> None:
    async with black_hole() as hole:
        began = time.monotonic()
        with pytest.raises(LedgerAway):
            await connect(f"postgresql://u@{hole}/x?connect_timeout=0.2&sslmode=disable")
        assert time.monotonic() - began < 2.0


async def test_a_connection_to_the_server_itself_is_not_pooled(database_url: str) -> None:
    connection = await connect(database_url)
    assert not await is_pooled(connection)
    await connection.close()


async def test_connections_are_few_and_all_are_served(database: Database, database_url: str) -> None:
    await asyncio.gather(*(database.fetch("database_backend") for _ in range(50)))
    other = await asyncpg.connect(database_url)
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'farebox' AND datname = current_database()"
    assert await other.fetchval(count) <= 2
    await database.close()
    assert await database.fetch_one("database_backend") is not None, "it opens again when it is needed"
    await other.close()


async def test_what_waits_on_a_silent_server_is_let_go_when_all_is_dropped(database_url: str) -> None:
    async with ledger_proxy(database_url) as proxy:
        database = Database(proxy.dsn, connections_max=1)
        await database.fetch("database_backend")
        proxy.mute()
        waiting = [spawn(database.fetch("database_backend"), name="fetch") for _ in range(2)]
        await asyncio.sleep(0.05)
        database.drop()
        proxy.restore()
        assert await database.fetch("database_backend")
        with pytest.raises(LedgerAway):
            await waiting[0]
        with pytest.raises(LedgerAway):
            await waiting[1]
        await database.close()


async def test_whoever_is_cancelled_while_giving_a_connection_back_leaves_no_failure_behind(database_url: str) -> None:
    """As at a start that fails: the pool is dropped while connections are on their way back to it."""
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    async with ledger_proxy(database_url) as proxy:
        database = Database(proxy.dsn)

        async def use() -> None:
            async with database.connection() as connection:
                await connection.execute("SELECT 1")
                proxy.mute()

        using = spawn(use(), name="use")
        await asyncio.sleep(0.1)
        assert not using.done(), "the reset of its connection is not answered"
        await stop(using)
        await database.close()
        await asyncio.sleep(0.05)
        gc.collect()
    assert not failures


async def test_a_connection_lost_on_its_way_to_whoever_asked_is_away(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its server may go between the pool's hand and ours: a 503, and the next one is made anew."""
    database = Database(database_url)
    await database.fetch("price_current")
    pool = database._pool
    assert pool is not None
    acquire = pool.acquire

    async def lost(*, timeout: float) -> object:
        connection = await acquire(timeout=timeout)
        connection.terminate()
        return connection

    monkeypatch.setattr(type(pool), "acquire", lambda _, *, timeout: lost(timeout=timeout))
    with pytest.raises(LedgerAway):
        await database.fetch("price_current")
    monkeypatch.undo()
    await database.fetch("price_current")
    await database.close()


async def test_a_connection_lost_between_the_two_steps_of_a_statement_is_away(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was prepared, and is about to be run, when the connection is dropped for a server that fell silent."""
    database = Database(database_url)
    with dropped_when_prepared(monkeypatch) as dropped, pytest.raises(LedgerAway):
        await database.fetch("price_current")
    assert dropped == [True]
    await database.fetch("price_current")
    await database.close()
