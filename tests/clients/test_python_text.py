"""The official Python SDK asks for completions, embeddings and moderations."""

import openai
import pytest

from tests.support.gateway import MODEL
from tests.support.shop import CREDIT_NANOS, settled
from tests.support.studio import Studio, studio, studio_all_day
from tests.support.studio_reply import events_of, json_of
from tests.support.text_replies import COMPLETION, COMPLETION_CHUNKS, EMBEDDINGS, MODERATION

__all__ = ["studio", "studio_all_day"]
pytestmark = pytest.mark.asyncio(loop_scope="module")


async def charged(studio: Studio, nanos: int) -> None:
    await settled(studio.shop.farebox)
    wallet = await studio.shop.farebox.wallet()
    assert (wallet["balance_nanos"], wallet["held_nanos"]) == (CREDIT_NANOS - nanos, 0)


def client_of(studio: Studio) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=studio.shop.farebox.base_url, api_key=studio.shop.farebox.key, max_retries=0)


async def test_completions(studio: Studio) -> None:
    studio.shop.upstream.next(json_of(**COMPLETION), events_of(*COMPLETION_CHUNKS))
    async with client_of(studio) as client:
        reply = await client.completions.create(model=MODEL, prompt="Say", max_tokens=9)
        stream = await client.completions.create(model=MODEL, prompt="Say", max_tokens=9, stream=True)
        chunks = [chunk async for chunk in stream]
    assert reply.choices[0].text == "".join(chunk.choices[0].text for chunk in chunks) == " something."
    assert all(chunk.usage is None for chunk in chunks), "nobody asked for the usage but the gateway"
    await charged(studio, 2 * (1 + 4 * 3))


async def test_embeddings(studio: Studio) -> None:
    studio.shop.upstream.next(json_of(**EMBEDDINGS))
    async with client_of(studio) as client:
        reply = await client.embeddings.create(model=MODEL, input=["one", "two"])
    assert [one.embedding for one in reply.data] == [[0.5, -1.0], [0.25, 2.0]]
    await charged(studio, 2)


async def test_moderations(studio: Studio) -> None:
    studio.shop.upstream.next(json_of(**MODERATION))
    async with client_of(studio) as client:
        reply = await client.moderations.create(model="by-request", input="Hello")
    assert [one.flagged for one in reply.results] == [False]
    await charged(studio, 7)
