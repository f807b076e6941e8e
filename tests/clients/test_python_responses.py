"""The official Python SDK drives the Responses API: create, stream, background, and all that can be done by id."""

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from tests.support.gateway import MODEL, make_wallet
from tests.support.responses_shop import EXACT, Shop, open_all_day, shop
from tests.support.responses_upstream import WORDS, Honest
from tests.support.shop import CREDIT_NANOS, settled

__all__ = ["open_all_day", "shop"]

pytestmark = pytest.mark.asyncio(loop_scope="module")
SAY = "Say something."
SAID = "".join(WORDS)


@pytest_asyncio.fixture(loop_scope="module")
async def client(shop: Shop) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=shop.running.base_url, api_key=shop.key, max_retries=0) as opened:
        yield opened


async def assert_charged(shop: Shop, calls: int) -> None:
    await settled(shop.running)
    charges = [event["charged_nanos"] for event in await shop.running.usage(shop.wallet_id)]
    assert charges == [EXACT] * calls
    wallet = await shop.running.wallet(shop.wallet_id)
    assert (wallet["balance_nanos"], wallet["held_nanos"]) == (CREDIT_NANOS - calls * EXACT, 0)


async def test_a_conversation_and_what_can_be_done_with_it_by_id(shop: Shop, client: AsyncOpenAI) -> None:
    first = await client.responses.create(model=MODEL, input=SAY)
    assert first.output_text == SAID
    assert first.usage is not None
    assert first.usage.total_tokens == 30
    second = await client.responses.create(model=MODEL, input="And again.", previous_response_id=first.id)
    read = await client.responses.retrieve(second.id)
    assert (read.id, read.output_text) == (second.id, SAID)
    assert [item async for item in client.responses.input_items.list(first.id)] == []
    counted = await client.responses.input_tokens.count(model=MODEL, input=SAY)
    assert counted.input_tokens == 11
    await client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(first.id)
    await assert_charged(shop, 2)


async def test_a_stream_and_its_replay(shop: Shop, client: AsyncOpenAI) -> None:
    text, last = "", None
    async for event in await client.responses.create(model=MODEL, input=SAY, stream=True):
        if event.type == "response.output_text.delta":
            text += event.delta
        last = event
    assert text == SAID
    assert last is not None
    assert last.type == "response.completed"
    kinds = [event.type async for event in await client.responses.retrieve(last.response.id, stream=True)]
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    await assert_charged(shop, 1)


async def test_the_stream_helper(shop: Shop, client: AsyncOpenAI) -> None:
    async with client.responses.stream(model=MODEL, input=SAY) as stream:
        final = await stream.get_final_response()
    assert final.output_text == SAID
    await assert_charged(shop, 1)


async def test_a_stream_that_cannot_go_on_is_raised(shop: Shop, client: AsyncOpenAI) -> None:
    shop.upstream.next(Honest(after_events=5))
    with pytest.raises(openai.APIError) as raised:
        async for _ in await client.responses.create(model=MODEL, input=SAY, stream=True):
            pass
    assert raised.value.code == "upstream_broke"


async def test_a_response_in_the_background_is_polled_to_its_end(shop: Shop, client: AsyncOpenAI) -> None:
    response = await client.responses.create(model=MODEL, input=SAY, background=True)
    assert response.status == "queued"
    polls = 0
    while response.status in ("queued", "in_progress"):
        response = await client.responses.retrieve(response.id)
        polls += 1
        if polls == 2:
            shop.upstream.finish()
        await asyncio.sleep(0.01)
    assert (response.status, response.output_text) == ("completed", SAID)
    await assert_charged(shop, 1)


async def test_a_response_in_the_background_is_cancelled(shop: Shop, client: AsyncOpenAI) -> None:
    response = await client.responses.create(model=MODEL, input=SAY, background=True)
    with pytest.raises(openai.ConflictError):
        await client.responses.delete(response.id)
    assert (await client.responses.cancel(response.id)).status == "cancelled"
    await client.responses.delete(response.id)
    await settled(shop.running)
    (event,) = await shop.running.usage(shop.wallet_id)
    assert (event["charged_nanos"], event["reason"]) == (0, "background_cancelled")


async def test_another_wallet_finds_nothing(shop: Shop, client: AsyncOpenAI) -> None:
    mine = await client.responses.create(model=MODEL, input=SAY)
    _, key = await make_wallet(shop.app.database, "1")
    async with AsyncOpenAI(base_url=shop.running.base_url, api_key=key, max_retries=0) as stranger:
        for call in (
            stranger.responses.retrieve(mine.id),
            stranger.responses.cancel(mine.id),
            stranger.responses.delete(mine.id),
            stranger.responses.create(model=MODEL, input=SAY, previous_response_id=mine.id),
        ):
            with pytest.raises(openai.NotFoundError):
                await call
    assert len(shop.upstream.log) == 1


async def test_compacting(shop: Shop, client: AsyncOpenAI) -> None:
    compacted = await client.responses.compact(model=MODEL, input=SAY)
    assert compacted.object == "response.compaction"
    await assert_charged(shop, 1)
