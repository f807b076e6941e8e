"""Goal: promise 2 and 3 across `kill -9`. Method: kill a gateway at each named point of a call, with sixteen clients at
it, start another, wait for its sweep, and compare what clients saw, what the upstream served and what was charged.

KILL_ROUNDS=5 makes it fifty rounds; each round of a point dies at another count of calls.
"""

import asyncio
import os
import signal
from dataclasses import dataclass, field

import aiohttp
import pytest

from gateway import points
from tests.adversity.witness import Books, Sighting, chat, many_connections
from tests.support.behaviours import Choose, Completion
from tests.support.postgres import ScratchPostgres
from tests.support.processes import GatewayProcess, Gateways, open_wallet
from tests.support.upstream import FakeUpstream

ROUNDS = int(os.environ.get("KILL_ROUNDS", "1"))
CLIENTS = 16
CALLS_PER_CLIENT_MAX = 20
CREDIT = "100"
CREDIT_NANOS = 100 * 10**9
AT_ONCE = 5
# From here to there the call that reaches the point holds money, and nothing has resolved it.
HELD_POINTS = points.NAMES[points.NAMES.index("hold.placed") : points.NAMES.index("settle.durable")]
SETTINGS = {"FAREBOX_HOLD_VALID_SECONDS": "2", "FAREBOX_SWEEP_SECONDS": "0.25"}


@dataclass(slots=True)
class Campaign:
    """What happened at one point. `failure` is the first thing that was wrong."""

    exit_codes: list[int] = field(default_factory=list)
    seen: list[Sighting] = field(default_factory=list)
    swept: int = 0
    failure: BaseException | None = None


@pytest.fixture(scope="module")
def campaigns(durable: ScratchPostgres) -> dict[str, Campaign]:
    """Every point's rounds. Points take turns with two processors, as a round mostly waits for its sweep."""
    return asyncio.run(_all_points(durable))


@pytest.mark.parametrize("point", points.NAMES)
def test_kill_9_charges_each_whole_reply_once_and_leaks_no_hold(point: str, campaigns: dict[str, Campaign]) -> None:
    campaign = campaigns[point]
    if campaign.failure is not None:
        raise campaign.failure
    # Nobody else sends SIGKILL before the round is over: the process was there, each time.
    assert campaign.exit_codes == [-signal.SIGKILL] * ROUNDS
    assert sum(sighting.whole for sighting in campaign.seen) >= ROUNDS
    assert any(not sighting.whole for sighting in campaign.seen)
    if point in HELD_POINTS:
        assert campaign.swept >= ROUNDS


async def _all_points(durable: ScratchPostgres) -> dict[str, Campaign]:
    turns = asyncio.Semaphore(AT_ONCE)
    found = {point: Campaign() for point in points.NAMES}

    async def one_point(point: str, number: int) -> None:
        async with turns:
            try:
                await _rounds(point, await durable.clone(f"kill_{number}"), found[point])
            except BaseException as error:
                found[point].failure = error
            finally:
                await durable.drop(f"kill_{number}")

    await asyncio.gather(*(one_point(point, number) for number, point in enumerate(points.NAMES)))
    return found


async def _rounds(point: str, dsn: str, campaign: Campaign) -> None:
    wallet_id, key = await open_wallet(dsn, CREDIT)
    async with (
        FakeUpstream(Choose(lambda asked: _STREAM if asked.stream else _JSON)) as upstream,
        Gateways() as gateways,
        Books(dsn, wallet_id, CREDIT_NANOS) as books,
    ):
        for number in range(ROUNDS + 1):
            kill_at = f"{point}:{_count(point, number)}"
            gateway = await gateways.serve(dsn, upstream.base_url, FAREBOX_KILL_AT=kill_at, **SETTINGS)
            # The gateway that is to die next is the one that sweeps after the last.
            await books.resolved()
            await books.check(upstream.log, campaign.seen)
            if number < ROUNDS:
                await _load_until_dead(gateway, key, campaign)
        # Every charge is derived again from its price.
        audit = gateways.start("audit", {"FAREBOX_DATABASE_URL": dsn})
        assert await audit.ended() == 0, audit.said
        campaign.swept = sum(event["resolution"] == "expired" for event in await books.events())


# Streams that are under way while others begin and end; JSON that comes at once.
_STREAM = Completion(output_tokens=10, pause_seconds=0.004)
_JSON = Completion(output_tokens=30)


def _count(point: str, number: int) -> int:
    """At which visit to the point to die: another one each round, with calls of all kinds under way."""
    visits = 25 + 11 * (number % 6)
    return visits * 4 if point == "relay.mid_stream" else visits


async def _load_until_dead(gateway: GatewayProcess, key: str, campaign: Campaign) -> None:
    async def client(session: aiohttp.ClientSession, number: int) -> None:
        for call in range(CALLS_PER_CLIENT_MAX):
            if gateway.process.poll() is not None:
                return
            stream = (number + call) % 2 == 0
            campaign.seen.append(await chat(session, gateway.base_url, key, stream=stream, max_completion_tokens=40))

    async with many_connections() as session:
        await asyncio.gather(*(client(session, number) for number in range(CLIENTS)))
    campaign.exit_codes.append(await gateway.ended())
