"""What a lane does with a statement that failed: unknown is asked again, rolled back is retried, bad stands alone."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from gateway.clock import new_id
from gateway.db.lanes import OperationRefused, Outcome
from gateway.db.pool import LedgerAway
from tests.support.lane_bench import (
    CANCEL_WAITS,
    POISON,
    Bench,
    altered,
    bench_on,
    dropped_when_prepared,
    standbys,
)
from tests.support.shop import until


@pytest.fixture
async def bench(database_url: str) -> AsyncIterator[Bench]:
    async with bench_on(database_url) as made:
        yield made


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


async def test_a_serialization_failure_is_retried(database_url: str) -> None:
    async with (
        altered(database_url, "default_transaction_isolation = 'repeatable read'") as other,
        bench_on(database_url, wait_seconds=9) as bench,
    ):
        await bench.lane.submit(bench.void(new_id()))
        async with other.transaction(isolation="read_committed"):
            await other.execute("UPDATE wallets SET name = 'other' WHERE wallet_id = $1", bench.wallet_id)
            answer = bench.lane.submit(bench.hold(new_id(), 1))
            while not await other.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
                await asyncio.sleep(0.01)
        assert (await answer).outcome is Outcome.HELD
        assert bench.observer.failures == ["retried"]


async def test_a_lock_that_was_not_had_in_time_is_asked_for_again(bench: Bench, database_url: str) -> None:
    async with altered(database_url, "lock_timeout = '50ms'") as other:
        bench.proxy.cut()
        bench.proxy.restore()
        await bench.lane.submit(bench.void(new_id()))
        bench.observer.failures.clear()
        async with other.transaction():
            await other.execute("UPDATE wallets SET name = 'other' WHERE wallet_id = $1", bench.wallet_id)
            with pytest.raises(LedgerAway):  # in the time that a caller waits
                await bench.lane.submit(bench.settle(new_id(), 1))
            answer = bench.lane.submit(bench.hold(new_id(), 1))
            await until(lambda: len(bench.observer.failures) > 3)
        assert (await answer).outcome is Outcome.HELD
        assert set(bench.observer.failures) == {"retried"}


async def test_a_cancelled_wait_for_the_standby_is_not_an_answer(database_url: str) -> None:
    """PostgreSQL then answers as if all were well, after a warning: the commit is on the primary alone."""
    async with (
        altered(database_url, "synchronous_commit = on") as other,
        bench_on(database_url, wait_seconds=9) as bench,
    ):
        hold_id = new_id()
        await bench.lane.submit(bench.hold(hold_id))
        await standbys(database_url, other, "nobody")
        try:
            answer = bench.lane.submit(bench.settle(hold_id, 60))
            async with asyncio.timeout(10):
                while not bench.observer.failures:
                    await other.execute(CANCEL_WAITS)
                    await asyncio.sleep(0.02)
                for _ in range(20):  # before it is asked again, another commit has to get through
                    await other.execute(CANCEL_WAITS)
                    await asyncio.sleep(0.02)
            assert bench.observer.failures == ["unknown"]
            assert not answer.done()
        finally:
            await standbys(database_url, other, "")
        assert (await answer)[:2] == (Outcome.ALREADY_SETTLED, 60)
        assert await bench.wallet() == (940, 0)


async def test_one_that_takes_its_server_down_stops_nobody_else(database_url: str) -> None:
    async with altered(database_url) as other, bench_on(database_url, wait_seconds=2.0) as bench:
        await other.execute(POISON)
        await bench.in_flight()
        good = [bench.lane.submit(bench.hold(new_id(), 1)) for _ in range(4)]
        poison = bench.hold(new_id(), 13)
        poisoned = bench.lane.submit(poison)
        good += [bench.lane.submit(bench.hold(new_id(), 1)) for _ in range(3)]
        bench.proxy.restore()
        assert {answer.outcome for answer in await asyncio.gather(*good)} == {Outcome.HELD}
        assert not poisoned.done()
        for _ in range(3):
            assert (await bench.lane.submit(bench.hold(new_id(), 1))).outcome is Outcome.HELD
        with pytest.raises((LedgerAway, OperationRefused)):
            await poisoned
        # Nothing else is asked any more: a probe shows that the ledger answers all but this, and it is dropped.
        await until(lambda: "refused" in bench.observer.failures)
        assert (await bench.lane.submit(bench.hold(new_id(), 1))).outcome is Outcome.HELD
        assert not bench.lane.away


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


async def test_a_statement_dropped_between_its_two_steps_is_asked_again(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepared and not yet run when the connection is dropped: the driver fails in its own attributes. A settle that
    were taken for refused would be lost."""
    async with bench_on(database_url, wait_seconds=5.0) as bench:
        with dropped_when_prepared(monkeypatch) as dropped:
            assert (await bench.lane.submit(bench.settle(new_id()))).outcome is Outcome.SETTLED_UNHELD
        assert dropped == [True]
        assert bench.observer.failures == ["unknown"]


async def test_a_probe_dropped_between_its_two_steps_ends_no_lane(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench_on(database_url, wait_seconds=5.0) as bench:
        suspect = bench.settle(new_id())
        suspect.strikes = 1
        with dropped_when_prepared(monkeypatch) as dropped:
            async with asyncio.timeout(10):
                assert (await bench.lane.submit(suspect)).outcome is Outcome.SETTLED_UNHELD
        assert dropped == [True]


async def test_a_dead_connection_is_replaced_unseen(bench: Bench) -> None:
    await bench.lane.submit(bench.void(new_id()))
    bench.proxy.cut()
    bench.proxy.restore()
    await asyncio.sleep(0.01)
    assert (await bench.lane.submit(bench.hold(new_id()))).outcome is Outcome.HELD
