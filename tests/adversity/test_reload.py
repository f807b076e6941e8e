"""Goal: a new configuration takes effect everywhere, drops no call, and a bad one changes nothing. Method: SIGHUP to a
supervisor under load, and to a single gateway."""

import asyncio
import re
import signal
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

import pytest
import pytest_asyncio

from gateway.core.catalogue import Meter
from gateway.db import prices
from gateway.db.pool import Database
from tests.adversity.witness import many_connections
from tests.support.behaviours import Completion
from tests.support.crew import CALLS, CHARGED, PACED, Crew, alive, configuration, crew_of, with_a_wallet
from tests.support.gateway import MODEL, RATES
from tests.support.postgres import ScratchPostgres
from tests.support.processes import eventually
from tests.support.upstream import FakeUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_crew(durable: ScratchPostgres) -> AsyncIterator[Crew]:
    async with crew_of(durable, "reload") as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def crew(shared_crew: Crew) -> AsyncIterator[Crew]:
    async with with_a_wallet(shared_crew) as running:
        yield running


def no_toml(crew: Crew) -> None:
    crew.config.write_text("port = [\n")


def unknown(crew: Crew) -> None:
    crew.config.write_text("prot = 1\nbody_seconds = 0\n")


def no_upstream(crew: Crew) -> None:
    crew.config.write_text("")


def no_journal(crew: Crew) -> None:
    crew.config.write_text(configuration(crew.upstream, "stop_seconds = 3.0"))
    journal = crew.gateways.data_directory / "journal"
    journal.rename(journal.with_name("aside"))
    journal.write_text("in the way")


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (no_toml, r"{config}: .*"),
        (unknown, r"body_seconds: .*; prot: unknown setting"),
        (no_upstream, r"no upstream is configured: .*"),
        (no_journal, r"a worker could not start with it \(exit code 2\)"),
    ],
)
async def test_a_bad_configuration_is_one_line_and_the_old_one_goes_on(
    crew: Crew, spoil: Callable[[Crew], None], line: str
) -> None:
    workers, before = crew.gateway.workers, len(crew.gateway.errors)
    good = crew.config.read_text()
    spoil(crew)
    try:
        crew.gateway.send(signal.SIGHUP)
        refused = "farebox: the configuration was not reloaded: "
        await eventually(lambda: "goes on\n" in crew.gateway.errors[before:])
        (said,) = [said for said in crew.gateway.errors[before:].splitlines() if said.startswith(refused)]
        assert re.fullmatch(line.format(config=crew.config) + "; the one in force goes on", said.removeprefix(refused))
        assert crew.gateway.workers == workers
        if spoil is not no_journal:  # without which no call is taken, whatever the configuration
            async with many_connections() as session:
                assert all(seen.whole for seen in await crew.chats(session, 9))
            await crew.check()
    finally:
        crew.config.write_text(good)
        if spoil is no_journal:
            journal = crew.gateways.data_directory / "journal"
            journal.unlink()
            journal.with_name("aside").rename(journal)
            await eventually(lambda: is_well(crew))


async def is_well(crew: Crew) -> bool:
    return (await crew.gateway.get("/healthz"))[0] == 200


async def test_a_new_configuration_takes_effect_in_all_workers_and_drops_no_call(crew: Crew) -> None:
    calls = await crew.gateway.metric(CALLS)
    # Longer than a replacement takes: the workers that are replaced carry them to their ends.
    crew.upstream.next(*(Completion(output_tokens=50, pause_seconds=0.1) for _ in range(6)))
    async with FakeUpstream(PACED) as other, many_connections() as early, many_connections() as late:
        long_ones = await crew.streams(early, 6)
        former = crew.gateway.workers
        async with crew.load(6) as seen:
            crew.config.write_text(configuration(other, f'aliases = {{ best = "{MODEL}" }}'))
            crew.gateway.send(signal.SIGHUP)
            await eventually(lambda: "has reloaded its configuration\n" in crew.gateway.errors)
            await crew.all_serve()
        assert all(sighting.whole for sighting in seen)
        assert len(seen) > len(other.log) > 0
        before = len(crew.upstream.log)
        assert all(sighting.whole for sighting in await crew.chats(late, 30, model="best"))
        assert len(crew.upstream.log) == before, "every worker knows the alias, and asks the new upstream"
        crew.seen += await asyncio.gather(*long_ones)
        assert all(sighting.whole for sighting in crew.seen)
        await early.close()
        await eventually(lambda: not any(map(alive, former)))
        assert await crew.gateway.metric(CALLS) == calls + len(crew.upstream.log) + len(other.log)
        await crew.check(crew.upstream.log, other.log)
        # A price needs no signal.
        charged = await crew.gateway.metric(CHARGED)
        await dearer(crew)
        await asyncio.sleep(0.5)
        other.log.clear()
        await crew.chats(late, 30)
        owed = sum(served.prompt_tokens + 8 * served.completion_tokens for served in other.log)
        assert await crew.gateway.metric(CHARGED) == charged + owed


async def dearer(crew: Crew) -> None:
    database = Database(crew.dsn)
    try:
        rates = {**RATES, Meter.OUTPUT: 8_000}
        await prices.add_prices(database, [prices.PriceVersion(MODEL, datetime.now(UTC), rates, (), "test")])
    finally:
        await database.close()


async def test_a_single_gateway_takes_over_what_it_can(durable: ScratchPostgres) -> None:
    async with crew_of(durable, "single", count=1) as started, with_a_wallet(started) as crew:
        crew.upstream.next(Completion(output_tokens=20, pause_seconds=0.05))
        async with FakeUpstream(PACED) as other, many_connections() as session:
            (long_one,) = await crew.streams(session, 1)
            crew.config.write_text(configuration(other, "header_seconds = 3.0", f'aliases = {{ best = "{MODEL}" }}'))
            crew.gateway.send(signal.SIGHUP)
            said = (
                "farebox has reloaded its configuration; these need a restart, and stay as they were: header_seconds\n"
            )
            await eventually(lambda: said in crew.gateway.errors)
            assert all(seen.whole for seen in await crew.chats(session, 3, model="best"))
            assert len(other.log) == 3
            crew.seen.append(await long_one)
            assert crew.seen[-1].whole
            crew.config.write_text("port = [")
            crew.gateway.send(signal.SIGHUP)
            await eventually(lambda: "goes on\n" in crew.gateway.errors)
            assert all(seen.whole for seen in await crew.chats(session, 3, model="best"))
            await crew.check(crew.upstream.log, other.log)
            crew.gateway.send(signal.SIGTERM)
            assert await crew.gateway.ended() == 0
