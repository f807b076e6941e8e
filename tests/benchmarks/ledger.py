"""The lane against one statement per operation: durable calls/s (a hold and a settle each) on one hot wallet."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

import asyncpg
import orjson

from gateway.clock import new_id
from gateway.db import wallets
from gateway.db.lanes import Lane, Operation
from gateway.db.pool import Connection, Database, connect
from gateway.db.queries import queries

CALLERS = 64
CONNECTIONS = 16  # for the single statements; more of them are slower on one hot row
ROUNDS = 3
CREDIT_NANOS = 10**15

Apply = Callable[[str, str, bytes], Awaitable[None]]


class _Silent:
    def batch_sent(self, operations: int) -> None:
        pass

    def statement_failed(self, kind: str) -> None:
        raise AssertionError(f"a statement failed: {kind}")


async def lane_vs_single(dsn: str, *, seconds: float) -> tuple[float, float]:
    """(calls/s through a lane, calls/s with a statement per operation), medians of interleaved rounds."""
    database = Database(dsn)
    wallet_id = new_id()
    await wallets.create(database, wallet_id, "bench")
    await wallets.credit(database, wallet_id, new_id(), CREDIT_NANOS, actor="bench", reason="bench")
    price_id = (await database.fetch("price_current"))[0]["price_id"]
    await database.close()

    async def connection() -> Connection:
        return await connect(dsn)

    lane = Lane(
        connection,
        _Silent(),
        batch_operations_max=512,
        queue_operations_max=10_000,
        statement_seconds=10.0,
        wait_seconds=10.0,
    )
    running = asyncio.gather(lane.run())
    pool = await asyncpg.create_pool(dsn, min_size=CONNECTIONS, max_size=CONNECTIONS)
    statement = queries()["lane_apply"]

    async def by_lane(wallet: str, hold_id: str, document: bytes) -> None:
        await lane.submit(Operation(wallet, hold_id, document))

    async def by_statement(wallet: str, _: str, document: bytes) -> None:
        async with pool.acquire() as one:
            await one.fetch(statement, [wallet], [(b"[%s]" % document).decode()])

    rates: dict[str, list[float]] = {"lane": [], "single": []}
    try:
        for _ in range(ROUNDS):
            rates["lane"].append(await _rate(by_lane, wallet_id, price_id, seconds))
            rates["single"].append(await _rate(by_statement, wallet_id, price_id, seconds))
    finally:
        lane.close()
        await running
        await pool.close()
    return statistics.median(rates["lane"]), statistics.median(rates["single"])


async def _rate(apply: Apply, wallet_id: str, price_id: int, seconds: float) -> float:
    """Calls/s of CALLERS callers, each one call after another."""
    began = time.perf_counter()
    calls = 0

    async def caller() -> None:
        nonlocal calls
        while time.perf_counter() - began < seconds:
            hold_id = new_id()
            shared = {"hold": hold_id, "key": hold_id, "price": price_id, "endpoint": "bench"}
            hold = {"op": "hold", **shared, "ceiling": 1_000, "minimum": 1_000, "seconds": 60}
            settle = {"op": "settle", **shared, "upstream": "bench", "cost": 500, "picos": 500_000}
            settle |= {"usage": {"input": 461, "output": 20}, "basis": "reported"}
            await apply(wallet_id, hold_id, orjson.dumps(hold))
            await apply(wallet_id, hold_id, orjson.dumps(settle))
            calls += 1

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return calls / (time.perf_counter() - began)
