"""Goal: promises 1 and 3 with more than one gateway. Method: two processes on one database, and a gated upstream, so
that everything that can be held is held at the same time."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import pytest

from gateway.core.money import format_nanos, parse_nanos
from gateway.db import keys
from gateway.db.pool import Database
from tests.adversity.witness import Books, chat, chats, many_connections
from tests.support.behaviours import Completion
from tests.support.call import Gate
from tests.support.postgres import ScratchPostgres
from tests.support.processes import GatewayProcess, Gateways, eventually, open_wallet
from tests.support.upstream import FakeUpstream

CALLS, PAID = 200, 50
REVOKED_EVERYWHERE_SECONDS_MAX = 1.0


@dataclass(slots=True)
class Two:
    """Two gateways before one upstream."""

    dsn: str
    upstream: FakeUpstream
    gateways: tuple[GatewayProcess, GatewayProcess]
    session: aiohttp.ClientSession

    @property
    def base_urls(self) -> list[str]:
        return [gateway.base_url for gateway in self.gateways]


@pytest.fixture
async def two(durable: ScratchPostgres) -> AsyncIterator[Two]:
    async with two_gateways(durable) as running:
        yield running


@asynccontextmanager
async def two_gateways(durable: ScratchPostgres, **settings: str) -> AsyncIterator[Two]:
    dsn = await durable.clone("two")
    try:
        async with FakeUpstream() as upstream, Gateways() as gateways, many_connections() as session:
            first, second = await asyncio.gather(
                *(gateways.serve(dsn, upstream.base_url, **settings) for _ in range(2))
            )
            yield Two(dsn, upstream, (first, second), session)
    finally:
        await durable.drop("two")


async def test_200_calls_on_a_wallet_that_pays_for_50_are_50(two: Two) -> None:
    _, poor_key = await open_wallet(two.dsn, "0")
    refused = await chat(two.session, two.base_urls[0], poor_key, max_completion_tokens=100)
    each_nanos = parse_nanos(refused.required)
    credit_nanos = PAID * each_nanos + each_nanos - 1
    wallet_id, key = await open_wallet(two.dsn, format_nanos(credit_nanos))
    # No reply ends, and so no money comes free, before every call has been decided.
    gate = Gate()
    two.upstream.default = Completion(output_tokens=100, gate=gate)
    async with Books(two.dsn, wallet_id, credit_nanos) as books:
        calls = asyncio.create_task(chats(two.session, two.base_urls, key, CALLS, max_completion_tokens=100))
        await two.upstream.received(PAID)
        assert await free_when_all_is_decided(books, two) == each_nanos - 1
        gate.open()
        seen = await calls
        assert Counter(sighting.status for sighting in seen) == {200: PAID, 402: CALLS - PAID}
        assert {sighting.error_code for sighting in seen if sighting.status == 402} == {"insufficient_funds"}
        assert len(two.upstream.log) == PAID
        await books.check(two.upstream.log, seen)


async def free_when_all_is_decided(books: Books, two: Two) -> int:
    """Wait until every call was granted or refused; what is then free to use, in nanos."""

    async def all_decided() -> bool:
        counts = [await gateway.metric("farebox_hold_decisions_total") for gateway in two.gateways]
        return sum(counts) == CALLS + 1  # and the one that asked for the price

    await eventually(all_decided)
    wallet = await books.wallet()
    return int(wallet["balance_nanos"] - wallet["held_nanos"])


async def test_a_revoked_key_is_refused_by_both_within_a_second(two: Two) -> None:
    _, key = await open_wallet(two.dsn, "1")
    database = Database(two.dsn)
    try:
        row = await keys.by_hash(database, keys.hash_key(key))
        assert row is not None
        # Both have it in their caches.
        assert all(seen.whole for seen in await chats(two.session, two.base_urls, key, 4))
        assert await keys.revoke(database, str(row["key_id"]))

        async def both_refuse() -> bool:
            seen = await chats(two.session, two.base_urls, key, 2)
            return [sighting.status for sighting in seen] == [401, 401]

        assert await eventually(both_refuse) < REVOKED_EVERYWHERE_SECONDS_MAX
    finally:
        await database.close()


async def test_one_sweeps_what_the_other_left_and_nothing_that_is_alive(durable: ScratchPostgres) -> None:
    settings = {"FAREBOX_HOLD_VALID_SECONDS": "2", "FAREBOX_SWEEP_SECONDS": "0.25"}
    async with two_gateways(durable, **settings) as two:
        killed, _ = two.gateways
        wallet_id, key = await open_wallet(two.dsn, "1")
        gate = Gate()
        two.upstream.default = Completion(output_tokens=20, gate=gate, gate_at_event=10)
        async with Books(two.dsn, wallet_id, 10**9) as books:
            calls = asyncio.create_task(chats(two.session, two.base_urls, key, 10, stream=True))
            await two.upstream.received(10)
            for served in two.upstream.log:
                await served.sent_events(10)
            await asyncio.sleep(1.75)  # past half of the validity: what has been relayed is checkpointed
            await killed.kill()

            async def only_the_living_hold() -> bool:
                return await books.open_holds() == 5

            assert await eventually(only_the_living_hold) > 2.0
            events = await books.events()
            assert [(event["resolution"], event["basis"], event["reason"]) for event in events] == [
                ("expired", "estimated", "swept")
            ] * 5
            # Nine words had been relayed: they are charged, with the prompt, though nobody had settled them.
            assert all(9 * 4 < event["charged_nanos"] < 20 * 4 + 100 for event in events)
            gate.open()
            seen = await calls
            assert sum(sighting.whole for sighting in seen) == 5
            await books.check(two.upstream.log, seen)
