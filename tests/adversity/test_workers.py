"""Goal: `serve --workers 3` is one gateway, whatever happens to its processes. Method: real ones, under load, killed,
stopped, frozen and replaced; the upstream's log is the oracle."""

import asyncio
import os
import re
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import pytest_asyncio

from gateway.db import keys
from gateway.db.pool import Database
from tests.adversity.witness import many_connections
from tests.support.behaviours import Completion
from tests.support.call import Gate
from tests.support.crew import CALLS, CHARGED, CREDIT_NANOS, Crew, alive, crew_of, with_a_wallet
from tests.support.postgres import ScratchPostgres
from tests.support.processes import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

WORKERS = 3
SCRAPE_SECONDS_MAX = 2.0
REVOKED_EVERYWHERE_SECONDS_MAX = 1.0
RESTARTS = "farebox_worker_restarts_total"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_crew(durable: ScratchPostgres) -> AsyncIterator[Crew]:
    async with crew_of(durable, "workers", count=WORKERS) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def crew(shared_crew: Crew) -> AsyncIterator[Crew]:
    async with with_a_wallet(shared_crew) as running:
        yield running


async def test_a_worker_killed_under_load_costs_its_own_calls_only_and_comes_back(crew: Crew) -> None:
    clients = 9
    counted = [await crew.gateway.metric(CALLS)]
    restarts = await crew.gateway.metric(RESTARTS)
    async with crew.load(clients):
        await asyncio.sleep(0.5)
        victim = crew.gateway.workers[1]
        os.kill(victim, signal.SIGKILL)
        began = time.monotonic()
        while time.monotonic() - began < 2.0:
            counted.append(await crew.gateway.metric(CALLS))
        await crew.all_serve()
        assert victim not in crew.gateway.workers
        assert (await crew.gateway.get("/readyz"))[0] == 200
    assert counted == sorted(counted)
    assert sum(not seen.whole for seen in crew.seen) < clients, "only the calls of the dead worker may be lost"
    assert sum(seen.whole for seen in crew.seen) > clients
    assert await crew.gateway.metric(RESTARTS) == restarts + 1
    await crew.check()
    assert {event["reason"] for event in await crew.books.events()} <= {None, "swept"}


async def test_metrics_add_up_and_a_revoked_key_is_refused_by_all(crew: Crew) -> None:
    calls, charged = await crew.gateway.metric(CALLS), await crew.gateway.metric(CHARGED)
    async with many_connections() as session:
        assert all(seen.whole for seen in await crew.chats(session, 45))
        assert await crew.gateway.metric(CALLS) == calls + 45
        victim = crew.gateway.workers[-1]
        os.kill(victim, signal.SIGKILL)
        await eventually(lambda: victim not in crew.gateway.workers)
        await crew.all_serve()
        assert await crew.gateway.metric(CALLS) == calls + 45
    async with many_connections() as session:
        assert all(seen.whole for seen in await crew.chats(session, 45))
        assert await crew.gateway.metric(CALLS) == calls + 90
        paid = CREDIT_NANOS - (await crew.books.wallet())["balance_nanos"]
        assert await crew.gateway.metric(CHARGED) == charged + paid
        # The connections are kept: 45 calls at once go to all workers again, which have the key in their caches.
        await revoke(crew)

        async def all_refuse() -> bool:
            return {seen.status for seen in await crew.chats(session, 45)} == {401}

        assert await eventually(all_refuse) < REVOKED_EVERYWHERE_SECONDS_MAX


async def revoke(crew: Crew) -> None:
    database = Database(crew.dsn)
    try:
        row = await keys.by_hash(database, keys.hash_key(crew.key))
        assert row is not None
        assert await keys.revoke(database, str(row["key_id"]))
    finally:
        await database.close()


