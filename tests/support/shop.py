"""One gateway that many tests share, since making one takes longer than most tests.

Each test gets a wallet of its own, an empty upstream log, and counters that begin at zero.
"""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from multidict import CIMultiDictProxy

from gateway.metrics import Metrics
from tests.support.behaviours import Behaviour, Completion
from tests.support.call import WAIT_SECONDS_MAX
from tests.support.gateway import MODEL, Farebox, farebox, make_wallet
from tests.support.ledger_check import check_invariants
from tests.support.postgres import ScratchPostgres
from tests.support.upstream import FakeUpstream

CREDIT_NANOS = 100 * 10**9
ENDPOINT = "chat.completions"
FORMS: Mapping[str, dict[str, Any]] = {"json": {}, "stream": {"stream": True}}
both_forms = pytest.mark.parametrize("form", FORMS)
# The default call: the fake counts 10 tokens in and 20 out, at 1 and 4 nanos.
EXACT = 10 + 4 * 20
# Its body in quarters.
PROMPT_ESTIMATE = {"json": 20, "stream": 23}
DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Shop:
    """A gateway before one upstream, seen by one test."""

    farebox: Farebox
    upstream: FakeUpstream
    dsn: str
    before: dict[tuple[str, frozenset[tuple[str, str]]], float]

    def chat(self, **members: Any) -> Any:
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

    async def call(
        self, form: str, behaviour: Behaviour, **members: object
    ) -> tuple[int, CIMultiDictProxy[str], bytes]:
        """One whole exchange: status, headers and body."""
        self.upstream.next(behaviour)
        async with self.chat(**FORMS[form], **members) as response:
            return response.status, response.headers, await response.read()

    async def resolved(
        self,
        charge: int,
        basis: str,
        reason: str | None,
        label: str,
        *,
        endpoint: str = ENDPOINT,
        model: str = MODEL,
    ) -> dict[str, Any]:
        """The one call of this test was resolved so, once, and every book and counter says the same."""
        event = await self.event()
        assert (event["cost_nanos"], event["charged_nanos"], event["shortfall_nanos"]) == (charge, charge, 0)
        assert (event["basis"], event["reason"]) == (basis, reason)
        assert event["resolution"] == ("voided" if basis == "none" else "settled")
        assert event["endpoint"] == endpoint
        wallet = await self.farebox.wallet()
        assert (wallet["balance_nanos"], wallet["held_nanos"]) == (CREDIT_NANOS - charge, 0)
        labels = {"endpoint": endpoint, "model": model, "outcome": label, "basis": basis}
        assert self.count("farebox_calls_total", **labels) == 1
        assert self.count("farebox_charged_nanos_total", model=model) == charge
        if basis == "estimated":
            assert reason is not None
            assert self.count("farebox_estimates_total", reason=reason) == 1
        return event

    async def presume_dead(self) -> None:
        """Whoever holds money of this test's wallet seems to have died an hour ago, and the sweep looks."""
        connection = await asyncpg.connect(self.dsn)
        try:
            renewed = "UPDATE holds SET renewed_at = now() - interval '1 hour' WHERE wallet_id = $1"
            await connection.execute(renewed, self.farebox.wallet_id)
        finally:
            await connection.close()
        await self.farebox.app.sweep.run_once()

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
    await until(lambda: running.app.gateway.unsettled == 0)


async def connected(running: Farebox) -> None:
    """Wait until the lane has its connection: on a busy machine that may take longer than a test lets a call wait."""
    await until(lambda: running.app.lane._connection is not None)


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
async def open_shop(
    scratch: ScratchPostgres, name: str, *, urls: Sequence[str] = (), **settings: Any
) -> AsyncIterator[Shop]:
    """A gateway on a database of its own, for as many tests as like to share it. `urls`: upstreams before the fake."""
    dsn = await scratch.clone(name)
    try:
        async with FakeUpstream() as upstream, farebox(dsn, [*urls, upstream.base_url], **settings) as running:
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
