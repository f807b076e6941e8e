"""Sound and images as the official Python SDK asks for them, and what each is charged."""

import base64
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio

from tests.support.forms import CONTENT_TYPE, File, form_bytes
from tests.support.sounds import mp3, wav
from tests.support.studio import Studio, studio, studio_all_day
from tests.support.studio_reply import Media, events_of, json_of

__all__ = ["studio", "studio_all_day"]
pytestmark = pytest.mark.asyncio(loop_scope="module")

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(5_000)
IMAGE = base64.b64encode(PICTURE * 100).decode()
USAGE = {"input_tokens": 2, "output_tokens": 272, "total_tokens": 274}
TOKENS = {
    "type": "tokens",
    "input_tokens": 34,
    "input_token_details": {"audio_tokens": 30, "text_tokens": 4},
    "output_tokens": 9,
    "total_tokens": 43,
}


@pytest_asyncio.fixture(loop_scope="module")
async def sdk(studio: Studio) -> AsyncIterator[openai.AsyncOpenAI]:
    farebox = studio.shop.farebox
    async with openai.AsyncOpenAI(base_url=farebox.base_url, api_key=farebox.key, max_retries=0) as client:
        yield client


async def test_images_generate(studio: Studio, sdk: openai.AsyncOpenAI) -> None:
    studio.shop.upstream.next(json_of(created=1, data=[{"b64_json": IMAGE}], usage=USAGE))
    reply = await sdk.images.generate(model="gpt-image-1", prompt="A cat.", size="1024x1024", quality="low")
    assert reply.data is not None
    assert reply.data[0].b64_json == IMAGE
    await studio.charged(10 + 272 * 30, "reported")


async def test_images_generate_with_partial_images(studio: Studio, sdk: openai.AsyncOpenAI) -> None:
    partial = {"type": "image_generation.partial_image", "b64_json": IMAGE, "partial_image_index": 0}
    completed = {"type": "image_generation.completed", "b64_json": IMAGE, "usage": USAGE}
    studio.shop.upstream.next(events_of(partial, partial, completed, named=True))
    stream = await sdk.images.generate(
        model="gpt-image-1", prompt="A cat.", size="1024x1024", quality="low", stream=True, partial_images=2
    )
    kinds = [(event.type, event.b64_json == IMAGE) async for event in stream]
    assert kinds == [("image_generation.partial_image", True)] * 2 + [("image_generation.completed", True)]
    await studio.charged(10 + 272 * 30, "reported")


async def test_images_edit_streamed_from_files(studio: Studio, sdk: openai.AsyncOpenAI) -> None:
    completed = {"type": "image_edit.completed", "b64_json": IMAGE, "usage": USAGE}
    studio.shop.upstream.next(events_of(completed, named=True))
    stream = await sdk.images.edit(
        model="gpt-image-1",
        image=[("a.png", PICTURE, "image/png"), ("b.png", PICTURE, "image/png")],
        mask=("m.png", PICTURE, "image/png"),
        prompt="A cat.",
        size="1024x1024",
        quality="low",
        stream=True,
    )
    assert [event.type async for event in stream] == ["image_edit.completed"]
    # Nobody said which of the two tokens were text.
    await studio.charged(2 * 8 + 272 * 30, "reported")


async def test_images_create_variation(studio: Studio, sdk: openai.AsyncOpenAI) -> None:
    studio.shop.upstream.next(json_of(created=1, data=[{"url": "https://x/1.png"}, {"url": "https://x/2.png"}]))
    with pytest.warns(DeprecationWarning, match="deprecated"):
        reply = await sdk.images.create_variation(image=("a.png", PICTURE), model="by-image", n=2, size="1024x1024")
    assert reply.data is not None
    assert len(reply.data) == 2
    await studio.charged(340, "reported")


async def test_speech_as_sound(studio: Studio, sdk: openai.AsyncOpenAI) -> None:
    studio.shop.upstream.next(Media([mp3(20), mp3(30)], "audio/mpeg"))
    async with sdk.audio.speech.with_streaming_response.create(
        model="by-sound", voice="alloy", input="Hello there."
    ) as reply:
        assert b"".join([chunk async for chunk in reply.iter_bytes()]) == mp3(50)
    await studio.charged(3 + 24 * 12, "estimated", "usage_missing")


