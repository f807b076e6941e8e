"""The official Node SDK drives the Responses API. tests/clients/node/client.mjs plays the customer."""

import asyncio

import pytest

from tests.support.gateway import MODEL
from tests.support.node import NodeClient, node
from tests.support.responses_shop import EXACT, Shop, open_all_day, shop
from tests.support.responses_upstream import USAGE, WORDS
from tests.support.shop import settled

__all__ = ["node", "open_all_day", "shop"]

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_responses_whole_streamed_and_in_the_background(shop: Shop, node: NodeClient) -> None:
    scenarios = ("responses", "responses_stream", "responses_background")
    seen = await node.play(*scenarios, base_url=shop.running.base_url, key=shop.key, MODEL=MODEL)
    said = "".join(WORDS)
    assert seen == {
        "responses": {"text": said, "same": True, "items": [], "usage": USAGE},
        "responses_stream": {"text": said, "first": "response.created", "last": "response.completed"},
        "responses_background": {"statuses": ["queued", "queued", "cancelled"]},
    }
    async with asyncio.timeout(15):
        while len(events := await shop.running.usage(shop.wallet_id)) < 4:
            await asyncio.sleep(0.1)
    await settled(shop.running)
    assert sorted(event["charged_nanos"] for event in events) == [0, EXACT, EXACT, EXACT]
