"""Several gateways on one wallet: whoever comes first, the ledger does what it would do one after the other."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable

import asyncpg
import pytest

from gateway.clock import new_id
from gateway.db.lanes import Answer, Lane, Operation, Outcome
from gateway.db.pool import connect
from gateway.db.queries import queries
from gateway.tasks import spawn
from tests.support.ledger_model import ModelWallet
from tests.support.ledger_operations import Ledger, Op, checkpoint, expire, extend, hold, open_ledger, settle, void
from tests.support.ledger_races import Track, holds_at_once, open_track, serial, told

# A wallet of 10 that one hold empties; the settle costs more than there is.
CREDIT = 10
OPERATIONS: dict[str, Callable[[str], Op]] = {
    "hold": lambda i: hold(i, CREDIT),
    "settle": lambda i: settle(i, CREDIT + 2),
    "void": void,
    "checkpoint": lambda i: checkpoint(i, 4),
    "extend": lambda i: extend(i, CREDIT + 2, 5),
    "expire": expire,
}
PAIRS = list(itertools.product(OPERATIONS, OPERATIONS, (True, False)))
DUE_SECONDS = 120


@pytest.fixture
async def track(database_url: str) -> AsyncIterator[Track]:
    async with open_track(database_url) as opened:
        yield opened


async def both(ledger: Ledger, model: ModelWallet, wallet_id: str, *operations: Op) -> None:
    """Do the same to the ledger and to the model."""
    assert list(map(told, await ledger.apply(wallet_id, *operations))) == [model.apply(op) for op in operations]


async def new_wallet(ledger: Ledger, state: str, hold_id: str) -> tuple[str, ModelWallet]:
    """A wallet whose hold is in `state`, and its model."""
    wallet_id, model = await ledger.wallet(CREDIT), ModelWallet()
    model.post("credit", CREDIT, "first")
    if state == "fresh":
        return wallet_id, model
    await both(ledger, model, wallet_id, hold(hold_id, 4 if state == "small" else CREDIT))
    await both(ledger, model, wallet_id, checkpoint(hold_id, 3))
    await ledger.age(wallet_id, DUE_SECONDS)
    model.now += DUE_SECONDS
    if state == "expired":
        await both(ledger, model, wallet_id, expire(hold_id))
    return wallet_id, model


@pytest.mark.parametrize("state", ["fresh", "due", "small", "expired"])
async def test_two_that_touch_one_hold_are_decided_in_the_order_of_commits(track: Track, state: str) -> None:
    """Hold, settle, void, checkpoint, extend, sweep and late settle, each against each, committed and rolled back."""
    for one, two, is_committed in PAIRS:
        hold_id = new_id()
        wallet_id, model = await new_wallet(track.first, state, hold_id)
        first, second = OPERATIONS[one](hold_id), OPERATIONS[two](hold_id)
        answers = await track.race(wallet_id, first, second, is_committed=is_committed)
        expected = serial(model, first, second, is_committed=is_committed)
        assert tuple(map(told, answers)) == expected, (one, two, is_committed)
        assert await track.watcher.funds(wallet_id) == (model.balance, model.held)
        await track.first.age(wallet_id, -DUE_SECONDS)
    assert not await track.watcher.broken()


@pytest.mark.parametrize("state", ["due", "small"])
async def test_two_that_want_the_last_money_are_decided_in_the_order_of_commits(track: Track, state: str) -> None:
    """Two holds of one wallet: one frees or takes what the other wants."""
    for one, two, is_committed in PAIRS:
        mine, other = new_id(), new_id()
        wallet_id, model = await new_wallet(track.first, state, mine)
        if two != "hold":
            await both(track.first, model, wallet_id, hold(other, 0))
        first, second = OPERATIONS[one](mine), OPERATIONS[two](other)
        answers = await track.race(wallet_id, first, second, is_committed=is_committed)
        expected = serial(model, first, second, is_committed=is_committed)
        assert tuple(map(told, answers)) == expected, (one, two, is_committed)
        assert await track.watcher.funds(wallet_id) == (model.balance, model.held)
        await track.first.age(wallet_id, -DUE_SECONDS)
    assert not await track.watcher.broken()


async def test_200_holds_at_once_on_a_wallet_for_50(database_url: str) -> None:
    """https://github.com/songquanpeng/one-api/issues/2440: 50 calls passed on a balance for 10."""
    async with open_ledger(database_url) as ledger:
        wallet_id = await ledger.wallet(50 * 7 + 6)
        assert await holds_at_once(database_url, wallet_id, connections=8, count=200, nanos=7) == 50
        assert await ledger.funds(wallet_id) == (356, 350)


class Observer:
    """What a lane had to do twice."""

    def __init__(self) -> None:
        self.failures: list[str] = []

    def batch_sent(self, operations: int) -> None:
        """Every batch is one of those that are counted elsewhere."""

    def statement_failed(self, kind: str) -> None:
        self.failures.append(kind)


