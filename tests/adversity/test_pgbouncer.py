"""Goal: Farebox works through PgBouncer in transaction mode, where each transaction may meet another server process."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr

from gateway.db import keys
from gateway.db.audit import audit
from gateway.db.migrate import migrate
from gateway.db.pool import Database, connect, is_pooled
from tests.support.command import Command
from tests.support.gateway import Farebox, farebox
from tests.support.pgbouncer import PgBouncer, pgbouncer
from tests.support.shop import EXACT
from tests.support.upstream import FakeUpstream

CREDIT_NANOS = 100 * 10**9
CALLS = 24


@pytest.fixture
async def pooler(database_url: str) -> AsyncIterator[PgBouncer]:
    async with pgbouncer(database_url) as running:
        yield running


@asynccontextmanager
async def gateway_behind(pooler: PgBouncer, upstream: FakeUpstream, listen: str | None) -> AsyncIterator[Farebox]:
    url = None if listen is None else SecretStr(listen)
    async with farebox(pooler.dsn, [upstream.base_url], listen_database_url=url) as running:
        yield running


async def status_of(gateway: Farebox) -> int:
    async with gateway.chat() as reply:
        await reply.read()
        return int(reply.status)


@pytest.mark.parametrize("listens", ["direct", "through it"])
async def test_calls_are_charged_and_a_revoked_key_is_refused_within_a_second(
    pooler: PgBouncer, upstream: FakeUpstream, listens: str
) -> None:
    async with gateway_behind(pooler, upstream, pooler.direct_dsn if listens == "direct" else None) as gateway:
        assert set(await asyncio.gather(*(status_of(gateway) for _ in range(CALLS)))) == {200}
        wallet = await gateway.wallet()
        assert (wallet["balance_nanos"], wallet["held_nanos"]) == (CREDIT_NANOS - CALLS * EXACT, 0)
        # What would never be heard through it is not waited for: a key is then remembered for half a second only.
        assert gateway.app.gateway.authenticator.hears() is (listens == "direct")
        database = Database(pooler.direct_dsn)
        assert await keys.revoke(database, gateway.key_id)
        await database.close()
        began = time.monotonic()
        while await status_of(gateway) != 401:
            assert time.monotonic() - began < 3.0, "a second, and a slow machine"
            await asyncio.sleep(0.05)


async def test_everything_else_that_uses_the_database_works_through_it(pooler: PgBouncer, tmp_path: Path) -> None:
    connection = await connect(pooler.dsn)
    assert await is_pooled(connection)
    await connection.close()
    assert await migrate(pooler.dsn, is_durable_required=False) == []
    assert (await audit(pooler.dsn)).is_clean
    command = Command(pooler.dsn, tmp_path)
    said = await asyncio.to_thread(command, "wallet", "create", "--name", "team", "--credit", "5", "--json")
    assert said.document["balance_nanos"] == 5 * 10**9
    for listen, state in ((None, "warn"), (pooler.dsn, "warn"), (pooler.direct_dsn, "ok")):
        command.environment["FAREBOX_LISTEN_DATABASE_URL"] = listen
        said = await asyncio.to_thread(command, "doctor", "--json")
        assert {one["check"]: one["state"] for one in said.document["checks"]}["pooler"] == state


async def test_a_pool_of_sessions_works_too(database_url: str, upstream: FakeUpstream) -> None:
    # One server connection each for the lane and the watcher, and some for reads.
    async with (
        pgbouncer(database_url, mode="session", connections_max=8) as pooler,
        gateway_behind(pooler, upstream, None) as gateway,
    ):
        assert await status_of(gateway) == 200
