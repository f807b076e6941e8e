"""Keys: stored by their hash, shown once, and revoked everywhere within a second."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from gateway.clock import new_id
from gateway.core.catalogue import Meter
from gateway.db import keys, prices, wallets
from gateway.db.pool import Connection, Database, connect
from gateway.tasks import spawn

WAIT_SECONDS_MAX = 5.0


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = Database(database_url)
    yield opened
    await opened.close()


@pytest.fixture
async def wallet_id(database: Database) -> str:
    made = new_id()
    await wallets.create(database, made, "test")
    return made


async def until(is_so: Callable[[], bool]) -> float:
    """Seconds until `is_so`. Raises TimeoutError."""
    began = time.monotonic()
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while not is_so():
            await asyncio.sleep(0.002)
    return time.monotonic() - began


def test_a_key_is_random_and_long() -> None:
    made = {keys.make_key() for _ in range(100)}
    assert len(made) == 100
    assert all(key.startswith("fb-") and len(key) == 3 + 43 for key in made)
    assert keys.hash_key("fb-x").hex() == "5004b7a2362706cb0e12c68b354ef835c87aa58ea39de9060067d55ce5bfc30e"


async def test_a_key_is_found_by_its_hash_and_never_stored(
    database: Database, database_url: str, wallet_id: str
) -> None:
    key, key_id = keys.make_key(), new_id()
    assert await keys.create(database, key, key_id, wallet_id, name="mine", models=["a", "b"])
    found = await keys.by_hash(database, keys.hash_key(key))
    assert found is not None
    assert (str(found["key_id"]), str(found["wallet_id"]), found["models"]) == (key_id, wallet_id, ["a", "b"])
    assert await keys.by_hash(database, keys.hash_key(keys.make_key())) is None
    connection = await asyncpg.connect(database_url)
    stored = await connection.fetchval("SELECT k::text FROM api_keys AS k")
    assert key not in stored
    assert key[3:-4] not in stored
    await connection.close()


async def test_a_key_needs_a_wallet_and_is_made_once(database: Database, wallet_id: str) -> None:
    key = keys.make_key()
    assert not await keys.create(database, key, new_id(), new_id(), name="nobody's")
    assert await keys.create(database, key, new_id(), wallet_id, name="mine")
    with pytest.raises(asyncpg.UniqueViolationError):
        await keys.create(database, key, new_id(), wallet_id, name="again")


async def test_an_expired_or_revoked_key_is_not_found(database: Database, wallet_id: str) -> None:
    now = datetime.now(UTC)
    for seconds, is_usable in ((-1, False), (60, True)):
        key, key_id = keys.make_key(), new_id()
        expires_at = now + timedelta(seconds=seconds)
        await keys.create(database, key, key_id, wallet_id, name="test", expires_at=expires_at)
        assert (await keys.by_hash(database, keys.hash_key(key)) is not None) is is_usable
        assert await keys.revoke(database, key_id)
        assert await keys.by_hash(database, keys.hash_key(key)) is None
        assert await keys.revoke(database, key_id), "it may be asked again"
    assert not await keys.revoke(database, new_id())
    listed = await keys.list_of(database, wallet_id, None, 10)
    assert [row["is_expired"] for row in listed] == [True, False]
    assert all(row["revoked_at"] is not None and "key_hash" not in dict(row) for row in listed)


class Heard:
    """What a Watcher told, and the connections that it made."""

    def __init__(self, dsn: str, **settings: float) -> None:
        self.keys: list[bytes | None] = []
        self.prices = 0
        self.is_refused = False
        self._dsn = dsn
        self.connections: list[Connection] = []
        self.watcher = keys.Watcher(self._connect, on_key=self.keys.append, on_prices=self._on_prices, **settings)
        self._task = spawn(self.watcher.run(), name="a watcher")

    async def _connect(self) -> Connection:
        self.connections.append(await connect(self._dsn if not self.is_refused else self._dsn + "_absent"))
        return self.connections[-1]

    def _on_prices(self) -> None:
        self.prices += 1

    async def close(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        assert not self.watcher.live


@pytest.fixture
async def heard(database_url: str) -> AsyncIterator[Heard]:
    opened = Heard(database_url)
    await until(lambda: opened.watcher.live)
    yield opened
    await opened.close()


async def test_a_revocation_is_heard_well_under_a_second(heard: Heard, database: Database, wallet_id: str) -> None:
    assert heard.keys == [None], "what was said before it listened is lost: trust nothing"
    for _ in range(3):
        key, key_id = keys.make_key(), new_id()
        await keys.create(database, key, key_id, wallet_id, name="test")
        await keys.revoke(database, key_id)
        revoked = keys.hash_key(key)
        assert await until(lambda revoked=revoked: revoked in heard.keys) < 0.5  # type: ignore[misc]
    assert len(heard.keys) == 4


async def test_changed_prices_are_heard(heard: Heard, database: Database) -> None:
    assert heard.prices == 1
    await prices.add_prices(database, [prices.PriceVersion("m", datetime.now(UTC), {Meter.INPUT: 1}, (), "test")])
    assert await until(lambda: heard.prices == 2) < 0.5


async def test_a_dead_connection_is_not_live_until_there_is_another(
    database: Database, database_url: str, wallet_id: str
) -> None:
    heard = Heard(database_url, beat_seconds=0.05)
    await until(lambda: heard.watcher.live)
    heard.is_refused = True
    async with database.connection() as connection:
        await connection.execute("SELECT pg_terminate_backend($1)", heard.connections[0].get_server_pid())
    assert await until(lambda: not heard.watcher.live) < 1.0
    # What is revoked meanwhile is heard by nobody, so everything is forgotten when it is back.
    key, key_id = keys.make_key(), new_id()
    await keys.create(database, key, key_id, wallet_id, name="test")
    await keys.revoke(database, key_id)
    await asyncio.sleep(0.2)
    assert not heard.watcher.live
    told = len(heard.keys)
    heard.is_refused = False
    await until(lambda: heard.watcher.live)
    assert None in heard.keys[told:]
    await heard.close()


async def test_a_connection_that_no_longer_answers_is_not_live(database: Database, database_url: str) -> None:
    """Its server stands still: nothing is said, and nothing is refused."""
    heard = Heard(database_url, beat_seconds=0.1)
    await until(lambda: heard.watcher.live)
    heard.is_refused = True
    pid = heard.connections[0].get_server_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        assert await until(lambda: not heard.watcher.live) < 1.0
        heard.is_refused = False
        await until(lambda: heard.watcher.live)
    finally:
        os.kill(pid, signal.SIGCONT)
    await heard.close()
