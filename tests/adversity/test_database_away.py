"""Goal: promise 8, fail closed and lose nothing. Method: take PostgreSQL away in the middle of streams, let them end,
bring it back, and compare the ledger with the upstream's log."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import pytest

from gateway.db.embedded import EmbeddedPostgres
from tests.adversity.witness import Books, Sighting, chat, many_connections
from tests.support.behaviours import Choose, Completion
from tests.support.call import Gate
from tests.support.embedded import new_home
from tests.support.processes import GatewayProcess, Gateways, eventually, open_wallet, prepare
from tests.support.upstream import FakeUpstream

STREAMS, BODIES = 20, 5
OUTAGE_SECONDS = float(os.environ.get("FAREBOX_OUTAGE_SECONDS", "3"))
OUTAGE_STREAMS = int(os.environ.get("FAREBOX_OUTAGE_STREAMS", "20"))
CREDIT, CREDIT_NANOS = "10", 10 * 10**9
# A caller is told soon that the ledger is away; the sweep does its worst as soon as it is back.
SETTINGS = {"FAREBOX_LANE_WAIT_SECONDS": "0.5", "FAREBOX_SWEEP_SECONDS": "0.25"}

Stop = Callable[[EmbeddedPostgres], None]
STOPS: dict[str, Stop] = {"stopped": EmbeddedPostgres.stop, "killed": EmbeddedPostgres.kill}


@pytest.fixture
def server() -> Iterator[EmbeddedPostgres]:
    with new_home() as home:
        server = EmbeddedPostgres(home)
        yield server
        server.stop()


@dataclass(slots=True)
class Scene:
    """A gateway with calls in flight, each held back in the middle of its reply until the gate opens."""

    server: EmbeddedPostgres
    dsn: str
    key: str
    upstream: FakeUpstream
    gate: Gate
    gateways: Gateways
    gateway: GatewayProcess
    books: Books
    session: aiohttp.ClientSession

    def call(self, *, stream: bool = False) -> "asyncio.Task[Sighting]":
        return asyncio.create_task(chat(self.session, self.gateway.base_url, self.key, stream=stream))

    async def calls_in_flight(self) -> "list[asyncio.Task[Sighting]]":
        """Streams of which a part has been relayed, and bodies that are awaited."""
        calls = [self.call(stream=True) for _ in range(STREAMS)] + [self.call() for _ in range(BODIES)]
        await self.upstream.received(len(calls))
        for served in self.upstream.log:
            if served.asked is not None and served.asked.stream:
                await served.sent_events(4)
        return calls

    async def take_away(self, how: str) -> None:
        """Take PostgreSQL away, and wait until the gateway says so."""
        await asyncio.to_thread(STOPS[how], self.server)
        await self.gateway.answers_ready(503)
        refused = await self.call()
        assert (refused.status, refused.error_code, refused.retry_after) == (503, "ledger_unavailable", "2")

    async def end_all(self, calls: "list[asyncio.Task[Sighting]]") -> list[Sighting]:
        """Let every reply end while the ledger is away; each client has all of it."""
        self.gate.open()
        seen = await asyncio.gather(*calls)
        assert all(sighting.whole for sighting in seen)
        assert await self.gateway.metric("farebox_journal_records") == len(calls)
        return seen

    async def bring_back(self) -> None:
        assert await asyncio.to_thread(self.server.start) == self.dsn

    async def next_gateway(self, **settings: str) -> None:
        """Another process on the same data directory."""
        self.gateway = await self.gateways.serve(self.dsn, self.upstream.base_url, **SETTINGS | settings)

    def journals(self) -> list[int]:
        """Bytes in each journal file."""
        return [path.stat().st_size for path in self.gateways.data_directory.glob("journal/*")]


@asynccontextmanager
async def scene(
    server: EmbeddedPostgres, *, streamed: Completion | None = None, **settings: str
) -> AsyncIterator[Scene]:
    dsn = await asyncio.to_thread(server.start)
    await prepare(dsn)
    wallet_id, key = await open_wallet(dsn, CREDIT)
    gate = Gate()
    streamed = streamed or Completion(output_tokens=12, gate=gate, gate_at_event=4)
    whole = Completion(output_tokens=7, gate=gate)
    async with (
        FakeUpstream(Choose(lambda asked: streamed if asked.stream else whole)) as upstream,
        Gateways() as gateways,
        Books(dsn, wallet_id, CREDIT_NANOS) as books,
        many_connections() as session,
    ):
        gateway = await gateways.serve(dsn, upstream.base_url, **SETTINGS | settings)
        yield Scene(server, dsn, key, upstream, gate, gateways, gateway, books, session)


@pytest.mark.parametrize("how", STOPS)
async def test_calls_in_flight_end_and_are_charged_when_the_ledger_is_back(server: EmbeddedPostgres, how: str) -> None:
    async with scene(server) as at:
        calls = await at.calls_in_flight()
        await at.take_away(how)
        seen = await at.end_all(calls)
        assert len(at.upstream.log) == len(calls)  # what was refused was not served
        await at.bring_back()
        await at.gateway.answers_ready(200)
        await at.books.resolved()
        await at.books.check(at.upstream.log, seen)
        await eventually(lambda: at.journals() == [0])
        after = await at.call()
        await at.books.check(at.upstream.log, [*seen, after])


async def test_a_gateway_killed_with_a_full_journal_leaves_it_to_the_next(server: EmbeddedPostgres) -> None:
    # Held for two seconds only: the sweep of the next gateway and its replay go for the same holds.
    async with scene(server, FAREBOX_HOLD_VALID_SECONDS="2") as at:
        calls = await at.calls_in_flight()
        await at.take_away("killed")
        seen = await at.end_all(calls)
        await at.gateway.kill()
        assert sum(at.journals()) > 0
        await asyncio.sleep(3.0)
        await at.bring_back()
        await at.next_gateway()
        await at.books.resolved()
        await eventually(lambda: at.journals() == [0])
        await at.books.check(at.upstream.log, seen)


async def test_new_calls_are_told_so_as_long_as_the_ledger_is_away_and_every_stream_completes(
    server: EmbeddedPostgres,
) -> None:
    """With FAREBOX_OUTAGE_SECONDS=60 and FAREBOX_OUTAGE_STREAMS=100 the long form of the promise."""
    # The streams run on through most of the outage, and end, a few at a time, before it does.
    events = 40
    streamed = Completion(output_tokens=events, pause_seconds=OUTAGE_SECONDS / events * 0.6)
    async with scene(server, streamed=streamed, FAREBOX_HOLD_VALID_SECONDS="600") as at:
        streams = [at.call(stream=True) for _ in range(OUTAGE_STREAMS)]
        await at.upstream.received(len(streams))
        for served in at.upstream.log:
            await served.sent_events(2)
        await at.take_away("killed")
        began = time.monotonic()
        refused = []
        while time.monotonic() - began < OUTAGE_SECONDS:
            refused.append(await at.call())
            await asyncio.sleep(0.1)
        assert {(one.status, one.error_code, one.retry_after) for one in refused} == {(503, "ledger_unavailable", "2")}
        assert all(stream.done() for stream in streams)
        await at.bring_back()
        await at.gateway.answers_ready(200)
        await at.books.resolved()
        seen = [stream.result() for stream in streams]
        assert all(sighting.whole for sighting in seen)
        assert len(at.upstream.log) == OUTAGE_STREAMS
        at.gate.open()
        seen.append(await at.call())
        await at.books.check(at.upstream.log, seen)
        assert len([event for event in await at.books.events() if event["charged_nanos"]]) == OUTAGE_STREAMS + 1
