"""The official Python SDK talks through the gateway: `client.realtime.connect`, with nothing but its URL changed."""

import pytest
from openai import AsyncOpenAI

from tests.support.realtime import (
    EXACT,
    REALTIME,
    FakeRealtime,
    Turn,
    fake,
    realtime_all_day,
    shop,
    sound,
)  # fmt: skip
from tests.support.shop import CREDIT_NANOS, Shop, settled

__all__ = ["fake", "realtime_all_day", "shop"]
pytestmark = pytest.mark.asyncio(loop_scope="module")


def client_of(shop: Shop, key: str | None = None) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=shop.farebox.base_url, api_key=key or shop.farebox.key)


async def test_a_conversation(shop: Shop, fake: FakeRealtime) -> None:
    fake.turns.append(Turn(text=("Good ", "day.")))
    async with client_of(shop) as client, client.realtime.connect(model=REALTIME) as connection:
        await connection.session.update(session={"type": "realtime", "model": REALTIME, "output_modalities": ["audio"]})
        await connection.input_audio_buffer.append(audio=sound(0.2))
        await connection.conversation.item.create(
            item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello!"}]}
        )
        await connection.response.create()
        said = ""
        async for event in connection:
            if event.type == "response.output_audio_transcript.delta":
                said += event.delta
            elif event.type == "response.done":
                assert event.response.usage is not None
                assert event.response.usage.total_tokens == 160
                break
        assert said == "Good day."
    await settled(shop.farebox)
    assert (await shop.farebox.wallet())["balance_nanos"] == CREDIT_NANOS - EXACT


async def test_an_error_is_an_event_and_the_session_goes_on(shop: Shop, fake: FakeRealtime) -> None:
    async with client_of(shop) as client, client.realtime.connect(model=REALTIME) as connection:
        await connection.send({"type": "session.update", "session": {"type": "realtime", "model": "gpt-unknown"}})
        async for event in connection:
            if event.type == "error":
                assert (event.error.code, event.error.param) == ("not_metered", "session.model")
                break
        await connection.response.create(response={"max_output_tokens": 200})
        async for event in connection:
            if event.type == "response.done":
                break


async def test_a_refused_session(shop: Shop, fake: FakeRealtime) -> None:
    async with client_of(shop, "fb-unknown") as client:
        # websockets.InvalidStatus: the SDK has no class of its own for it, and does not try again.
        with pytest.raises(Exception, match="HTTP 401"):
            async with client.realtime.connect(model=REALTIME):
                pass
