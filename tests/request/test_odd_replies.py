"""Replies of media that our parser refuses and a client's may not, that look like something else, or that lie."""

import base64
from typing import Any

import pytest

from tests.request.test_outcomes_media import SOUND, draw, say
from tests.support.sounds import mp3
from tests.support.studio import Studio, studio, studio_all_day
from tests.support.studio_reply import Media, events_of, json_of

__all__ = ["studio", "studio_all_day"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKENS = b'"usage":{"input_tokens":2,"output_tokens":272,"total_tokens":274}'
DRAWN = 2 * 5 + 272 * 30
BY_TIME: list[Any] = [("model", "by-time"), SOUND]
BY_TOKENS: list[Any] = [("model", "by-tokens"), SOUND]
SPOKEN = base64.b64encode(mp3(50))
EVENTS = "text/event-stream"


def event(data: bytes, name: bytes = b"") -> bytes:
    return (b"event: %b\n" % name if name else b"") + b"data: %b\n\n" % data


# Python writes NaN, many clients read it, and JSON has none.
@pytest.mark.parametrize(
    ("path", "body", "reply", "charge"),
    [
        ("/images/generations", draw("by-image"), Media(b'{"data":[{"url":"https://x"}],"t":NaN}'), 10),
        ("/images/generations", draw("gpt-image-1"), Media(b'{"data":[{"url":"x"}],%b,"t":NaN}' % TOKENS), DRAWN),
        (
            "/images/generations",
            draw("gpt-image-1", stream=True),
            Media([event(b'{"type":"image_generation.completed","b64_json":"AA",%b,"t":NaN}' % TOKENS)], EVENTS),
            DRAWN,
        ),
        # The type of an event may stand beside its data only.
        (
            "/images/generations",
            draw("by-image", stream=True),
            Media([event(b'{"b64_json":"AA"}', b"image_generation.completed")], EVENTS),
            10,
        ),
        (
            "/audio/transcriptions",
            [*BY_TOKENS, ("stream", "true")],
            Media([event(b'{"type":"transcript.text.done","text":"hi","p":NaN,"usage":{"type":"tokens",'
                         b'"input_tokens":30,"output_tokens":9,"total_tokens":39}}')], EVENTS),
            30 * 6 + 9 * 10,
        ),
        (
            "/audio/transcriptions",
            BY_TIME,
            Media(b'{"text":"hi","p":NaN,"usage":{"type":"duration","seconds":4}}'),
            24_000,
        ),
        (
            "/audio/speech",
            say("by-sound", stream_format="sse"),
            Media([event(b'{"type":"speech.audio.delta","audio":"%b","t":NaN}' % SPOKEN),
                   event(b'{"type":"speech.audio.done","t":NaN,"usage":{"input_tokens":3,"output_tokens":20,'
                         b'"total_tokens":23}}')], EVENTS),
            3 + 20 * 12,
        ),
    ],
)  # fmt: skip
async def test_what_is_no_json_to_us_is_charged(
    studio: Studio, path: str, body: Any, reply: Media, charge: int
) -> None:
    status, _, _ = await studio.post(path, body, reply)
    assert status == 200
    await studio.charged(charge, "reported")


async def test_details_that_tell_nothing_apart(studio: Studio) -> None:
    """Of images or of sound it is all, where nobody says otherwise: text would be cheaper."""
    usage = {"input_tokens": 2, "output_tokens": 272, "total_tokens": 274}
    drawn = json_of(data=[{"b64_json": "AA"}], usage={**usage, "output_tokens_details": {"reasoning_tokens": 0}})
    await studio.post("/images/generations", draw("gpt-image-1"), drawn)
    await studio.charged(DRAWN, "reported")


async def test_sound_that_details_do_not_tell_apart(studio: Studio) -> None:
    usage = {"type": "tokens", "input_tokens": 30, "output_tokens": 9, "total_tokens": 39}
    heard = json_of(text="hi", usage={**usage, "input_token_details": {"cached_tokens": 0}})
    await studio.post("/audio/transcriptions", BY_TOKENS, heard)
    await studio.charged(30 * 6 + 9 * 10, "reported")


@pytest.mark.parametrize(("kind", "is_page"), [("text/plain", False), ("text/html; charset=utf-8", True)])
async def test_a_transcript_that_looks_like_a_page_is_one(studio: Studio, kind: str, is_page: bool) -> None:
    said = Media(b"<html> is how every page begins, he said", kind)
    await studio.post("/audio/transcriptions", [*BY_TIME, ("response_format", "text")], said)
    event = await studio.shop.event()
    assert (event["charged_nanos"] == 0) is is_page


@pytest.mark.parametrize(
    ("path", "body", "reply"),
    [
        ("/audio/transcriptions", BY_TIME, json_of(text="hi", duration=999_999.0)),
        ("/audio/transcriptions", BY_TIME, json_of(text="hi", usage={"type": "duration", "seconds": 999_999})),
        (
            "/audio/transcriptions",
            BY_TOKENS,
            json_of(text="hi", usage={"input_tokens": 900_000, "output_tokens": 9, "total_tokens": 900_009}),
        ),
        (
            "/audio/speech",
            say("by-sound", stream_format="sse"),
            events_of(
                {"type": "speech.audio.delta", "audio": SPOKEN.decode()},
                {"type": "speech.audio.done",
                 "usage": {"input_tokens": 3, "output_tokens": 1_999_999, "total_tokens": 2_000_002}},
            ),
        ),
        (
            "/images/generations",
            draw("gpt-image-1"),
            json_of(
                data=[{"b64_json": "AA"}],
                usage={"input_tokens": 2, "output_tokens": 1_000_000, "total_tokens": 1_000_002},
            ),
        ),
    ],
)  # fmt: skip
async def test_no_usage_is_believed_that_is_several_times_what_was_asked_for(
    studio: Studio, path: str, body: Any, reply: Media
) -> None:
    """Three seconds of sound are not twelve days. The wallet holds enough for them, and that must not matter."""
    await studio.post(path, body, reply)
    event = await studio.shop.event()
    assert (event["basis"], event["reason"]) == ("estimated", "usage_invalid")
    # A few letters of speech, three seconds of sound, a low image: each is held at less than a cent.
    assert 0 < event["charged_nanos"] < 10_000_000


async def test_sound_that_is_not_even_ascii_is_no_crash(studio: Studio) -> None:
    await studio.post("/audio/speech", say("by-sound"), json_of(audio="é" * 50))
    await studio.shop.event()
    assert studio.shop.count("farebox_crashes_total") == 0
