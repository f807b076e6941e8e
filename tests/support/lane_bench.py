"""A lane before a proxy, a wallet, and what can go wrong in the server behind it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg
import orjson
import pytest

from gateway.clock import new_id
from gateway.db import prices, wallets
from gateway.db.lanes import Lane, Operation
from gateway.db.pool import Database, connect
from gateway.tasks import spawn
from tests.support.gateway import price_models
from tests.support.ledger_proxy import LedgerProxy, ledger_proxy
from tests.support.shop import until

FUNDS_NANOS = 1_000


class Observer:
    """What the lane did."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.failures: list[str] = []

    def batch_sent(self, operations: int) -> None:
        self.batches.append(operations)

    def statement_failed(self, kind: str) -> None:
        self.failures.append(kind)


class Bench:
    """A lane through a proxy, a wallet of 1,000 nanos, and a database beside the lane."""

    def __init__(self, lane: Lane, observer: Observer, proxy: LedgerProxy, database: Database) -> None:
        self.lane, self.observer, self.proxy, self.database = lane, observer, proxy, database
        self.wallet_id = ""
        self.price_id = 0

    async def add_wallet(self) -> str:
        wallet_id = new_id()
        await wallets.create(self.database, wallet_id, "test")
        await wallets.credit(self.database, wallet_id, new_id(), FUNDS_NANOS, actor="test", reason="test")
        return wallet_id

    def common(self, hold_id: str) -> dict[str, Any]:
        return {"hold": hold_id, "key": new_id(), "price": self.price_id, "endpoint": "test"}

    def hold(self, hold_id: str, nanos: int = 100, wallet_id: str | None = None) -> Operation:
        common = self.common(hold_id)
        document = {"op": "hold", **common, "ceiling": nanos, "minimum": nanos, "seconds": 60}
        undo = orjson.dumps({"op": "void", **common, "reason": "abandoned"})
        return Operation(wallet_id or self.wallet_id, hold_id, orjson.dumps(document), undo=undo)

    def settle(self, hold_id: str, nanos: int = 60, *, op: str = "settle") -> Operation:
        used = {"cost": nanos, "picos": nanos * 1_000, "usage": {"output": nanos // 4}, "basis": "reported"}
        return Operation(self.wallet_id, hold_id, orjson.dumps({"op": op, **self.common(hold_id), **used}))

    def void(self, hold_id: str) -> Operation:
        document = {"op": "void", **self.common(hold_id), "reason": "test"}
        return Operation(self.wallet_id, hold_id, orjson.dumps(document))

    async def wallet(self) -> tuple[int, int]:
        row = await wallets.get(self.database, self.wallet_id)
        assert row is not None
        return row["balance_nanos"], row["held_nanos"]

    async def events(self) -> list[tuple[str, str | None]]:
        rows = await wallets.usage(self.database, self.wallet_id, None, 1_000)
        return [(row["resolution"], row["reason"]) for row in rows]

    async def in_flight(self) -> Operation:
        """Something that the lane is waiting for, so that what comes next is a batch."""
        self.proxy.pause()
        operation = self.void(new_id())
        self.lane.submit(operation)
        await until(lambda: operation.sent)
        return operation


@asynccontextmanager
async def bench_on(dsn: str, **settings: Any) -> AsyncIterator[Bench]:
    chosen: dict[str, Any] = {"batch_operations_max": 512, "queue_operations_max": 1_000, "statement_seconds": 5.0,
                              "wait_seconds": 0.3, **settings}  # fmt: skip
    observer, database = Observer(), Database(dsn)
    async with ledger_proxy(dsn) as proxy:
        lane = Lane(lambda: connect(proxy.dsn), observer, **chosen)
        running = spawn(lane.run(), name="lane")
        bench = Bench(lane, observer, proxy, database)
        bench.wallet_id = await bench.add_wallet()
        await price_models(database)
        bench.price_id = (await prices.current(database))[0].price_id
        try:
            yield bench
        finally:
            proxy.restore()
            lane.close()
            async with asyncio.timeout(5):
                await running
            await database.close()


# A hold of 13 nanos ends the process of the server that would grant it, whatever is asked beside it.
POISON = """
CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.held_nanos = 13 THEN
        PERFORM pg_terminate_backend(pg_backend_pid());
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER poison BEFORE INSERT ON holds FOR EACH ROW EXECUTE FUNCTION poison();
"""
CANCEL_WAITS = """
SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND datname = current_database()
"""
COMMIT = "SELECT pg_current_xact_id(), pg_logical_emit_message(true, '', '')"


def name_of(dsn: str) -> str:
    return dsn.partition("?")[0].rpartition("/")[2]


@asynccontextmanager
async def altered(dsn: str, *settings: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection beside the lane's, after which every new one has `settings`."""
    other = await asyncpg.connect(dsn)
    for setting in settings:
        await other.execute(f"ALTER DATABASE {name_of(dsn)} SET {setting}")
    try:
        yield other
    finally:
        await other.close()


@contextmanager
def dropped_when_prepared(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """The driver's next connection that prepares a statement is dropped before it can run it; then true stands here."""
    prepare = asyncpg.Connection._get_statement  # type: ignore[attr-defined]  # the step between, which has no name
    dropped: list[bool] = []

    async def prepared(connection: asyncpg.Connection, *arguments: Any, **options: Any) -> Any:
        statement = await prepare(connection, *arguments, **options)
        if not dropped:
            dropped.append(True)
            connection.terminate()
        return statement

    with monkeypatch.context() as patch:
        patch.setattr(asyncpg.Connection, "_get_statement", prepared)
        yield dropped


async def standbys(dsn: str, other: asyncpg.Connection, names: str) -> None:
    """Name the synchronous standbys of the server; other databases of it do not wait for them."""
    await other.execute("SET synchronous_commit = off")
    await other.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
    await other.execute("SELECT pg_reload_conf()")
    while await other.fetchval("SHOW synchronous_standby_names") != names:
        await asyncio.sleep(0.01)
    while names and not await _a_commit_waits(dsn, other):
        await asyncio.sleep(0.01)


async def _a_commit_waits(dsn: str, other: asyncpg.Connection) -> bool:
    """Whether commits wait yet: they do at the checkpointer's word, which reads the settings in its own time."""
    probe = await asyncpg.connect(dsn)
    commit = spawn(probe.execute(COMMIT), name="commit")
    waited = False
    while not commit.done():
        waited = bool(await other.fetch(CANCEL_WAITS)) or waited
        await asyncio.sleep(0.01)
    await commit
    await probe.close()
    return waited
