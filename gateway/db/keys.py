"""API keys: random, stored as SHA-256, shown once."""

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

import asyncpg

from gateway.db.pool import Connection, Database, LedgerAway, Row, is_away, is_pooled
from gateway.db.queries import queries

KEY_PREFIX = "fb-"


def make_key() -> str:
    """A new key with 256 bits of chance."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str) -> bytes:
    """What is stored of a key. A random key of 256 bits needs no slow hash."""
    return hashlib.sha256(key.encode()).digest()


async def create(
    database: Database,
    key: str,
    key_id: str,
    wallet_id: str,
    *,
    name: str,
    models: Sequence[str] | None = None,
    expires_at: datetime | None = None,
) -> bool:
    """Store `key` by its hash; False if the wallet does not exist."""
    hint = f"{key[:6]}…{key[-4:]}"
    row = await database.fetch_one("key_create", hash_key(key), key_id, wallet_id, name, hint, models, expires_at)
    return row is not None


async def by_hash(database: Database, key_hash: bytes) -> Row | None:
    """The usable key with this hash, or None. Raises LedgerAway."""
    return await database.fetch_one("key_by_hash", key_hash)


async def list_of(database: Database, wallet_id: str | None, after: str | None, count: int) -> Sequence[Row]:
    """Up to `count` keys of one wallet, or of all, that follow the key `after`; without their secrets."""
    return await database.fetch("key_list", wallet_id, after, count)


async def revoke(database: Database, key_id: str) -> bool:
    """Revoke a key everywhere; False if there is none with this id."""
    return await database.fetch_one("key_revoke", key_id) is not None


class Watcher:
    """Hears of changes from every process: revoked keys (by hash) and changed prices.

    A connection that has silently died would hear nothing, so it is asked something every half second; while it is
    not known to be alive, `live` is False and caches must trust themselves for less time. So it is behind a pooler,
    which may lend each statement another server's connection: then what is said may reach nobody.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        *,
        on_key: Callable[[bytes | None], None],
        on_prices: Callable[[], None],
        beat_seconds: float = 0.5,
    ) -> None:
        self._connect = connect
        self._on_key = on_key
        self._on_prices = on_prices
        self._beat_seconds = beat_seconds
        self.live = False

    async def run(self) -> None:
        while True:
            connection: Connection | None = None
            try:
                connection = await self._connect()
                await connection.add_listener("farebox_keys", self._heard_key)
                await connection.add_listener("farebox_prices", self._heard_prices)
                # What was said while nobody listened is lost: start from nothing.
                self._on_key(None)
                self._on_prices()
                self.live = not await is_pooled(connection)
                while True:
                    await asyncio.sleep(self._beat_seconds)
                    async with asyncio.timeout(self._beat_seconds):
                        # A server that takes no writes any more says nothing of what its successor does.
                        if not await connection.fetchval(queries()["database_writable"]):
                            raise LedgerAway("takes no writes")
            except Exception as error:
                if not (isinstance(error, asyncpg.PostgresError) or is_away(error, connection)):
                    raise
            finally:
                self.live = False
                if connection is not None:
                    connection.terminate()
            self._on_key(None)
            await asyncio.sleep(self._beat_seconds)

    def _heard_key(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        self._on_key(bytes.fromhex(str(payload)))

    def _heard_prices(self, _connection: object, _pid: int, _channel: str, _payload: object) -> None:
        self._on_prices()
