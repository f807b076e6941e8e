"""The official Node SDK asks for texts, images and sound. tests/clients/node/surface.mjs plays the customer."""

import base64
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from tests.support.gateway import MODEL
from tests.support.node import NodeClient, node
from tests.support.sounds import mp3, wav
from tests.support.studio import Studio, studio, studio_all_day
from tests.support.studio_reply import Media, events_of, json_of
from tests.support.text_replies import COMPLETION, COMPLETION_CHUNKS, EMBEDDINGS, MODERATION, TEXT_USAGE

__all__ = ["node", "studio", "studio_all_day"]
pytestmark = pytest.mark.asyncio(loop_scope="module")

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(5_000)
IMAGE = base64.b64encode(PICTURE).decode()
IMAGE_USAGE = {"input_tokens": 2, "output_tokens": 272, "total_tokens": 274}
TOKENS = {
    "type": "tokens",
    "input_tokens": 34,
    "input_token_details": {"audio_tokens": 30, "text_tokens": 4},
    "output_tokens": 9,
    "total_tokens": 43,
}
Ask = Callable[[str, Media], Awaitable[Any]]


@pytest_asyncio.fixture(loop_scope="module")
async def ask(node: NodeClient, studio: Studio) -> Ask:
    """Play one scenario, which the upstream answers so."""

    async def play(scenario: str, behaviour: Media) -> Any:
        studio.shop.upstream.next(behaviour)
        farebox = studio.shop.farebox
        files = {
            "PICTURE": base64.b64encode(PICTURE).decode(),
            "SOUND": base64.b64encode(wav(3_000)).decode(),
        }
        seen = await node.play(scenario, base_url=farebox.base_url, key=farebox.key, MODEL=MODEL, **files)
        return seen[scenario]

    return play


async def test_completions(studio: Studio, ask: Ask) -> None:
    seen = await ask("completions", json_of(**COMPLETION))
    assert seen == {"text": " something.", "usage": TEXT_USAGE}
    await studio.charged(1 + 4 * 3, "reported")


async def test_completions_streamed(studio: Studio, ask: Ask) -> None:
    seen = await ask("completions_stream", events_of(*COMPLETION_CHUNKS))
    assert seen == {"text": " something.", "usages": []}, "nobody asked for the usage but the gateway"
    await studio.charged(1 + 4 * 3, "reported")


async def test_embeddings(studio: Studio, ask: Ask) -> None:
    seen = await ask("embeddings", json_of(**EMBEDDINGS))
    assert seen == {"vectors": [[0.5, -1.0], [0.25, 2.0]], "usage": {"prompt_tokens": 2, "total_tokens": 2}}
    await studio.charged(2, "reported")


async def test_moderations(studio: Studio, ask: Ask) -> None:
    assert await ask("moderations", json_of(**MODERATION)) == {"flagged": [False]}
    await studio.charged(7, "reported")


async def test_images(studio: Studio, ask: Ask) -> None:
    seen = await ask("images_generate", json_of(created=1, data=[{"b64_json": IMAGE}], usage=IMAGE_USAGE))
    assert seen == {"bytes": len(IMAGE), "usage": IMAGE_USAGE}
    await studio.charged(10 + 272 * 30, "reported")


async def test_partial_images(studio: Studio, ask: Ask) -> None:
    partial = {"type": "image_generation.partial_image", "b64_json": IMAGE, "partial_image_index": 0}
    completed = {"type": "image_generation.completed", "b64_json": IMAGE, "usage": IMAGE_USAGE}
    seen = await ask("images_generate_stream", events_of(partial, partial, completed, named=True))
    assert seen == {"kinds": [partial["type"], partial["type"], completed["type"]]}
    await studio.charged(10 + 272 * 30, "reported")


async def test_an_edit_of_files_streamed(studio: Studio, ask: Ask) -> None:
    completed = {"type": "image_edit.completed", "b64_json": IMAGE, "usage": IMAGE_USAGE}
    assert await ask("images_edit_stream", events_of(completed, named=True)) == {"kinds": ["image_edit.completed"]}
    await studio.charged(2 * 8 + 272 * 30, "reported")


async def test_variations(studio: Studio, ask: Ask) -> None:
    urls = ["https://x/1.png", "https://x/2.png"]
    seen = await ask("images_variation", json_of(created=1, data=[{"url": url} for url in urls]))
    assert seen == {"urls": urls}
    await studio.charged(340, "reported")


async def test_speech(studio: Studio, ask: Ask) -> None:
    seen = await ask("speech", Media([mp3(20), mp3(30)], "audio/mpeg"))
    assert seen == {"bytes": len(mp3(50)), "content_type": "audio/mpeg"}
    await studio.charged(3 + 24 * 12, "estimated", "usage_missing")


async def test_speech_as_events(studio: Studio, ask: Ask) -> None:
    delta = {"type": "speech.audio.delta", "audio": base64.b64encode(mp3(50)).decode()}
    done = {"type": "speech.audio.done", "usage": {"input_tokens": 4, "output_tokens": 23, "total_tokens": 27}}
    seen = await ask("speech_events", events_of(delta, done))
    assert "speech.audio.done" in seen["text"]
    await studio.charged(4 + 23 * 12, "reported")


async def test_a_transcription(studio: Studio, ask: Ask) -> None:
    seen = await ask("transcription", json_of(text="Hi", usage={"type": "duration", "seconds": 3}))
    assert seen == {"text": "Hi"}
    await studio.charged(18_000, "reported")


async def test_a_transcription_streamed(studio: Studio, ask: Ask) -> None:
    delta = {"type": "transcript.text.delta", "delta": "Hello there."}
    done = {"type": "transcript.text.done", "text": "Hello there.", "usage": TOKENS}
    assert await ask("transcription_stream", events_of(delta, done)) == {"kinds": [delta["type"], done["type"]]}
    await studio.charged(30 * 6 + 4 * 2 + 9 * 10, "reported")


async def test_a_translation(studio: Studio, ask: Ask) -> None:
    assert await ask("translation", Media(b"Hello.\n", "text/plain; charset=utf-8")) == {"text": "Hello.\n"}
    await studio.charged(18_000, "estimated", "usage_missing")


async def test_a_refusal_is_the_sdks_own_error(studio: Studio, ask: Ask) -> None:
    seen = await ask("no_sound", json_of())
    assert (seen["class"], seen["status"], seen["code"]) == ("BadRequestError", 400, "not_audio")
    await studio.shop.untouched()
