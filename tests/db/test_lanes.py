"""A lane: one statement in flight, and whatever waits is the next batch."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.clock import new_id
from gateway.db.lanes import LaneFull, Outcome
from gateway.db.pool import LedgerAway
from tests.support.lane_bench import Bench, bench_on
from tests.support.shop import until


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
