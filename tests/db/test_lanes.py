"""A lane: one statement in flight, whatever waits is the next batch, and what is unknown is asked again."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import orjson
import pytest

from gateway.clock import new_id
from gateway.db import prices, wallets
from gateway.db.lanes import Lane, LaneFull, Operation, OperationRefused, Outcome, batch_wanted
from gateway.db.pool import Database, LedgerAway, connect
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


@pytest.fixture
async def bench(database_url: str) -> AsyncIterator[Bench]:
    async with bench_on(database_url) as made:
        yield made


async def test_answers_carry_what_became_of_the_wallet(bench: Bench) -> None:
    hold_id = new_id()
    held = await bench.lane.submit(bench.hold(hold_id, 100))
    assert held == (Outcome.HELD, 100, 0, 1_000, 1_000, 100)
    settled = await bench.lane.submit(bench.settle(hold_id, 60))
    assert settled == (Outcome.SETTLED, 60, 0, 900, 940, 0)
    again = await bench.lane.submit(bench.settle(hold_id, 60))
    assert again[:2] == (Outcome.ALREADY_SETTLED, 60)
    refused = await bench.lane.submit(bench.hold(new_id(), 941))
    assert refused[:4] == (Outcome.INSUFFICIENT_FUNDS, 0, 0, 940)
    unknown = await bench.lane.submit(bench.hold(new_id(), 1, new_id()))
    assert unknown.outcome is Outcome.WALLET_UNKNOWN


async def test_what_waits_is_the_next_batch(bench: Bench) -> None:
    others = [await bench.add_wallet() for _ in range(3)]
    await bench.in_flight()
    answers = [bench.lane.submit(bench.hold(new_id(), 10, wallet_id)) for wallet_id in others for _ in range(5)]
    assert bench.lane.queued == 15
    bench.proxy.restore()
    assert {answer.outcome for answer in await asyncio.gather(*answers)} == {Outcome.HELD}
    assert bench.observer.batches == [1, 15]
    assert [answer.result().held_nanos for answer in answers] == [50] * 15


async def test_a_batch_has_a_limit_and_each_id_once(database_url: str) -> None:
    async with bench_on(database_url, batch_operations_max=4) as bench:
        await bench.in_flight()
        hold_id = new_id()
        answers = [bench.lane.submit(bench.hold(new_id(), 1)) for _ in range(5)]
        answers += [bench.lane.submit(operation) for operation in (bench.hold(hold_id, 7), bench.void(hold_id))]
        bench.proxy.restore()
        outcomes = [answer.outcome for answer in await asyncio.gather(*answers)]
        assert outcomes == [Outcome.HELD] * 6 + [Outcome.VOIDED]
        assert bench.observer.batches == [1, 4, 2, 1]


async def test_a_full_lane_refuses_all_but_the_patient(database_url: str) -> None:
    async with bench_on(database_url, queue_operations_max=2) as bench:
        await bench.in_flight()
        answers = [bench.lane.submit(bench.hold(new_id(), 1)) for _ in range(2)]
        with pytest.raises(LaneFull):
            bench.lane.submit(bench.hold(new_id(), 1))
        patient = bench.void(new_id())
        patient.patient = True
        answers.append(bench.lane.submit(patient))
        bench.proxy.restore()
        assert [answer.outcome for answer in await asyncio.gather(*answers)] == [Outcome.HELD] * 2 + [Outcome.VOIDED]


async def test_a_hold_that_was_not_sent_is_forgotten_with_its_caller(bench: Bench) -> None:
    await bench.in_flight()
    bench.lane.submit(bench.hold(new_id())).cancel()
    kept = bench.lane.submit(bench.void(new_id()))
    kept.cancel()
    bench.proxy.restore()
    await bench.lane.submit(bench.void(new_id()))
    assert await bench.wallet() == (1_000, 0)
    # Only a hold may be forgotten: the void that nobody waited for was done.
    assert await bench.events() == [("voided", "test")] * 3


async def test_a_hold_whose_caller_left_is_undone(bench: Bench) -> None:
    bench.proxy.mute()
    operation = bench.hold(new_id())
    answer = bench.lane.submit(operation)
    await until(lambda: operation.sent)
    answer.cancel()
    bench.proxy.restore()
    while await bench.events() != [("voided", "abandoned")]:
        await asyncio.sleep(0.01)
    assert await bench.wallet() == (1_000, 0)


async def test_a_lost_answer_is_asked_for_again(database_url: str) -> None:
    """The ledger did it and could not say so: on the deadline the same id is asked again, and was done once."""
    async with bench_on(database_url, statement_seconds=0.3, wait_seconds=5.0) as bench:
        hold_id = new_id()
        await bench.lane.submit(bench.hold(hold_id))
        bench.proxy.mute()
        answer = bench.lane.submit(bench.settle(hold_id, 60))
        while await bench.wallet() != (940, 0):
            await asyncio.sleep(0.01)
        assert not answer.done()
        await until(lambda: bench.observer.failures == ["unknown"])
        bench.proxy.restore()
        assert (await answer)[:2] == (Outcome.ALREADY_SETTLED, 60)
        assert await bench.wallet() == (940, 0)


async def test_a_hold_given_up_on_is_undone_when_it_turns_out_to_have_happened(database_url: str) -> None:
    async with bench_on(database_url, statement_seconds=0.2, wait_seconds=0.1) as bench:
        bench.proxy.mute()
        answer = bench.lane.submit(bench.hold(new_id()))
        with pytest.raises(LedgerAway):
            await answer
        bench.proxy.restore()
        while await bench.events() != [("voided", "abandoned")]:
            await asyncio.sleep(0.01)
        assert await bench.wallet() == (1_000, 0)


async def test_a_bad_operation_stands_alone(bench: Bench) -> None:
    await bench.in_flight()
    good = [bench.lane.submit(bench.hold(new_id(), 1)) for _ in range(7)]
    bad = bench.lane.submit(bench.settle(new_id(), op="steal"))
    good += [bench.lane.submit(bench.hold(new_id(), 1)) for _ in range(4)]
    bench.proxy.restore()
    assert {answer.outcome for answer in await asyncio.gather(*good)} == {Outcome.HELD}
    with pytest.raises(OperationRefused):
        await bad
    assert bench.observer.failures.count("refused") == 1
    assert await bench.wallet() == (1_000, 11)


async def test_a_serialization_failure_is_retried(bench: Bench, database_url: str) -> None:
    other = await asyncpg.connect(database_url)
    name = database_url.partition("?")[0].rpartition("/")[2]
    await other.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
    bench.proxy.cut()
    bench.proxy.restore()
    await bench.lane.submit(bench.void(new_id()))
    bench.observer.failures.clear()
    async with other.transaction(isolation="read_committed"):
        await other.execute("UPDATE wallets SET name = 'other' WHERE wallet_id = $1", bench.wallet_id)
        answer = bench.lane.submit(bench.hold(new_id(), 1))
        while not await other.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
            await asyncio.sleep(0.01)
    assert (await answer).outcome is Outcome.HELD
    assert bench.observer.failures == ["retried"]
    await other.close()


async def test_without_a_ledger_callers_are_told_and_the_patient_wait(bench: Bench) -> None:
    bench.proxy.cut()
    patient = bench.void(new_id())
    patient.patient = True
    waiting = bench.lane.submit(patient)
    began = time.monotonic()
    with pytest.raises(LedgerAway):
        await bench.lane.submit(bench.hold(new_id()))
    assert 0.3 < time.monotonic() - began < 2.0
    await until(lambda: bench.lane.away)
    assert bench.lane.stuck_seconds() > 0.3
    assert not waiting.done()
    bench.proxy.restore()
    assert (await waiting).outcome is Outcome.VOIDED
    assert not bench.lane.away
    assert bench.lane.stuck_seconds() < 0.1
    assert (await bench.lane.submit(bench.hold(new_id()))).outcome is Outcome.HELD


async def test_a_lane_that_nobody_waits_for_any_more_rests(database_url: str) -> None:
    """The one that waited gives up at the moment when the connection is back: the loop must not spin for ever."""
    async with bench_on(database_url, statement_seconds=0.4) as bench:
        await bench.lane.submit(bench.void(new_id()))
        bench.proxy.pause()
        late = bench.lane.submit(bench.settle(new_id()))
        await until(lambda: bench.observer.failures == ["unknown"])
        bench.proxy.restore()
        with pytest.raises(LedgerAway):
            await late
        await asyncio.sleep(0.05)
        assert not bench.lane.away
        assert (await bench.lane.submit(bench.hold(new_id()))).outcome is Outcome.HELD


async def test_a_dead_connection_is_replaced_unseen(bench: Bench) -> None:
    await bench.lane.submit(bench.void(new_id()))
    bench.proxy.cut()
    bench.proxy.restore()
    await asyncio.sleep(0.01)
    assert (await bench.lane.submit(bench.hold(new_id()))).outcome is Outcome.HELD


async def test_a_closed_lane_answers_what_it_can_and_fails_the_rest(database_url: str) -> None:
    async with bench_on(database_url) as bench:
        answers = [bench.lane.submit(bench.hold(new_id(), 1)) for _ in range(3)]
        bench.lane.close()
        assert {answer.outcome for answer in await asyncio.gather(*answers)} == {Outcome.HELD}
    async with bench_on(database_url) as bench:
        bench.proxy.cut()
        patient = bench.void(new_id())
        patient.patient = True
        answer = bench.lane.submit(patient)
        bench.lane.close()
        with pytest.raises(LedgerAway):
            await answer
        bench.lane.hurry()


@pytest.mark.parametrize(
    ("calls", "work_ms", "statement_ms", "wanted"),
    [(1, 0.2, 1.0, 1), (4, 0.2, 1.0, 4), (5, 0.2, 1.0, 5), (16, 0.2, 1.0, 8), (16, 0.2, 5.0, 16), (64, 0.2, 5.0, 32)],
)
def test_a_batch_waits_for_half_of_the_calls_where_they_keep_the_gateway_busy(
    calls: int, work_ms: float, statement_ms: float, wanted: int
) -> None:
    assert batch_wanted(calls, work_ms, statement_ms) == wanted
