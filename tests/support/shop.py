"""One gateway that many tests share, since making one takes longer than most tests.

Each test gets a wallet of its own, an empty upstream log, and counters that begin at zero.
"""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from gateway.metrics import Metrics
from tests.support.behaviours import Completion
from tests.support.call import WAIT_SECONDS_MAX
from tests.support.gateway import Farebox, farebox, make_wallet
from tests.support.ledger_check import check_invariants
from tests.support.postgres import ScratchPostgres
from tests.support.upstream import FakeUpstream

CREDIT_NANOS = 100 * 10**9
ENDPOINT = "chat.completions"


@dataclass(slots=True)
class Shop:
    """A gateway before one upstream, seen by one test."""

    farebox: Farebox
    upstream: FakeUpstream
    dsn: str
    before: dict[tuple[str, frozenset[tuple[str, str]]], float]

    def chat(self, **members: object) -> Any:
        """A chat call by this test's wallet."""
        return self.farebox.chat(**members)

    def count(self, name: str, **labels: str) -> float:
        """How much a counter or a gauge has grown in this test; 0 if it does not exist."""
        key = (name, frozenset(labels.items()))
        return _samples(self.farebox.app.metrics).get(key, 0.0) - self.before.get(key, 0.0)

    async def event(self) -> dict[str, Any]:
        """The usage event of this test's one call, once it is resolved."""
        await settled(self.farebox)
        events = await self.farebox.usage()
        assert len(events) == 1, f"one call has {len(events)} events"
        return events[0]

    async def untouched(self) -> None:
        """Nothing was sent upstream, nothing held, nothing charged."""
        assert not self.upstream.log
        assert await self.farebox.usage() == []
        wallet = await self.farebox.wallet()
        assert (wallet["balance_nanos"], wallet["held_nanos"], wallet["entry_seq"]) == (CREDIT_NANOS, 0, 1)
        assert await self.farebox.open_holds() == 0


async def until(condition: Callable[[], bool]) -> None:
    """Wait for `condition`. Raises TimeoutError."""
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while not condition():
            await asyncio.sleep(0.005)


async def settled(running: Farebox) -> None:
    """Wait until no call of this gateway holds money."""
    registry = running.app.metrics.registry
    await until(lambda: registry.get_sample_value("farebox_unsettled_calls") == 0)


async def client_noticed_gone(shop: Farebox) -> None:
    """Wait until the gateway knows that a client has left."""
    await until(lambda: any(call.is_client_gone for call in shop.app.watch._calls))


def _samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
    }


@asynccontextmanager
async def open_shop(scratch: ScratchPostgres, name: str, **settings: Any) -> AsyncIterator[Shop]:
    """A gateway on a database of its own, for as many tests as like to share it."""
    dsn = await scratch.clone(name)
    try:
        async with FakeUpstream() as upstream, farebox(dsn, [upstream.base_url], **settings) as running:
            yield Shop(running, upstream, dsn, {})
    finally:
        await scratch.drop(name)


@asynccontextmanager
async def visit(shop: Shop) -> AsyncIterator[Shop]:
    """The shop for one test. After it every invariant must hold, and nothing may be held."""
    upstream = shop.upstream
    upstream.log.clear()
    upstream._script.clear()
    upstream.default = Completion()
    wallet_id, key = await make_wallet(shop.farebox.app.database, "100")
    mine = dataclasses.replace(shop.farebox, wallet_id=wallet_id, key=key)
    yield Shop(mine, upstream, shop.dsn, _samples(shop.farebox.app.metrics))
    await settled(shop.farebox)
    assert await shop.farebox.open_holds() == 0
    await check_invariants(shop.dsn)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def open_all_day(scratch: ScratchPostgres, request: pytest.FixtureRequest) -> AsyncIterator[Shop]:
    """The gateway itself; a test asks for `shop`."""
    async with open_shop(scratch, request.node.path.stem) as shop:
        yield shop


@pytest_asyncio.fixture(loop_scope="module")
async def shop(open_all_day: Shop) -> AsyncIterator[Shop]:
    """The shared gateway with a wallet, a log and counters for this test alone. The test runs on the module's loop."""
    async with visit(open_all_day) as mine:
        yield mine
