"""`farebox demo`: what it prints works when it is run, and its wallet is kept."""

import asyncio
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.support.processes import GatewayProcess, Gateways

RUN_SECONDS_MAX = 30.0


@pytest.fixture
async def gateways() -> AsyncIterator[Gateways]:
    async with Gateways() as started:
        yield started


async def demo(gateways: Gateways, **settings: str) -> GatewayProcess:
    """The demo, once it serves."""
    gateway = gateways.start("demo", settings)
    await gateway.announced()
    await gateway.answers_ready(200)
    return gateway


def printed(gateway: GatewayProcess, pattern: str) -> str:
    found = re.search(pattern, gateway.said, re.DOTALL)
    assert found is not None, gateway.said
    return found[1]


def balance(gateway: GatewayProcess) -> str:
    return printed(gateway, r"demo wallet has (\S+)\.\n")


def key(gateway: GatewayProcess) -> str:
    return printed(gateway, r"key +(fb-\S+)\n")


async def output_of(*command: str) -> str:
    """What a command printed; it must succeed."""
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=RUN_SECONDS_MAX, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_what_it_prints_works_when_it_is_run(gateways: Gateways) -> None:
    gateway = await demo(gateways)
    assert balance(gateway) == "5.00"
    assert (gateways.data_directory / "demo-key").stat().st_mode & 0o077 == 0

    curl = printed(gateway, r"\n  (curl .*?'\n)")
    head, _, body = (await output_of("sh", "-c", curl)).partition("\n\n")
    assert head.startswith("HTTP/1.1 200 OK")
    assert re.search(r"^x-farebox-cost: 0\.0", head, re.MULTILINE | re.IGNORECASE)
    assert re.search(r"^x-farebox-balance: 4\.9", head, re.MULTILINE | re.IGNORECASE)
    assert '"finish_reason":"stop"' in body

    snippet = textwrap.dedent(printed(gateway, r"openai`:\n\n(.*?\n)\n[A-Z]"))
    assert len(snippet.splitlines()) == 5
    assert len((await output_of(sys.executable, "-c", snippet)).split()) > 5

    urls = re.findall(r"http://\S+/(?:readyz|healthz|metrics)", gateway.said)
    assert len(urls) == 3
    async with aiohttp.ClientSession() as session:
        for url in urls:
            async with session.get(url) as response:
                assert response.status == 200
    assert (await gateway.metric("farebox_calls_total"), await gateway.metric("farebox_crashes_total")) == (2, 0)


async def test_its_wallet_is_kept_by_a_stop_and_by_kill_9(gateways: Gateways) -> None:
    first = await demo(gateways)
    await output_of("sh", "-c", printed(first, r"\n  (curl .*?'\n)"))
    first.interrupt()
    assert await first.ended(10.0) == 0
    assert first.errors == "farebox is stopping: calls in flight may end\n"

    second = await demo(gateways)
    assert (key(second), balance(second) < "5.00") == (key(first), True)
    await output_of("sh", "-c", printed(second, r"\n  (curl .*?'\n)"))
    await second.kill()

    third = await demo(gateways)
    assert (key(third), balance(third) < balance(second)) == (key(first), True)
    third.send(signal.SIGTERM)
    assert await third.ended(10.0) == 0
