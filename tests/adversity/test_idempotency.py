"""Goal: one key, one charge, whatever dies. Method: one key at two gateways at once, after `kill -9` at the points
between claim, hold, settle and keeping, and while the ledger is away; the upstream's log is the oracle."""

import asyncio
import signal
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
import pytest

from tests.adversity.witness import Books, many_connections, owed_nanos
from tests.support.behaviours import Completion
from tests.support.call import Gate
from tests.support.gateway import farebox
from tests.support.keyed import Answer, ask, ask_at
from tests.support.ledger_proxy import ledger_proxy
from tests.support.postgres import ScratchPostgres
from tests.support.processes import WAIT_SECONDS_MAX, Gateways, eventually, open_wallet
from tests.support.shop import EXACT, settled
from tests.support.upstream import FakeUpstream

SECRET = "the same secret for every gateway of a database"
CALLERS = 30
CREDIT_NANOS = 10**9
SETTINGS = {"FAREBOX_HOLD_VALID_SECONDS": "2", "FAREBOX_SWEEP_SECONDS": "0.25", "FAREBOX_IDEMPOTENCY_SECRET": SECRET}

# Where a gateway dies with the call -> what a retry elsewhere comes to, and what the wallet pays for in the end.
DEATHS: Mapping[str, str] = {
    "idempotency.claimed": "runs",
    "relay.mid_stream": "runs",
    "settle.durable": "idempotent_reply_lost",
    "idempotency.stored": "replayed",
}


async def test_one_key_at_two_gateways_at_once_is_one_call(database_url: str) -> None:
    async with (
        FakeUpstream() as upstream,
        farebox(database_url, [upstream.base_url], idempotency_secret=SECRET) as one,
        farebox(database_url, [upstream.base_url], idempotency_secret=SECRET) as two,
    ):
        gate = Gate()
        upstream.default = Completion(gate=gate, gate_at_event=3)

        def call(number: int) -> "asyncio.Task[Answer]":
            url = (one, two)[number % 2].base_url
            return asyncio.create_task(ask_at(one.session, url, one.key, "race", stream=True))

        calls = [call(number) for number in range(CALLERS)]
        await gate.arrived()
        await eventually(lambda: sum(task.done() for task in calls) == CALLERS - 1)
        gate.open()
        answers = await asyncio.gather(*calls)
        (first,) = (answer for answer in answers if answer.status == 200)
        assert all(answer.is_still_running for answer in answers if answer is not first)
        replays = await asyncio.gather(*(call(number) for number in range(CALLERS)))
        assert all(answer.is_replayed and answer.body == first.body for answer in replays)
        assert len(upstream.log) == 1
        assert [event["charged_nanos"] for event in await one.usage()] == [EXACT]
        # With a secret of its own a gateway can neither read it nor charge again.
        async with farebox(database_url, [upstream.base_url]) as stranger:
            answer = await ask_at(stranger.session, stranger.base_url, one.key, "race", stream=True)
            assert (answer.status, answer.error["code"]) == (409, "idempotent_reply_lost")
        assert len(upstream.log) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_reply_that_ends_while_the_ledger_is_away_is_kept_once_it_is_back(
    database_url: str, stream: bool
) -> None:
    async with (
        ledger_proxy(database_url) as proxy,
        FakeUpstream() as upstream,
        farebox(proxy.dsn, [upstream.base_url], lane_wait_seconds=0.2) as gateway,
    ):
        gate = Gate()
        upstream.default = Completion(gate=gate, gate_at_event=3 if stream else None)
        call = asyncio.create_task(ask(gateway, "away", stream=stream))
        await gate.arrived()
        proxy.cut()
        gate.open()
        first = await call
        assert first.status == 200
        assert gateway.app.journal.records == 1
        refused = await ask(gateway, "away", stream=stream)
        assert (refused.status, refused.error["code"]) == (503, "ledger_unavailable")
        proxy.restore()
        again = await answered(gateway.session, gateway.base_url, gateway.key, "away", stream=stream)
        assert again.is_replayed
        assert again.body == first.body
        await settled(gateway)
        await eventually(lambda: gateway.app.journal.records == 0)
        assert [event["charged_nanos"] for event in await gateway.usage()] == [EXACT]
        assert len(upstream.log) == 1


async def answered(session: aiohttp.ClientSession, base_url: str, api_key: str, key: str, **members: object) -> Answer:
    """Ask until the answer is another than that the call still runs, or that the ledger is away."""
    answer = Answer()

    async def is_answered() -> bool:
        nonlocal answer
        answer = await ask_at(session, base_url, api_key, key, **members)
        return not answer.is_still_running and answer.status != 503

    await eventually(is_answered, within_seconds=WAIT_SECONDS_MAX)
    return answer


@dataclass(slots=True)
class Scene:
    """A database with one gateway that lives."""

    dsn: str
    gateways: Gateways
    living_url: str
    session: aiohttp.ClientSession


async def test_kill_9_between_claim_and_keeping_charges_a_key_once(durable: ScratchPostgres) -> None:
    dsn = await durable.clone("keyed")
    try:
        async with FakeUpstream() as idle, Gateways() as gateways, many_connections() as session:
            living = await gateways.serve(dsn, idle.base_url, **SETTINGS)
            scene = Scene(dsn, gateways, living.base_url, session)
            # Each retry waits for a sweep: all of them do so at once. They ask the upstream of the one that lives.
            await asyncio.gather(*(die_and_ask_again(scene, idle, point) for point in DEATHS))
            audit = gateways.start("audit", {"FAREBOX_DATABASE_URL": dsn})
            assert await audit.ended() == 0, audit.said
    finally:
        await durable.drop("keyed")


async def die_and_ask_again(scene: Scene, second: FakeUpstream, point: str) -> None:
    """One gateway dies at `point` of a call; the same call is sent to the one that lives."""
    wallet_id, api_key = await open_wallet(scene.dsn, "1")
    async with (
        FakeUpstream(Completion(pause_seconds=0.002)) as first,
        Books(scene.dsn, wallet_id, CREDIT_NANOS) as books,
    ):
        dying = await scene.gateways.serve(scene.dsn, first.base_url, FAREBOX_KILL_AT=point, **SETTINGS)
        before = await ask_at(scene.session, dying.base_url, api_key, point, stream=True)
        assert await dying.ended() == -signal.SIGKILL
        assert not before.body.endswith(b"data: [DONE]\n\n")
        again = await answered(scene.session, scene.living_url, api_key, point, stream=True)
        code = again.error["code"] if again.error else "replayed" if again.is_replayed else "runs"
        assert code == DEATHS[point], point
        await books.resolved()
        (charge,) = [event for event in await books.events() if event["charged_nanos"]]
        asked = second if code == "runs" else first
        (served,) = [one for one in asked.log if one.request_id == charge["hold_id"]]
        assert charge["charged_nanos"] == owed_nanos(served), point
        await books.check(first.log if asked is first else [*first.log, served], [])
        # And so it stays.
        last = await ask_at(scene.session, scene.living_url, api_key, point, stream=True)
        assert last.error["code"] == code if again.error else (last.is_replayed and last.body == again.body)
