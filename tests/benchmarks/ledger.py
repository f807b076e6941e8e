"""The ledger by itself: callers that hold and settle, through a lane or with a statement per operation."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg
import orjson

from gateway.clock import new_id
from gateway.db import wallets
from gateway.db.lanes import Lane, Operation
from gateway.db.pool import Connection, Database, connect
from gateway.db.queries import queries
from tests.benchmarks.load import percentile

CALLERS = 64
CONNECTIONS = 16  # for the single statements; more of them are slower on one hot row
ROUNDS = 3
CREDIT_NANOS = 10**15
REST_CALLS = 300

Apply = Callable[[str, str, bytes], Awaitable[None]]
GroupCommit = Callable[[], Coroutine[None, None, float]]


class _Silent:
    def batch_sent(self, operations: int) -> None:
        pass

    def statement_failed(self, kind: str) -> None:
        raise AssertionError(f"a statement failed: {kind}")


@dataclass(frozen=True, slots=True)
class Rate:
    """Calls (a durable hold and a durable settle each) per second, and what a caller waited for its hold."""

    calls_per_s: float
    hold_p50_ms: float
    hold_p99_ms: float


@dataclass(frozen=True, slots=True)
class Ledger:
    """Two ways to the same database."""

    by_lane: Apply
    by_statement: Apply
    price_id: int

    def call(self, hold_id: str) -> tuple[bytes, bytes]:
        """The hold and the settle of one call."""
        shared = {"hold": hold_id, "key": hold_id, "price": self.price_id, "endpoint": "bench"}
        hold = {"op": "hold", **shared, "ceiling": 1_000, "minimum": 1_000, "seconds": 60}
        settle = {"op": "settle", **shared, "upstream": "bench", "cost": 500, "picos": 500_000}
        settle |= {"usage": {"input": 461, "output": 20}, "basis": "reported"}
        return orjson.dumps(hold), orjson.dumps(settle)

    async def rate(self, apply: Apply, wallet_ids: Sequence[str], *, callers: int, seconds: float) -> Rate:
        """What so many callers get done, each one call after another, over these wallets in turn."""
        began = time.perf_counter()
        calls = 0
        waits: list[float] = []

        async def caller() -> None:
            nonlocal calls
            while time.perf_counter() - began < seconds:
                hold_id = new_id()
                wallet_id = wallet_ids[calls % len(wallet_ids)]
                hold, settle = self.call(hold_id)
                asked = time.perf_counter()
                await apply(wallet_id, hold_id, hold)
                waits.append(time.perf_counter() - asked)
                await apply(wallet_id, hold_id, settle)
                calls += 1

        await asyncio.gather(*(caller() for _ in range(callers)))
        took = time.perf_counter() - began
        return Rate(calls / took, statistics.median(waits) * 1_000, percentile(waits, 0.99) * 1_000)


@asynccontextmanager
async def ledger_at(dsn: str, *, connections: int = CONNECTIONS) -> AsyncIterator[Ledger]:
    """A lane and a pool on a migrated database that has a price."""

    async def connection() -> Connection:
        return await connect(dsn)

    lane = Lane(
        connection,
        _Silent(),
        batch_operations_max=512,
        queue_operations_max=10_000,
        statement_seconds=30.0,
        wait_seconds=30.0,
    )
    database = Database(dsn)
    price_id = (await database.fetch("price_current"))[0]["price_id"]
    await database.close()
    running = asyncio.gather(lane.run())
    pool = await asyncpg.create_pool(dsn, min_size=connections, max_size=connections)
    statement = queries()["lane_apply"]

    async def by_lane(wallet: str, hold_id: str, document: bytes) -> None:
        await lane.submit(Operation(wallet, hold_id, document))

    async def by_statement(wallet: str, _: str, document: bytes) -> None:
        async with pool.acquire() as one:
            await one.fetch(statement, [wallet], [(b"[%s]" % document).decode()])

    try:
        yield Ledger(by_lane, by_statement, price_id)
    finally:
        lane.close()
        await running
        await pool.close()


async def funded_wallets(dsn: str, count: int) -> list[str]:
    """So many wallets with more than any benchmark spends."""
    database = Database(dsn)
    wallet_ids = [new_id() for _ in range(count)]
    for wallet_id in wallet_ids:
        await wallets.create(database, wallet_id, "bench")
        await wallets.credit(database, wallet_id, new_id(), CREDIT_NANOS, actor="bench", reason="bench")
    await database.close()
    return wallet_ids


async def lane_vs_single(dsn: str, *, seconds: float) -> tuple[float, float]:
    """(calls/s through a lane, calls/s with a statement per operation) on one hot wallet, medians of rounds."""
    rates: dict[str, list[float]] = {"lane": [], "single": []}
    hot = await funded_wallets(dsn, 1)
    async with ledger_at(dsn) as ledger:
        for _ in range(ROUNDS):
            for name, apply in (("lane", ledger.by_lane), ("single", ledger.by_statement)):
                rate = await ledger.rate(apply, hot, callers=CALLERS, seconds=seconds)
                rates[name].append(rate.calls_per_s)
    return statistics.median(rates["lane"]), statistics.median(rates["single"])


@asynccontextmanager
async def group_commits(dsn: str) -> AsyncIterator[GroupCommit]:
    """What sends one operation through a lane at rest, a call's hold and then its settle, and says how many seconds it
    took: statement, commit and all."""
    (wallet,) = await funded_wallets(dsn, 1)
    async with ledger_at(dsn, connections=1) as ledger:
        waiting: list[tuple[str, bytes]] = []

        async def commit() -> float:
            if not waiting:
                hold_id = new_id()
                waiting.extend((hold_id, document) for document in ledger.call(hold_id))
            hold_id, document = waiting.pop(0)
            began = time.perf_counter()
            await ledger.by_lane(wallet, hold_id, document)
            return time.perf_counter() - began

        yield commit


async def group_commit_ms(dsn: str) -> float:
    """The median of group commits one right after another, in milliseconds."""
    async with group_commits(dsn) as commit:
        return statistics.median([await commit() for _ in range(2 * REST_CALLS)]) * 1_000
