"""Races that are forced, not hoped for: one connection has decided and not committed, the other waits for it."""

import asyncio
import copy
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from gateway.clock import new_id
from gateway.db.lanes import Answer, Outcome
from tests.support.ledger_model import ModelWallet, Told
from tests.support.ledger_operations import Ledger, Op, hold, open_ledger

WAIT_SECONDS_MAX = 10.0


@dataclass(slots=True)
class Track:
    """Two connections that race, and one that watches them."""

    first: Ledger
    second: Ledger
    watcher: Ledger

    async def race(self, wallet_id: str, one: Op, two: Op, *, is_committed: bool) -> tuple[Answer, Answer]:
        """`two` is asked while `one` is decided but not committed; then `one` is committed, or rolled back."""
        change = self.first.connection.transaction()
        await change.start()
        answer = await self.first.one(wallet_id, one)
        other = asyncio.create_task(self.second.one(wallet_id, two))
        await self.wait_until_blocked(self.second, other)
        await (change.commit() if is_committed else change.rollback())
        return answer, await other

    async def wait_until_blocked(self, ledger: Ledger, task: "asyncio.Task[object]") -> None:
        """Until `ledger`'s statement waits for a lock. Fails if it ended without waiting."""
        pid = ledger.connection.get_server_pid()
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while not await self.watcher.connection.fetchval("SELECT cardinality(pg_blocking_pids($1)) > 0", pid):
                assert not task.done(), f"it did not wait: {task.result()}"
                await asyncio.sleep(0.001)


@asynccontextmanager
async def open_track(dsn: str) -> AsyncIterator[Track]:
    """A Track on a database."""
    async with open_ledger(dsn) as first, open_ledger(dsn) as second, open_ledger(dsn) as watcher:
        yield Track(first, second, watcher)


def serial(model: ModelWallet, one: Op, two: Op, *, is_committed: bool) -> tuple[Told, Told]:
    """What both are told one after the other, the first undone if it is not committed. Changes `model`."""
    undone = copy.deepcopy(model).apply(one)
    told = model.apply(one) if is_committed else undone
    return told, model.apply(two)


def told(answer: Answer) -> Told:
    """An answer as the model gives it."""
    return str(answer.outcome), answer.amount_nanos, answer.shortfall_nanos, answer.available_nanos


async def holds_at_once(dsn: str, wallet_id: str, *, connections: int, count: int, nanos: int) -> int:
    """How many of `count` holds were granted, asked from several connections, a statement each."""

    async def ask(number: int) -> list[Outcome]:
        async with open_ledger(dsn) as ledger:
            wanted = range(number, count, connections)
            return [(await ledger.one(wallet_id, hold(new_id(), nanos))).outcome for _ in wanted]

    outcomes: Sequence[list[Outcome]] = await asyncio.gather(*map(ask, range(connections)))
    answers = [outcome for asked in outcomes for outcome in asked]
    assert len(answers) == count
    assert set(answers) <= {Outcome.HELD, Outcome.INSUFFICIENT_FUNDS}
    return answers.count(Outcome.HELD)