async def test_a_frozen_worker_is_named_and_holds_nobody_up(crew: Crew) -> None:
    async with many_connections() as session:
        await crew.chats(session, 30)
    calls = await crew.gateway.metric(CALLS)
    number, lead = await leader(crew)
    os.kill(lead, signal.SIGSTOP)
    try:
        await eventually(lambda: crew_is(crew, "stuck", 1))
        began = time.monotonic()
        _, text = await crew.gateway.get("/metrics")
        assert time.monotonic() - began < SCRAPE_SECONDS_MAX
        assert f'farebox_worker_up{{worker="{number}"}} 0.0' in text
        assert await crew.gateway.metric(CALLS) == calls
        status, health = await crew.gateway.get("/healthz")
        assert (status, f"2 of 3 are ready; {number}: worker does not answer" in health) == (503, True)
        assert (await crew.gateway.get("/readyz"))[0] == 200
        async with many_connections() as session:
            assert all(seen.whole for seen in await crew.chats(session, 30))
        # It was the one that swept: another does so now.
        swept = await last_sweep(crew)
        await eventually(lambda: sweeps_after(crew, swept))
    finally:
        os.kill(lead, signal.SIGCONT)
    await crew.all_serve()
    assert await crew.gateway.metric(CALLS) == calls + 30
    await crew.check()


async def leader(crew: Crew) -> tuple[str, int]:
    """(number, process id) of the worker that leads."""
    _, health = await crew.gateway.get("/healthz")
    found = re.search(r"worker (\d+) \(process (\d+)\)", health)
    assert found, health
    return found[1], int(found[2])


async def crew_is(crew: Crew, state: str, count: int) -> bool:
    return await crew.state(state) == count


async def last_sweep(crew: Crew) -> float:
    _, text = await crew.gateway.get("/metrics")
    found = re.search(r'^farebox_upkeep_last_success_seconds{service="sweep"} (\S+)$', text, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def sweeps_after(crew: Crew, moment: float) -> bool:
    return await last_sweep(crew) > moment


@pytest.mark.parametrize("impatient", [False, True])
async def test_a_stop_drains_every_worker_and_a_second_one_ends_calls_at_once(
    durable: ScratchPostgres, impatient: bool
) -> None:
    async with (
        crew_of(durable, "stopped", STOP_SECONDS="20") as started,
        with_a_wallet(started) as crew,
        many_connections() as session,
    ):
        gate = Gate()
        crew.upstream.default = Completion(output_tokens=12, gate=gate, gate_at_event=5)
        calls = await crew.streams(session, 9)
        workers = crew.gateway.workers
        crew.gateway.interrupt()  # as Ctrl-C does: the whole group hears it
        await crew.gateway.answers_ready(503)
        (late,) = await crew.chats(session, 1)
        assert (late.status, late.error_code, late.retry_after) == (503, "stopping", "2")
        began = time.monotonic()
        if impatient:
            crew.gateway.interrupt()
        else:
            gate.open()
        crew.seen += await asyncio.gather(*calls)
        assert await crew.gateway.ended(5.0) == 0
        assert time.monotonic() - began < 5.0
        assert not any(map(alive, workers))
        assert crew.gateway.errors.splitlines()[1:] == ["farebox is stopping: calls in flight may end"]
        if impatient:
            assert {seen.error_code for seen in crew.seen} == {"stopping"}
            assert {event["reason"] for event in await crew.books.events()} == {"gateway_stopped"}
        else:
            assert sum(seen.whole for seen in crew.seen) == 9
        assert await crew.books.open_holds() == 0
        await crew.check()


async def test_a_supervisor_that_is_killed_leaves_no_process_and_loses_no_call(durable: ScratchPostgres) -> None:
    async with crew_of(durable, "orphans") as started, with_a_wallet(started) as crew:
        gate = Gate()
        crew.upstream.default = Completion(output_tokens=12, gate=gate, gate_at_event=5)
        workers = crew.gateway.workers
        async with many_connections() as session:
            calls = await crew.streams(session, 9)
            await crew.gateway.kill()

            def port_is_free() -> bool:
                with suppress(OSError), socket.create_server(("127.0.0.1", crew.gateway.port)):
                    return True
                return False

            # Before the calls have ended: a new supervisor need not wait for them.
            await eventually(port_is_free, within_seconds=1.0)
            assert all(map(alive, workers))
            gate.open()
            crew.seen += await asyncio.gather(*calls)
        assert all(seen.whole for seen in crew.seen)
        await eventually(lambda: not any(map(alive, workers)))
        await crew.check()