class Lanes:
    """Lanes as several gateways have them."""

    def __init__(self, dsn: str, count: int) -> None:
        self.observer = Observer()
        limits = {"batch_operations_max": 512, "queue_operations_max": 20_000}
        self._lanes = [
            Lane(lambda: connect(dsn), self.observer, **limits, statement_seconds=10.0, wait_seconds=10.0)
            for _ in range(count)
        ]
        self._tasks = [spawn(lane.run(), name="a lane") for lane in self._lanes]

    async def ask(self, asked: list[tuple[int, str, Op]]) -> list[Answer]:
        """Answers to (lane, wallet id, operation), all submitted at once."""
        import orjson

        operations = [(lane, Operation(wallet_id, op["hold"], orjson.dumps(op))) for lane, wallet_id, op in asked]
        return await asyncio.gather(*(self._lanes[lane].submit(operation) for lane, operation in operations))

    async def close(self) -> None:
        for lane in self._lanes:
            lane.close()
        await asyncio.gather(*self._tasks)


@pytest.fixture
async def lanes(database_url: str) -> AsyncIterator[Lanes]:
    opened = Lanes(database_url, 3)
    yield opened
    await opened.close()


async def test_three_lanes_on_one_wallet_never_overspend(database_url: str, lanes: Lanes) -> None:
    async with open_ledger(database_url) as ledger:
        wallet_id = await ledger.wallet(50 * 7 + 6)
        ids = [new_id() for _ in range(200)]
        answers = await lanes.ask([(n % 3, wallet_id, hold(i, 7)) for n, i in enumerate(ids)])
        held = [i for i, answer in zip(ids, answers, strict=True) if answer.outcome is Outcome.HELD]
        assert len(held) == 50
        # Every settle is asked of two gateways, as after a crash: each call is charged once.
        asked = [(n % 3, wallet_id, settle(i, 7)) for n, i in enumerate(held)]
        again = [(lane + 1, wallet, op) for lane, wallet, op in asked if lane < 2]
        answers = await lanes.ask(asked + again)
        assert [answer.outcome for answer in answers].count(Outcome.SETTLED) == 50
        assert await ledger.funds(wallet_id) == (6, 0)
        assert lanes.observer.failures == []


async def test_lanes_with_many_wallets_never_deadlock(database_url: str, lanes: Lanes) -> None:
    """https://github.com/BerriAI/litellm/issues/6895: unordered rows, 40P01, and the spend was dropped."""
    async with open_ledger(database_url) as ledger:
        wallets = [await ledger.wallet(1_000) for _ in range(12)]
        for round_ in range(15):
            # Each lane hears of the wallets in another order.
            orders = [wallets, wallets[::-1], wallets[round_ % 12 :] + wallets[: round_ % 12]]
            asked = [(lane, wallet, hold(new_id(), 1)) for lane, order in enumerate(orders) for wallet in order]
            assert {answer.outcome for answer in await lanes.ask(asked)} == {Outcome.HELD}
        assert lanes.observer.failures == []
        assert {await ledger.funds(wallet) for wallet in wallets} == {(1_000, 45)}


async def unsorted_deadlock(track: Track, wallets: list[str], hold_ids: list[str]) -> list[object]:
    """Two statements take two wallets in opposite order, each stopped between the two by a third."""
    low, high, stop_one, stop_two = wallets
    blocker = track.watcher.connection.transaction()
    await blocker.start()
    await track.watcher.apply(stop_one, void(new_id()))
    await track.watcher.apply(stop_two, void(new_id()))
    orders = [(low, stop_one, high), (high, stop_two, low)]
    tasks: list[asyncio.Task[list[list[Answer]]]] = []
    for ledger, order, hold_id in zip((track.first, track.second), orders, hold_ids, strict=True):
        task = asyncio.create_task(ledger.apply_all([(wallet, [hold(hold_id, 1)]) for wallet in order]))
        tasks.append(task)
        await track.wait_until_blocked(ledger, task)
    await blocker.rollback()
    return list(await asyncio.gather(*tasks, return_exceptions=True))


async def test_unsorted_wallets_would_deadlock_and_the_loser_changes_nothing(track: Track) -> None:
    """Why the lane sorts. PostgreSQL ends one of the two; asked again whole, with the same ids, all is well."""
    for ledger in (track.first, track.second):
        await ledger.connection.execute("SET deadlock_timeout = '20ms'")
    wallets, ids = sorted([await track.first.wallet(10) for _ in range(4)]), [new_id(), new_id()]
    results = await unsorted_deadlock(track, wallets, ids)
    [lost] = [number for number, result in enumerate(results) if isinstance(result, asyncpg.DeadlockDetectedError)]
    assert await track.watcher.funds(wallets[0]) == (10, 1) == await track.watcher.funds(wallets[1])
    again = [(wallet, [hold(ids[lost], 1)]) for wallet in wallets[:2]]
    for _ in range(2):
        assert [answers[0].outcome for answers in await track.first.apply_all(again)] == ["held", "held"]
    assert await track.watcher.funds(wallets[0]) == (10, 2) == await track.watcher.funds(wallets[1])


async def test_a_sweep_finds_a_hold_renewed_while_it_waited(track: Track) -> None:
    """The sweeper's list is old by the time it asks; wallet_apply decides, by the database's clock."""
    hold_id = new_id()
    wallet_id, _ = await new_wallet(track.first, "due", hold_id)
    due = await track.second.connection.fetch(queries()["holds_due"], 10)
    assert [str(row["hold_id"]) for row in due] == [hold_id]
    answers = await track.race(wallet_id, checkpoint(hold_id, 5), expire(hold_id), is_committed=True)
    assert [str(answer.outcome) for answer in answers] == ["checkpointed", "hold_not_due"]
    assert await track.second.connection.fetch(queries()["holds_due"], 10) == []
