"""Where a key's call stands, by what the ledger says of its hold: one row per line of idempotency_look."""

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from gateway.clock import new_id
from gateway.core.catalogue import Price
from gateway.db import idempotency
from gateway.db.idempotency import Key, Standing
from gateway.db.pool import Database, LedgerAway
from tests.support import ledger

BODY = b"b" * 32
# What happened to the hold, in order; where the call stands while that is young, and when it is old. "fence" is what a
# take-over does to a hold that was swept.
CASES: list[tuple[str, Standing, Standing]] = [
    ("", Standing.RUNNING, Standing.UNPLACED),
    ("place", Standing.RUNNING, Standing.RUNNING),
    ("void", Standing.FREE, Standing.FREE),
    ("place void", Standing.FREE, Standing.FREE),
    ("decline", Standing.FREE, Standing.FREE),
    ("place settle", Standing.RUNNING, Standing.LOST),
    ("place settle_0", Standing.RUNNING, Standing.FREE),
    ("place sweep", Standing.RUNNING, Standing.SWEPT),
    ("place sweep_charged", Standing.RUNNING, Standing.LOST),
    ("place sweep settle", Standing.RUNNING, Standing.LOST),
    ("place sweep settle_0", Standing.RUNNING, Standing.FREE),
    ("place sweep fence", Standing.FREE, Standing.FREE),
    ("place sweep fence settle", Standing.FREE, Standing.FREE),
    ("place sweep_charged fence", Standing.RUNNING, Standing.LOST),
]


class Books:
    """A wallet, a key of it, and the hold that the key names."""

    def __init__(self, connection: asyncpg.Connection, database: Database, wallet_id: str, price: Price) -> None:
        self.connection, self.database, self.price = connection, database, price
        self.key = Key(wallet_id, b"k" * 32, BODY)
        self.hold_id = new_id()

    async def do(self, step: str) -> None:
        """One step in the life of the hold."""
        shared = {"hold": self.hold_id, "key": ledger.KEY_ID, "price": self.price.price_id, "endpoint": "chat"}
        nothing: dict[str, Any] = {"upstream": None, "cost": 0, "picos": 0, "usage": {}, "basis": "none"}
        wallet_id = self.key.wallet_id
        if step in ("place", "decline"):
            nanos = 1_000_000 if step == "place" else 10**15
            operation: dict[str, Any] = {"op": "hold", **shared, "ceiling": nanos, "minimum": nanos, "seconds": 60}
        elif step == "void":
            operation = {"op": "void", **shared, "upstream": None, "reason": "test"}
        elif step == "settle":
            operation = ledger.settle_operation(self.hold_id, self.price)
        elif step in ("settle_0", "fence"):
            reason = "superseded" if step == "fence" else None
            operation = {"op": "settle", **shared, **nothing, "reason": reason}
        else:
            usage = {"input": 10} if step == "sweep_charged" else None
            assert await ledger.sweep(self.connection, wallet_id, self.hold_id, self.price, usage) == "expired"
            return
        await ledger.apply(self.connection, wallet_id, operation)

    async def look(self, seconds: float = 30.0) -> idempotency.Found:
        found = await idempotency.look(self.database, self.key, unplaced_seconds=seconds, grace_seconds=seconds)
        assert found is not None
        return found


@pytest.fixture
async def books(database_url: str) -> AsyncIterator[Books]:
    connection = await asyncpg.connect(database_url)
    database = Database(database_url)
    price = await ledger.make_price(connection)
    yield Books(connection, database, await ledger.make_wallet(connection), price)
    await database.close()
    await connection.close()


async def test_where_a_call_stands(books: Books) -> None:
    for steps, young, old in CASES:
        books.hold_id, key = new_id(), books.key
        assert await idempotency.claim(books.database, key, books.hold_id, keep_seconds=60)
        for step in steps.split():
            await books.do(step)
        assert ((await books.look()).standing, (await books.look(0)).standing) == (young, old), steps
        charged = await books.connection.fetchval(
            "SELECT coalesce(sum(charged_nanos), 0)::bigint FROM usage_events WHERE hold_id = $1", books.hold_id
        )
        assert (await books.look()).charged_nanos == charged, steps
        assert (old in (Standing.FREE, Standing.UNPLACED, Standing.SWEPT, Standing.RUNNING)) == (charged == 0), steps
        # Whatever was charged, or may still be, is not let go.
        is_final = charged == 0 and "sweep" not in steps and steps != "place"
        assert await idempotency.release(books.database, key, books.hold_id) == is_final, steps
        if not is_final:
            assert await idempotency.lose(books.database, key, books.hold_id) == (charged > 0), steps
            await books.connection.execute("DELETE FROM idempotency_keys")


async def test_a_key_is_one_calls_until_it_is_taken_over(books: Books) -> None:
    database, key, first, second = books.database, books.key, books.hold_id, new_id()
    assert await idempotency.claim(database, key, first, keep_seconds=60)
    assert not await idempotency.claim(database, key, second, keep_seconds=60)
    other_body = key._replace(body_hash=b"o" * 32)
    found = await idempotency.look(database, other_body, unplaced_seconds=0, grace_seconds=0)
    assert found == (Standing.OTHER_BODY, first, 0, None)
    await books.do("void")
    assert await idempotency.take_over(database, key, first, second, keep_seconds=60)
    # The first is too late for everything.
    assert not await idempotency.take_over(database, key, first, new_id(), keep_seconds=60)
    assert not await idempotency.keep(database, key, first, b"first", keep_seconds=60)
    assert not await idempotency.release(database, key, first)
    assert not await idempotency.lose(database, key, first)
    assert await idempotency.keep(database, key, second, b"second", keep_seconds=60)
    assert await books.look() == (Standing.FINISHED, second, 0, b"second")
    found = await idempotency.look(database, other_body, unplaced_seconds=0, grace_seconds=0)
    assert found == (Standing.OTHER_BODY, second, 0, None)
    # A reply that is kept stays.
    assert not await idempotency.keep(database, key, second, b"other", keep_seconds=60)
    assert not await idempotency.release(database, key, second)
    assert not await idempotency.take_over(database, key, second, new_id(), keep_seconds=60)


async def test_keys_are_forgotten_in_batches_when_their_time_is_over(books: Books) -> None:
    async def keys() -> int:
        return int(await books.connection.fetchval("SELECT count(*) FROM idempotency_keys"))

    for number in range(5):
        key = books.key._replace(key_hash=bytes([number]) * 32)
        assert await idempotency.claim(books.database, key, new_id(), keep_seconds=60)
    assert await idempotency.forget(books.database, 10) == 0
    await books.connection.execute("UPDATE idempotency_keys SET expires_at = now() WHERE get_byte(key_hash, 0) < 4")
    assert [await idempotency.forget(books.database, 3) for _ in range(3)] == [3, 1, 0]
    assert await keys() == 1


async def test_a_ledger_that_is_away_is_said() -> None:
    database = Database("postgresql://127.0.0.1:1/none")
    with pytest.raises(LedgerAway):
        await idempotency.claim(database, Key(new_id(), b"k" * 32, BODY), new_id(), keep_seconds=60)
    await database.close()