async def test_speech_as_events(studio: Studio, sdk: openai.AsyncOpenAI) -> None:
    delta = {"type": "speech.audio.delta", "audio": base64.b64encode(mp3(50)).decode()}
    done = {"type": "speech.audio.done", "usage": {"input_tokens": 4, "output_tokens": 23, "total_tokens": 27}}
    studio.shop.upstream.next(events_of(delta, done))
    reply = await sdk.audio.speech.create(model="by-sound", voice="alloy", input="Hello there.", stream_format="sse")
    assert b"speech.audio.done" in reply.content
    await studio.charged(4 + 23 * 12, "reported")


async def test_transcription_streamed(studio: Studio, sdk: openai.AsyncOpenAI) -> None:
    delta = {"type": "transcript.text.delta", "delta": "Hello there."}
    done = {"type": "transcript.text.done", "text": "Hello there.", "usage": TOKENS}
    studio.shop.upstream.next(events_of(delta, done))
    stream = await sdk.audio.transcriptions.create(
        model="by-tokens", file=("speech.wav", wav(3_000)), stream=True, language="en"
    )
    assert [event.type async for event in stream] == ["transcript.text.delta", "transcript.text.done"]
    await studio.charged(30 * 6 + 4 * 2 + 9 * 10, "reported")


async def test_transcription_of_25_mb(studio: Studio, sdk: openai.AsyncOpenAI) -> None:
    studio.shop.upstream.next(json_of(text="Hi", usage={"type": "duration", "seconds": 1_563}))
    reply = await sdk.audio.transcriptions.create(model="by-time", file=("long.mp3", mp3(65_104)))
    assert reply.text == "Hi"
    await studio.charged(1_563_000 * 6, "reported")


async def test_a_translation_as_text(studio: Studio, sdk: openai.AsyncOpenAI) -> None:
    studio.shop.upstream.next(Media(b"Hello there.\n", "text/plain; charset=utf-8"))
    sound = ("speech.wav", wav(3_000))
    with pytest.warns(DeprecationWarning, match="deprecated"):
        reply = await sdk.audio.translations.create(model="by-time", file=sound, response_format="text")
    assert "Hello there." in str(reply)
    await studio.charged(18_000, "estimated", "usage_missing")


async def test_refusals_are_openai_errors(studio: Studio, sdk: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.audio.transcriptions.create(model="by-time", file=("speech.wav", b"no sound at all"))
    assert (caught.value.code, caught.value.param) == ("not_audio", "file")
    with pytest.raises(openai.NotFoundError):
        await sdk.images.generate(model="by-time", prompt="A cat.")
    with pytest.raises(openai.BadRequestError):
        await sdk.audio.speech.create(model="by-sound", voice="alloy", input="")
    await studio.shop.untouched()


@pytest.mark.parametrize("by_client", [False, True], ids=["model", "azure_deployment"])
async def test_the_sdk_for_azure_uploads(studio: Studio, by_client: bool) -> None:
    farebox = studio.shop.farebox
    studio.shop.upstream.next(json_of(text="Hi", usage={"type": "duration", "seconds": 3}))
    options: dict[str, Any] = {"azure_deployment": "by-time"} if by_client else {}
    async with openai.AsyncAzureOpenAI(
        azure_endpoint=farebox.base_url.removesuffix("/v1"),
        api_key=farebox.key,
        api_version="2024-10-21",
        max_retries=0,
        **options,
    ) as client:
        sound = ("speech.wav", wav(3_000))
        reply = await client.audio.transcriptions.create(model="whatever" if by_client else "by-time", file=sound)
    assert reply.text == "Hi"
    assert b'name="model"\r\n\r\nby-time\r\n' in studio.shop.upstream.log[0].body
    await studio.charged(18_000, "reported")


async def test_a_form_by_deployment_needs_no_model(studio: Studio) -> None:
    farebox = studio.shop.farebox
    studio.shop.upstream.next(json_of(text="Hi", usage={"type": "duration", "seconds": 3}))
    url = farebox.base_url.removesuffix("/v1") + "/openai/deployments/by-time/audio/transcriptions"
    data, headers = (
        form_bytes(File("file", wav(3_000), "a.wav")),
        {"api-key": farebox.key, "Content-Type": CONTENT_TYPE},
    )
    async with farebox.session.post(url, data=data, headers=headers) as reply:
        assert (reply.status, (await reply.json())["text"]) == (200, "Hi")
    assert b'name="model"\r\n\r\nby-time\r\n' in studio.shop.upstream.log[0].body
    await studio.charged(18_000, "reported")
