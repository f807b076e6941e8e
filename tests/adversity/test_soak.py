"""Goal: nothing grows with the number of calls. Method: calls of every kind, and the process measured before and after.

SOAK_CALLS=100000 makes it long. Memory and descriptors are read from /proc: Linux only.
"""

import asyncio
import contextlib
import os
from collections import Counter
from pathlib import Path

import aiohttp
import pytest

from tests.adversity.witness import Books, Sighting, chat, many_connections
from tests.support.behaviours import BROKEN, RATE_LIMITED, Choose, Completion, End
from tests.support.completion import absent
from tests.support.gateway import Farebox
from tests.support.postgres import ScratchPostgres
from tests.support.processes import GatewayProcess, Gateways, eventually, open_wallet
from tests.support.upstream import FakeUpstream

CALLS = int(os.environ.get("SOAK_CALLS", "2000"))
CLIENTS = 16
CREDIT_NANOS = 10_000 * 10**9
# What an allocator keeps to itself between rounds; a leak of 1 KB a call is more than that in the long run.
GROWTH_BYTES_MAX = 3 * 2**20 + 100 * CALLS
# Connections that pools open when they are first needed at once; one left by each odd call would be fifty.
POOLED_MAX = 12
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")

ODD = (
    Completion(end=End.RESET, end_after_events=4),
    Choose(lambda asked: Completion(end=End.ERROR, end_after_events=4) if asked.stream else BROKEN),
    Completion(usage=absent),
    RATE_LIMITED,
)


@needs_proc
async def test_thousands_of_calls_leave_nothing_behind(durable: ScratchPostgres) -> None:
    dsn = await durable.clone("soak")
    wallet_id, key = await open_wallet(dsn, "10000")
    async with (
        FakeUpstream() as upstream,
        Gateways() as gateways,
        Books(dsn, wallet_id, CREDIT_NANOS) as books,
        many_connections() as session,
    ):
        gateway = await gateways.serve(dsn, upstream.base_url, FAREBOX_DRAIN_SECONDS="0.5")
        seen = await _calls(session, gateway, upstream, key, CALLS // 2)
        before = await _at_rest(gateway, books)
        seen += await _calls(session, gateway, upstream, key, CALLS // 2)
        after = await _at_rest(gateway, books)
        assert after["descriptors"] <= before["descriptors"] + POOLED_MAX
        assert after["rss_bytes"] < before["rss_bytes"] + GROWTH_BYTES_MAX
        assert await gateway.metric("farebox_crashes_total") == 0
        assert len(upstream.log) == len(seen)
        if len(seen) < 50_000:
            await books.check(upstream.log, seen)
    await durable.drop("soak")


async def _calls(
    session: aiohttp.ClientSession, gateway: GatewayProcess, upstream: FakeUpstream, key: str, count: int
) -> list[Sighting]:
    """`count` calls: bodies and streams, one in twenty odd, one in twenty-five of a client that leaves."""
    seen: list[Sighting] = []

    async def client(number: int) -> None:
        for call in range(number, count, CLIENTS):
            if call % 20 == 0:
                upstream.next(ODD[call // 20 % len(ODD)])
            if call % 25 == 1:
                seen.append(await _leave_early(session, gateway, key))
            else:
                seen.append(await chat(session, gateway.base_url, key, stream=call % 2 == 0))

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return seen


async def _leave_early(session: aiohttp.ClientSession, gateway: GatewayProcess, key: str) -> Sighting:
    """A client that closes the connection after the first bytes of a stream."""
    body = {"model": "test-model", "messages": [{"role": "user", "content": "Hello?"}], "stream": True}
    headers = {"Authorization": f"Bearer {key}"}
    async with session.post(f"{gateway.base_url}/chat/completions", json=body, headers=headers) as response:
        await response.content.readany()
        response.close()
    return Sighting(status=response.status)


async def _at_rest(gateway: GatewayProcess, books: Books) -> dict[str, int]:
    """The process once nothing is in flight."""

    async def nothing_is_unsettled() -> bool:
        return await gateway.metric("farebox_unsettled_calls") == 0 and await books.open_holds() == 0

    await eventually(nothing_is_unsettled)
    return {
        "descriptors": len(os.listdir(f"/proc/{gateway.pid}/fd")),
        "rss_bytes": int(Path(f"/proc/{gateway.pid}/statm").read_text().split()[1]) * PAGE_BYTES,
    }


async def test_a_call_leaves_no_task(gateway: Farebox, upstream: FakeUpstream) -> None:
    async def some_of_each() -> Counter[str]:
        upstream.next(*ODD)
        for number in range(40):
            async with gateway.chat(stream=number % 2 == 0) as response:
                if number % 5 == 0:
                    response.close()
                with contextlib.suppress(aiohttp.ClientError):
                    await response.read()
        await eventually(lambda: len(gateway.app.watch) == 0)
        kinds = Counter(getattr(task.get_coro(), "__qualname__", "?") for task in asyncio.all_tasks())
        # A connection that is kept alive has a task in its server: ours, or the fake one.
        del kinds["RequestHandler.start"]
        return kinds

    assert await some_of_each() == await some_of_each()
