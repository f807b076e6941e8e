"""Goal: a stop loses nothing and ends well. Method: signals to a gateway with streams in flight."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from gateway.db.embedded import EmbeddedPostgres
from gateway.db.embedded_process import children, live_postmaster
from tests.adversity.witness import Books, Sighting, chat, many_connections
from tests.support.behaviours import Completion
from tests.support.call import Gate
from tests.support.embedded import new_home, postmaster_pid
from tests.support.postgres import ScratchPostgres
from tests.support.processes import GatewayProcess, Gateways, eventually, open_wallet, prepare
from tests.support.upstream import FakeUpstream

STREAMS = 8
STOP_SECONDS = 2.0
CREDIT_NANOS = 10**9


@dataclass(slots=True)
class Scene:
    """A gateway, and streams in flight through it."""

    gateway: GatewayProcess
    upstream: FakeUpstream
    books: Books
    key: str
    session: aiohttp.ClientSession

    def call(self, *, stream: bool) -> "asyncio.Task[Sighting]":
        return asyncio.create_task(chat(self.session, self.gateway.base_url, self.key, stream=stream))

    async def streams(self, how: Completion) -> "list[asyncio.Task[Sighting]]":
        """Streams of which something has been relayed."""
        self.upstream.default = how
        calls = [self.call(stream=True) for _ in range(STREAMS)]
        await self.upstream.received(STREAMS)
        for served in self.upstream.log:
            await served.sent_events(5)
        return calls


@pytest.fixture
async def at(durable: ScratchPostgres) -> AsyncIterator[Scene]:
    dsn = await durable.clone("stop")
    wallet_id, key = await open_wallet(dsn, "1")
    async with (
        FakeUpstream() as upstream,
        Gateways() as gateways,
        Books(dsn, wallet_id, CREDIT_NANOS) as books,
        many_connections() as session,
    ):
        gateway = await gateways.serve(dsn, upstream.base_url, FAREBOX_STOP_SECONDS=str(STOP_SECONDS))
        yield Scene(gateway, upstream, books, key, session)
    await durable.drop("stop")


async def test_streams_that_end_in_time_are_whole(at: Scene) -> None:
    gate = Gate()
    calls = await at.streams(Completion(output_tokens=12, gate=gate, gate_at_event=5))
    at.gateway.send(signal.SIGTERM)
    await at.gateway.answers_ready(503)
    late = await at.call(stream=False)
    assert (late.status, late.error_code, late.retry_after) == (503, "stopping", "2")
    gate.open()
    seen = await asyncio.gather(*calls)
    assert all(sighting.whole for sighting in seen)
    assert await at.gateway.ended(STOP_SECONDS) == 0
    assert at.gateway.errors.count("\n") == 2, at.gateway.errors  # it serves; it is stopping
    await at.books.check(at.upstream.log, seen)


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGTERM, signal.SIGINT]])
async def test_streams_that_do_not_end_are_cut_well_formed_and_settled(
    at: Scene, signals: list[signal.Signals]
) -> None:
    calls = await at.streams(Completion(endless=True, pause_seconds=0.01))
    began = time.monotonic()
    for number in signals:
        at.gateway.send(number)
        await asyncio.sleep(0.1)
    seen = await asyncio.gather(*calls)
    assert await at.gateway.ended() == 0
    assert STOP_SECONDS * 0.7 < time.monotonic() - began < STOP_SECONDS + 1.0
    for sighting in seen:
        error, done, rest = sighting.body.split(b"\n\n")[-3:]
        assert error.startswith(b'data: {"error":'), error
        assert (done, rest, sighting.error_code) == (b"data: [DONE]", b"", "stopping")
    assert await at.books.open_holds() == 0
    events = await at.books.events()
    assert {(event["resolution"], event["basis"], event["reason"]) for event in events} == {
        ("settled", "estimated", "gateway_stopped")
    }
    assert all(event["charged_nanos"] > 0 for event in events)
    await at.books.check(at.upstream.log, seen)


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_a_stop_while_the_ledger_is_away_loses_no_charge(how: str) -> None:
    with new_home() as home:
        server = EmbeddedPostgres(home)
        dsn = await asyncio.to_thread(server.start)
        await prepare(dsn)
        wallet_id, key = await open_wallet(dsn, "1")
        async with (
            FakeUpstream() as upstream,
            Gateways() as gateways,
            Books(dsn, wallet_id, CREDIT_NANOS) as books,
            many_connections() as session,
        ):
            gateway = await gateways.serve(dsn, upstream.base_url, FAREBOX_STOP_SECONDS=str(STOP_SECONDS))
            at = Scene(gateway, upstream, books, key, session)
            calls = await at.streams(Completion(endless=True, pause_seconds=0.01))
            # At once: the gateway has had no time to notice that the ledger is away.
            if how == "killed":
                await asyncio.to_thread(server.kill)
            else:
                pids = [postmaster_pid(home), *children(postmaster_pid(home))]
                send_all(pids, signal.SIGSTOP)
            gateway.send(signal.SIGTERM)
            seen = await asyncio.gather(*calls)
            assert await gateway.ended(STOP_SECONDS + 2.0) == 0
            if how == "killed":
                assert {sighting.error_code for sighting in seen} == {"stopping"}
                await asyncio.to_thread(server.start)
            else:
                # What had been sent to it may be carried out now, and is replayed besides.
                send_all(pids, signal.SIGCONT)
            await gateways.serve(dsn, upstream.base_url)
            await books.resolved(within_seconds=5.0)  # long before the sweep
            assert {event["reason"] for event in await books.events()} == {"gateway_stopped"}
            await books.check(upstream.log, seen)
        server.stop()


def send_all(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)


@pytest.mark.parametrize(("impatient", "workers"), [(False, "1"), (True, "1"), (True, "2")])
async def test_ctrl_c_leaves_no_postgres(upstream: FakeUpstream, impatient: bool, workers: str) -> None:
    async with Gateways() as gateways:
        gateway = await gateways.serve(None, upstream.base_url, FAREBOX_WORKERS=workers)
        cluster = gateways.data_directory / "postgres" / "cluster"
        server = live_postmaster(cluster)
        assert server is not None
        gateway.interrupt()

        async def ended() -> bool:
            if impatient and gateway.process.poll() is None:
                gateway.interrupt()
                gateway.send(signal.SIGTERM)
            return gateway.process.poll() is not None

        await eventually(ended, within_seconds=10.0)
        assert gateway.process.returncode == 0
        assert live_postmaster(cluster) is None
        assert not Path(f"/proc/{server.pid}").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_in_a_start_leaves_no_postgres(upstream: FakeUpstream, number: signal.Signals) -> None:
    async with Gateways() as gateways:
        environment = {"FAREBOX_UPSTREAM_BASE_URL": upstream.base_url}
        cluster = gateways.data_directory / "postgres" / "cluster"
        gateway = gateways.start("serve", environment)
        await eventually(lambda: cluster.exists() and live_postmaster(cluster) is not None)
        gateway.send(number)
        # Mostly it is still starting; a slow signal finds it serving, and is a stop like any other.
        assert await gateway.ended(10.0) in {0, 130}
        assert live_postmaster(cluster) is None
        assert "Traceback" not in gateway.errors
