"""`farebox serve` as a process: what it refuses to start with, and that what it kept is there the next time."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator

import asyncpg
import pytest

from gateway.db.embedded import EmbeddedPostgres
from gateway.db.pool import Database
from gateway.db.wallets import get
from tests.adversity.witness import chat, many_connections
from tests.support.behaviours import Completion
from tests.support.call import Gate
from tests.support.postgres import ScratchPostgres
from tests.support.processes import Gateways, durable, open_wallet, prepare
from tests.support.upstream import FakeUpstream

__all__ = ["durable"]

REFUSED_SECONDS_MAX = 20.0
UPSTREAM = {"FAREBOX_UPSTREAM_BASE_URL": "http://127.0.0.1:9/v1", "FAREBOX_UPSTREAM_API_KEY": "sk-test"}


@pytest.fixture
async def gateways() -> AsyncIterator[Gateways]:
    async with Gateways() as started:
        yield started


@pytest.fixture
async def dsn(durable: ScratchPostgres) -> AsyncIterator[str]:
    yield await durable.clone("serve")
    await durable.drop("serve")


async def refused(gateways: Gateways, code: int = 2, /, **environment: str) -> str:
    """The one line with which `farebox serve` refuses to start."""
    gateway = gateways.start("serve", UPSTREAM | environment)
    assert await gateway.ended(REFUSED_SECONDS_MAX) == code, gateway.errors
    assert gateway.said == ""
    line, end, rest = gateway.errors.partition("\n")
    assert (end, rest) == ("\n", ""), gateway.errors
    assert line.startswith("farebox: ")
    return line.removeprefix("farebox: ")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("FAREBOX_PROT", "80", "FAREBOX_PROT: unknown setting"),
        ("FAREBOX_PORT", "many", "port: "),
        ("FAREBOX_WORKERS", "0", "workers: "),
        ("FAREBOX_UPSTREAM_BASE_URL", "ftp://example.com", "upstream.0.base_url: must be an http:// or https:// URL"),
        ("FAREBOX_UPSTREAM_BASE_URL", "api.example.com/v1", "upstream.0.base_url: must be an http:// or https:// URL"),
        ("FAREBOX_CONFIG", "/nowhere/farebox.toml", "/nowhere/farebox.toml: cannot be read"),
        ("FAREBOX_DATABASE_URL", "mysql://localhost/farebox", "database_url: not a PostgreSQL URL"),
        ("FAREBOX_DATA_DIRECTORY", "/dev/null/farebox", "cannot use /dev/null"),
    ],
)
async def test_bad_configuration_is_one_line(gateways: Gateways, name: str, value: str, says: str) -> None:
    assert (await refused(gateways, **{name: value})).startswith(says)


async def test_no_upstream_is_one_line(gateways: Gateways) -> None:
    gateway = gateways.start("serve", {})
    assert await gateway.ended() == 2
    assert gateway.errors.startswith("farebox: no upstream is configured: set FAREBOX_UPSTREAM_BASE_URL")
    assert gateway.errors.count("\n") == 1


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("name", ["FAREBOX_PORT", "FAREBOX_OPS_PORT"])
async def test_a_port_that_is_taken_is_one_line(gateways: Gateways, dsn: str, name: str, workers: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = {"FAREBOX_DATABASE_URL": dsn, "FAREBOX_WORKERS": workers}
        line = await refused(gateways, **{name: str(port), **settings})
    assert line.startswith("cannot listen on ")
    assert f":{port}" in line


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_an_unwritable_directory_is_one_line(gateways: Gateways, dsn: str, workers: str) -> None:
    settings = {"FAREBOX_DATABASE_URL": dsn, "FAREBOX_WORKERS": workers}
    line = await refused(gateways, FAREBOX_DATA_DIRECTORY="/proc/farebox", **settings)
    assert line.startswith("/proc/farebox/journal: ")


async def test_a_database_that_is_away_is_exit_3(gateways: Gateways) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    line = await refused(gateways, 3, FAREBOX_DATABASE_URL=f"postgresql://farebox@127.0.0.1:{port}/farebox")
    assert line.startswith("the database cannot be reached")


async def test_a_server_that_may_lose_money_is_one_line(gateways: Gateways, database_url: str) -> None:
    gateway = gateways.start("serve", UPSTREAM | {"FAREBOX_DATABASE_URL": database_url})
    assert await gateway.ended() == 2
    lines = gateway.errors.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("farebox: ") and " is off: a crash " in line for line in lines)


async def test_an_old_server_is_one_line(gateways: Gateways, dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    # The server's word on its version, as one of long ago would give it.
    await connection.execute("""
        CREATE VIEW public.pg_settings AS
        SELECT
            name,
            CASE name WHEN 'server_version_num' THEN '130014' WHEN 'server_version' THEN '13.14' ELSE setting END
                AS setting
        FROM pg_catalog.pg_settings
    """)
    await connection.execute("ALTER DATABASE serve SET search_path = public, pg_catalog")
    await connection.close()
    line = await refused(gateways, FAREBOX_DATABASE_URL=dsn)
    assert line == "PostgreSQL 13.14 is too old: 14 or newer is needed"


async def test_ctrl_c_drains_in_time_and_the_next_start_finds_the_same_data(gateways: Gateways) -> None:
    gate = Gate()
    home = gateways.data_directory / "postgres"
    server = EmbeddedPostgres(home)
    gateways.data_directory.mkdir(mode=0o755)
    dsn = await asyncio.to_thread(server.start)
    await prepare(dsn)
    wallet_id, key = await open_wallet(dsn, "1")
    await asyncio.to_thread(server.stop)
    behaviour = Completion(output_tokens=10, gate=gate, gate_at_event=5)
    async with FakeUpstream(behaviour) as upstream, many_connections() as session:
        first = await gateways.serve(None, upstream.base_url)
        call = asyncio.create_task(chat(session, first.base_url, key, stream=True))
        await (await upstream.received()).sent_events(5)
        first.interrupt()
        await first.answers_ready(503)
        gate.open()
        assert (await call).whole
        assert await first.ended(10.0) == 0
        assert not server.is_running()

        second = await gateways.serve(None, upstream.base_url)
        upstream.default = Completion(output_tokens=10)
        seen = await chat(session, second.base_url, key)
        assert seen.whole
        database = Database(dsn)
        row = await get(database, wallet_id)
        await database.close()
        assert row is not None
        charged = sum(served.prompt_tokens + 4 * served.completion_tokens for served in upstream.log)
        assert (row["balance_nanos"], row["held_nanos"]) == (10**9 - charged, 0)
        second.send(signal.SIGTERM)
        assert await second.ended(10.0) == 0
