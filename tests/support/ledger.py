"""Books made as a gateway makes them: every row comes from wallet_apply and wallet_post."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import asyncpg
import orjson

from gateway.clock import new_id
from gateway.core.audit import recompute_picos
from gateway.core.catalogue import Meter, Price, Rates
from gateway.core.money import NANOS_PER_UNIT, round_nanos
from gateway.db.queries import queries

KEY_ID = "00000000-0000-7000-8000-00000000000f"
ENDPOINT = "chat"
# A rate that makes picos fall between nanos, so that rounding matters.
RATES: Rates = {Meter.INPUT: 1_250, Meter.CACHED_INPUT: 625, Meter.OUTPUT: 4_001}
USAGE = {"input": 100, "cached_input": 7, "output": 31, "reasoning": 12}


async def make_price(connection: asyncpg.Connection, *, model: str = "test-model") -> Price:
    """A stored price version of RATES."""
    rates = orjson.dumps(dict(RATES)).decode()
    since = datetime(2020, 1, 1, tzinfo=UTC)
    await connection.execute(queries()["price_add"], [model], [since], [rates], ["[]"], ["{}"], ["test"])
    row = await connection.fetchrow(queries()["price_history"], model, 1)
    assert row is not None
    return Price(row["price_id"], model, since, "test", RATES)


async def make_wallet(connection: asyncpg.Connection, credit: int = 100) -> str:
    """A wallet with `credit` whole units; its id."""
    wallet_id = new_id()
    await connection.execute(queries()["wallet_create"], wallet_id, "test", 0)
    if credit:
        nanos = credit * NANOS_PER_UNIT
        arguments = (wallet_id, new_id(), "credit", "credits", nanos, "test", "test")
        assert await connection.fetchval(queries()["wallet_post"], *arguments) == "posted"
    return wallet_id


async def apply(connection: asyncpg.Connection, wallet_id: str, *operations: Mapping[str, object]) -> list[str]:
    """The outcomes of operations on one wallet, sent as a lane sends them."""
    row = await connection.fetchrow(queries()["lane_apply"], [wallet_id], [orjson.dumps(operations).decode()])
    assert row is not None
    return list(row["outcomes"])


async def place_hold(connection: asyncpg.Connection, wallet_id: str, price: Price, nanos: int = 1_000_000) -> str:
    """An open hold of `nanos`; its id."""
    hold_id = new_id()
    operation = {"op": "hold", **_shared(hold_id, price), "ceiling": nanos, "minimum": nanos, "seconds": 60}
    assert await apply(connection, wallet_id, operation) == ["held"]
    return hold_id


async def settle(
    connection: asyncpg.Connection,
    wallet_id: str,
    hold_id: str,
    price: Price,
    usage: Mapping[str, int] = USAGE,
) -> str:
    """Charge `usage` at `price`; the outcome."""
    return (await apply(connection, wallet_id, settle_operation(hold_id, price, usage)))[0]


def settle_operation(hold_id: str, price: Price, usage: Mapping[str, int] = USAGE) -> dict[str, object]:
    """The operation that charges `usage`."""
    operation = {"op": "settle", **_shared(hold_id, price), "upstream": "test", "basis": "reported", "reason": None}
    return {**operation, **_cost(price, usage)}


async def void(connection: asyncpg.Connection, wallet_id: str, hold_id: str, price: Price) -> str:
    """Release a hold; the outcome."""
    operation = {"op": "void", **_shared(hold_id, price), "upstream": "test", "reason": "upstream_refused"}
    return (await apply(connection, wallet_id, operation))[0]


async def sweep(
    connection: asyncpg.Connection, wallet_id: str, hold_id: str, price: Price, usage: Mapping[str, int] | None = None
) -> str:
    """Let a hold lapse as if its gateway had died, with a checkpoint of `usage` if one is given; the outcome."""
    if usage is not None:
        operation = {"op": "checkpoint", "hold": hold_id, "seconds": 60, **_cost(price, usage)}
        assert await apply(connection, wallet_id, operation) == ["checkpointed"]
    await connection.execute("UPDATE holds SET renewed_at = now() - interval '1 hour' WHERE hold_id = $1", hold_id)
    return (await apply(connection, wallet_id, {"op": "expire", "hold": hold_id}))[0]


@dataclass(frozen=True, slots=True)
class Books:
    """Two wallets with calls of every kind; `settled` are holds of the first wallet, in their order."""

    price: Price
    wallet_id: str
    settled: Sequence[str]
    late: str


async def make_books(connection: asyncpg.Connection) -> Books:
    """Calls settled, voided, swept, settled late, and one that is still running."""
    price = await make_price(connection)
    first, second = await make_wallet(connection), await make_wallet(connection, 5)
    settled = [await place_hold(connection, first, price) for _ in range(3)]
    for hold_id in settled:
        assert await settle(connection, first, hold_id, price) == "settled"
    assert await void(connection, first, await place_hold(connection, first, price), price) == "voided"
    late = await place_hold(connection, first, price)
    assert await sweep(connection, first, late, price, {"input": 50}) == "expired"
    assert await settle(connection, first, late, price) == "settled_late"
    assert await sweep(connection, first, await place_hold(connection, first, price), price) == "expired"
    other = await place_hold(connection, second, price, 10)
    assert await settle(connection, second, other, price, {"output": 1_000}) == "settled"
    await place_hold(connection, first, price)
    return Books(price, first, settled, late)


def _shared(hold_id: str, price: Price) -> dict[str, object]:
    return {"hold": hold_id, "key": KEY_ID, "price": price.price_id, "endpoint": ENDPOINT}


def _cost(price: Price, usage: Mapping[str, int]) -> dict[str, object]:
    picos = recompute_picos(price, dict(usage))
    return {"cost": round_nanos(picos), "picos": picos, "usage": usage}
