"""The official Node SDK drives the Responses API. tests/clients/node/client.mjs plays the customer."""

import asyncio
import os
from pathlib import Path

import orjson
import pytest

from tests.clients.test_node_sdk import HOW, RUN_SECONDS_MAX, client_script
from tests.support.gateway import MODEL
from tests.support.responses_shop import EXACT, Shop, open_all_day, shop
from tests.support.responses_upstream import USAGE, WORDS
from tests.support.shop import settled
from tests.support.tools import tool

__all__ = ["client_script", "open_all_day", "shop"]

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_responses_whole_streamed_and_in_the_background(shop: Shop, client_script: Path) -> None:
    environment = {**os.environ, "BASE_URL": shop.running.base_url, "API_KEY": shop.key, "MODEL": MODEL}
    scenarios = ("responses", "responses_stream", "responses_background")
    process = await asyncio.create_subprocess_exec(
        *(tool("node", HOW), str(client_script), *scenarios), env=environment, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(RUN_SECONDS_MAX):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    said = "".join(WORDS)
    assert [orjson.loads(line).get("ok", line) for line in output.splitlines()] == [
        {"text": said, "same": True, "items": [], "usage": USAGE},
        {"text": said, "first": "response.created", "last": "response.completed"},
        {"statuses": ["queued", "queued", "cancelled"]},
    ]
    async with asyncio.timeout(15):
        while len(events := await shop.running.usage(shop.wallet_id)) < 4:
            await asyncio.sleep(0.1)
    await settled(shop.running)
    assert sorted(event["charged_nanos"] for event in events) == [0, EXACT, EXACT, EXACT]
