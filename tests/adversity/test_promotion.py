"""Goal: promise 2 across a failover. Method: kill -9 the primary while two gateways hold and settle under load, promote
its synchronous standby, let everything go on, and compare the new primary's ledger with the upstream's log."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import aiohttp
import pytest

from tests.adversity.witness import Books, Sighting, chat, many_connections
from tests.support.behaviours import Choose, Completion
from tests.support.call import Gate
from tests.support.cluster import Cluster, Node
from tests.support.processes import GatewayProcess, Gateways, eventually, open_wallet, prepare
from tests.support.upstream import FakeUpstream

STREAMS = int(os.environ.get("FAREBOX_PROMOTION_STREAMS", "20"))
CALLERS = 4
CREDIT, CREDIT_NANOS = "100", 100 * 10**9
SETTINGS = {
    "FAREBOX_LANE_WAIT_SECONDS": "0.5",
    "FAREBOX_LANE_STATEMENT_SECONDS": "1.5",
    "FAREBOX_SWEEP_SECONDS": "0.5",
}
FAULTS: dict[str, Callable[[Node], None]] = {"killed": Node.kill, "frozen": Node.freeze}
# A promotion takes PostgreSQL less than a second; the rest is a slow machine.
BACK_WITHIN_SECONDS = 15.0


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster() as running:
        yield running


@dataclass(slots=True)
class Load:
    """Streams that stand before a gate, and callers that never cease; `seen` is what they saw."""

    wallet_id: str
    key: str
    gateways: list[GatewayProcess]
    upstream: FakeUpstream
    gate: Gate
    session: aiohttp.ClientSession
    seen: list[Sighting] = field(default_factory=list)
    is_over: bool = False

    async def stream(self, number: int) -> None:
        gateway = self.gateways[number % len(self.gateways)]
        self.seen.append(await chat(self.session, gateway.base_url, self.key, stream=True))

    async def call_on(self, number: int) -> None:
        """Calls one after the other until the load is over."""
        gateway = self.gateways[number % len(self.gateways)]
        while not self.is_over:
            sighting = await chat(self.session, gateway.base_url, self.key)
            self.seen.append(sighting)
            if sighting.status == 503:
                assert (sighting.error_code, sighting.retry_after) == ("ledger_unavailable", "2")
                await asyncio.sleep(0.05)
            else:
                assert sighting.status == 200, sighting.body

    def whole(self) -> int:
        return sum(sighting.whole for sighting in self.seen)


async def has_replayed(gateway: GatewayProcess) -> bool:
    return await gateway.metric("farebox_journal_records") == 0


@asynccontextmanager
async def load_on(dsn: str) -> AsyncIterator[Load]:
    await prepare(dsn)
    wallet_id, key = await open_wallet(dsn, CREDIT)
    gate = Gate()
    streamed = Completion(output_tokens=12, gate=gate, gate_at_event=4)
    quick = Completion(output_tokens=7)
    async with (
        FakeUpstream(Choose(lambda asked: streamed if asked.stream else quick)) as upstream,
        Gateways() as gateways,
        many_connections() as session,
    ):
        started = [await gateways.serve(dsn, upstream.base_url, **SETTINGS) for _ in range(2)]
        yield Load(wallet_id, key, started, upstream, gate, session)


@pytest.mark.parametrize("how", FAULTS)
async def test_a_standby_promoted_under_load_has_every_charge_that_was_acknowledged(cluster: Cluster, how: str) -> None:
    dsn = cluster.multihost_dsn
    async with load_on(dsn) as load:
        streams = [asyncio.create_task(load.stream(number)) for number in range(STREAMS)]
        callers = [asyncio.create_task(load.call_on(number)) for number in range(CALLERS)]
        await load.upstream.received(STREAMS + CALLERS)
        await eventually(lambda: load.whole() >= 10)
        # In the moment in which every stream asks for its settle.
        load.gate.open()
        former = cluster.primary
        await asyncio.to_thread(FAULTS[how], former)
        before = load.whole()
        await asyncio.to_thread(cluster.promote)
        for gateway in load.gateways:
            await gateway.answers_ready(200, within_seconds=BACK_WITHIN_SECONDS)
        await eventually(lambda: load.whole() >= before + STREAMS // 2)
        await asyncio.gather(*streams)
        # Whoever still hears of the former primary, should it live, must not take its word: its commits wait for ever.
        former.thaw()
        after = load.whole()
        await eventually(lambda: load.whole() >= after + STREAMS // 2)
        load.is_over = True
        await asyncio.gather(*callers)
        for gateway in load.gateways:
            await eventually(partial(has_replayed, gateway))
        assert {sighting.status for sighting in load.seen} <= {200, 503}
        assert all(sighting.whole for sighting in load.seen if sighting.status == 200)
        async with Books(cluster.dsn, load.wallet_id, CREDIT_NANOS) as books:
            await books.resolved()
            await books.check(load.upstream.log, load.seen)
