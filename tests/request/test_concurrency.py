"""Many calls at once: exactly as many as the money covers, and none of them holds a database connection."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import asyncpg

from gateway.core.money import format_nanos
from tests.support.behaviours import Completion
from tests.support.call import Gate
from tests.support.gateway import Farebox, farebox
from tests.support.upstream import FakeUpstream

# A body of 94 bytes with its cap, the template and 20 tokens of output.
CEILING = 94 + 256 + 4 * 20
EXACT = 10 + 4 * 20
PAID_FOR = 50


async def status_of(running: Farebox, key: str) -> int:
    async with running.chat(key, max_tokens=20) as response:
        await response.read()
        return response.status


async def race(gateways: list[Farebox], upstream: FakeUpstream, calls: int) -> None:
    """All calls at once on a wallet that covers fifty of them; the upstream answers when all are decided."""
    gate = Gate()
    upstream.default = Completion(gate=gate)
    wallet_id, key = await gateways[0].new_wallet(format_nanos(PAID_FOR * CEILING))
    tasks = [asyncio.ensure_future(status_of(gateways[n % len(gateways)], key)) for n in range(calls)]
    await upstream.received(PAID_FOR)
    async with asyncio.timeout(20):
        while sum(task.done() for task in tasks) < calls - PAID_FOR:
            await asyncio.sleep(0.01)
            wallet = await gateways[0].wallet(wallet_id)
            assert 0 <= wallet["held_nanos"] <= wallet["balance_nanos"]
    wallet = await gateways[0].wallet(wallet_id)
    assert wallet["balance_nanos"] == wallet["held_nanos"] == PAID_FOR * CEILING
    gate.open()
    assert Counter(await asyncio.gather(*tasks)) == {200: PAID_FOR, 402: calls - PAID_FOR}
    assert len(upstream.log) == PAID_FOR
    wallet = await gateways[0].wallet(wallet_id)
    assert (wallet["balance_nanos"], wallet["held_nanos"]) == (PAID_FOR * (CEILING - EXACT), 0)
    usage = await gateways[0].usage(wallet_id)
    assert [event["charged_nanos"] for event in usage] == [EXACT] * PAID_FOR
    assert {str(event["hold_id"]) for event in usage} == {served.request_id for served in upstream.log}


async def test_of_200_calls_exactly_those_that_are_covered_succeed(gateway: Farebox, upstream: FakeUpstream) -> None:
    await race([gateway], upstream, 200)


async def test_of_200_calls_on_two_gateways_exactly_those_that_are_covered_succeed(
    database_url: str, upstream: FakeUpstream, stack: AsyncExitStack
) -> None:
    gateways = [await stack.enter_async_context(farebox(database_url, [upstream.base_url])) for _ in range(2)]
    await race(gateways, upstream, 200)


async def test_a_wallet_is_spent_to_its_last_call_and_never_overdrawn(gateway: Farebox, upstream: FakeUpstream) -> None:
    """Holds are released by settles all the while, so more calls than the money covers at once may succeed."""
    wallet_id, key = await gateway.new_wallet(format_nanos(3 * CEILING + 7))
    statuses = Counter(await asyncio.gather(*(status_of(gateway, key) for _ in range(100))))
    assert set(statuses) <= {200, 402}
    assert len(upstream.log) == statuses[200] >= 3
    wallet = await gateway.wallet(wallet_id)
    assert wallet["balance_nanos"] == 3 * CEILING + 7 - EXACT * statuses[200] >= 0
    assert wallet["held_nanos"] == 0


async def test_open_streams_hold_no_database_connection(
    gateway: Farebox, upstream: FakeUpstream, database_url: str
) -> None:
    """300 streams, all waiting for their upstream: the lane, the listener and a small pool are all there is."""
    streams = 300
    gate = Gate()
    upstream.default = Completion(gate=gate, gate_at_event=3)
    observer = await asyncpg.connect(database_url)
    responses = await asyncio.gather(*(gateway.chat(stream=True) for _ in range(streams)))
    await asyncio.gather(*(response.content.readuntil(b"\n\n") for response in responses))
    assert await gateway.open_holds() == streams
    rows = await observer.fetch(
        "SELECT state FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    # The lane, the listener, a pool of at most four, and the one of this test.
    assert len(rows) <= 7
    assert not [row for row in rows if row["state"].startswith("idle in transaction")]
    # And the ledger answers others meanwhile.
    async with asyncio.timeout(2):
        assert (await gateway.wallet())["held_nanos"] > 0
    gate.open()
    await asyncio.gather(*(response.read() for response in responses))
    assert await gateway.open_holds() == 0
    assert len(await gateway.usage()) == streams
    assert (await gateway.wallet())["balance_nanos"] == 100 * 10**9 - streams * EXACT
    await observer.close()
