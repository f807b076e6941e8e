"""The outcome matrix for sound and images: one row each over real sockets, for every kind of reply they have.

Prices: tests/support/studio.py. Speech: the text of 12 bytes is 3 tokens, 24 ms of sound 0.48. The sound to transcribe
lasts 3 s; the image is low and square, 272 tokens at most.
"""

import base64
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import aiohttp
import orjson
import pytest

from gateway.tasks import spawn
from tests.support.call import Gate
from tests.support.forms import CONTENT_TYPE, File, form_bytes
from tests.support.shop import CREDIT_NANOS, client_noticed_gone, settled, until
from tests.support.sounds import mp3, wav
from tests.support.studio import Studio, studio, studio_all_day
from tests.support.studio_reply import Media, events_of, json_of

__all__ = ["studio", "studio_all_day"]
pytestmark = pytest.mark.asyncio(loop_scope="module")


class Row(NamedTuple):
    """One way to ask: the reply with usage and its charge, without usage, and impossible usage."""

    path: str
    body: Any
    reported: Media
    exact: int
    without: Media
    estimate: int
    impossible: Media
    starts: bool  # its reply is passed on as it comes


SOUND = File("file", wav(3_000), "speech.wav", "audio/wav")
CAT = File("image", b"\x89PNG" + bytes(100), "cat.png", "image/png")
TOKENS = {"type": "tokens", "input_tokens": 30, "output_tokens": 9, "total_tokens": 39}
BAD = {"input_tokens": 30, "output_tokens": 9, "total_tokens": 5}
DELTA = {"type": "transcript.text.delta", "delta": "Hello there."}
DONE = {"type": "transcript.text.done", "text": "Hello there."}
SPOKEN = {"type": "speech.audio.delta", "audio": base64.b64encode(mp3(50)).decode()}
IMAGE_USAGE = {"input_tokens": 2, "output_tokens": 272, "total_tokens": 274}
IMAGE = {"prompt": "A cat.", "size": "1024x1024", "quality": "low"}


def say(model: str, **members: object) -> bytes:
    return orjson.dumps({"model": model, "input": "Hello there.", "voice": "alloy"} | members)


def draw(model: str, **members: object) -> bytes:
    return orjson.dumps({"model": model} | IMAGE | members)


def drawn(**members: object) -> Media:
    return json_of(data=[{"b64_json": "A" * 1_000}], **members)


def spoken(**members: object) -> Media:
    return events_of(SPOKEN, {"type": "speech.audio.done", **members})


def image_events(**members: object) -> Media:
    partial = {"type": "image_generation.partial_image", "b64_json": "A" * 400_000}
    completed = {"type": "image_generation.completed", "b64_json": "A" * 400_000, **members}
    return events_of(partial, completed, named=True)


ROWS: Mapping[str, Row] = {
    "transcription": Row(
        "/audio/transcriptions",
        [("model", "by-tokens"), SOUND],
        json_of(text="Hello there.", usage=TOKENS),
        30 * 6 + 90,
        json_of(text="Hello there."),
        30 * 6 + 30,
        json_of(text="Hello there.", usage=BAD),
        False,
    ),
    "transcription by time": Row(
        "/audio/transcriptions",
        [("model", "by-time"), SOUND],
        json_of(text="Hello there.", usage={"type": "duration", "seconds": 4}),
        24_000,
        Media(b"Hello there.\n", "text/plain"),
        18_000,
        json_of(text="Hello there.", usage={"type": "duration", "seconds": -4}),
        False,
    ),
    "translation": Row(
        "/audio/translations",
        [SOUND, ("model", "by-time")],
        json_of(text="Hello there.", duration=3.5),
        21_000,
        json_of(text="Hello there."),
        18_000,
        json_of(text="Hello there.", duration="for ever"),
        False,
    ),
    "transcription stream": Row(
        "/audio/transcriptions",
        [("model", "by-tokens"), ("stream", "true"), SOUND],
        events_of(DELTA, DONE | {"usage": TOKENS}),
        30 * 6 + 90,
        events_of(DELTA, DONE),
        30 * 6 + 30,
        events_of(DELTA, DONE | {"usage": BAD}),
        True,
    ),
    "speech stream": Row(
        "/audio/speech",
        say("by-sound", stream_format="sse"),
        spoken(usage={"input_tokens": 4, "output_tokens": 23, "total_tokens": 27}),
        4 + 23 * 12,
        spoken(),
        3 + 24 * 12,
        spoken(usage=BAD),
        True,
    ),
    "images": Row(
        "/images/generations",
        draw("gpt-image-1"),
        drawn(usage=IMAGE_USAGE),
        2 * 5 + 272 * 30,
        drawn(),
        2 * 5 + 272 * 30,
        drawn(usage=BAD),
        False,
    ),
    "images stream": Row(
        "/images/generations",
        draw("gpt-image-1", stream=True, partial_images=1),
        image_events(usage=IMAGE_USAGE | {"output_tokens": 372, "total_tokens": 374}),
        2 * 5 + 372 * 30,
        image_events(),
        2 * 5 + 272 * 30,
        image_events(usage=BAD),
        True,
    ),
    "edits": Row(
        "/images/edits",
        [("model", "gpt-image-1"), *IMAGE.items(), CAT],
        drawn(usage=IMAGE_USAGE | {"input_tokens_details": {"image_tokens": 2}}),
        2 * 8 + 272 * 30,
        drawn(),
        2 * 5 + 4_160 * 8 + 272 * 30,
        drawn(usage=BAD),
        False,
    ),
}
rows = pytest.mark.parametrize("name", ROWS)


@rows
async def test_usage_is_charged_exactly(studio: Studio, name: str) -> None:
    row = ROWS[name]
    status, headers, body = await studio.post(row.path, row.body, row.reported)
    sent = row.reported.body
    assert (status, body) == (200, sent if isinstance(sent, bytes) else b"".join(sent))
    await studio.charged(row.exact, "reported")
    assert row.starts or "x-farebox-cost" in headers


@rows
async def test_missing_usage_is_estimated(studio: Studio, name: str) -> None:
    row = ROWS[name]
    await studio.post(row.path, row.body, row.without)
    await studio.charged(row.estimate, "estimated", "usage_missing")


@rows
async def test_impossible_usage_is_charged_as_missing(studio: Studio, name: str) -> None:
    row = ROWS[name]
    await studio.post(row.path, row.body, row.impossible)
    await studio.charged(row.estimate, "estimated", "usage_invalid")


@rows
async def test_a_refusal_is_not_charged(studio: Studio, name: str) -> None:
    row = ROWS[name]
    refusal = Media(b'{"error":{"message":"no"}}', status=400)
    status, _, body = await studio.post(row.path, row.body, refusal)
    assert (status, body) == (400, refusal.body)
    await studio.charged(0, "none", "upstream_refused")


@rows
async def test_a_reply_that_breaks_is_charged_for_what_came(studio: Studio, name: str) -> None:
    row = ROWS[name]
    pieces = row.without.body
    first = pieces[0] if isinstance(pieces, list) else pieces[: len(pieces) // 2]
    broken = Media([first], row.without.content_type, end="close")
    status, _, _ = await studio.post(row.path, row.body, broken)
    if row.starts:
        assert status == 200
        await studio.charged(row.estimate, "estimated", "upstream_broke")
    else:
        assert status == 502
        await studio.charged(0, "none", "upstream_broke")


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.starts])
async def test_a_client_that_leaves_is_charged_the_usage_that_comes(studio: Studio, name: str) -> None:
    row, shop, gate = ROWS[name], studio.shop, Gate()
    assert isinstance(row.reported.body, list)
    shop.upstream.next(Media(row.reported.body, row.reported.content_type, gate=gate))
    is_json = isinstance(row.body, bytes)
    sent = shop.farebox.headers() | {"Content-Type": "application/json" if is_json else CONTENT_TYPE}
    data = row.body if is_json else form_bytes(*row.body)
    reply = await shop.farebox.session.post(shop.farebox.base_url + row.path, data=data, headers=sent)
    await reply.content.readany()
    await gate.arrived()
    reply.close()
    await client_noticed_gone(shop.farebox)
    gate.open()
    await studio.charged(row.exact, "reported", "client_gone")


# Sound that is passed on as it comes has no usage at all --------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "charge", "basis", "reason"),
    [("by-sound", 3 + 24 * 12, "estimated", "usage_missing"), ("by-character", 180, "reported", None)],
)
async def test_binary_speech(studio: Studio, model: str, charge: int, basis: str, reason: str | None) -> None:
    sound = Media([mp3(20), mp3(30)], "audio/mpeg")
    status, headers, body = await studio.post("/audio/speech", say(model), sound)
    assert (status, headers["Content-Type"], body) == (200, "audio/mpeg", mp3(50))
    await studio.charged(charge, basis, reason)


async def test_binary_speech_comes_before_its_end(studio: Studio) -> None:
    shop, gate = studio.shop, Gate()
    shop.upstream.next(Media([mp3(150), mp3(140), mp3(10)], "audio/mpeg", gate=gate))
    url = shop.farebox.base_url + "/audio/speech"
    async with shop.farebox.session.post(url, data=say("by-sound"), headers=shop.farebox.headers()) as reply:
        assert len(await reply.content.readexactly(111_000)) == 111_000
        gate.open()
        assert len(await reply.read()) == len(mp3(300)) - 111_000
    # 7.2 s, which is more than a stream of text without a cap may run on.
    await studio.charged(3 + 144 * 12, "estimated", "usage_missing")


@pytest.mark.parametrize(("frames", "charge"), [(25, 3 + 12 * 12), (0, 0)])
async def test_binary_speech_that_breaks(studio: Studio, frames: int, charge: int) -> None:
    shop = studio.shop
    shop.upstream.next(Media([mp3(frames)], "audio/mpeg", end="close"))
    url = shop.farebox.base_url + "/audio/speech"
    with pytest.raises(aiohttp.ClientError):
        async with shop.farebox.session.post(url, data=say("by-sound"), headers=shop.farebox.headers()) as reply:
            await reply.read()
    await studio.charged(charge, "estimated" if charge else "none", "upstream_broke")


async def test_a_large_reply_passes_as_it_comes(studio: Studio) -> None:
    image = orjson.dumps({"data": [{"b64_json": "A" * 3_000_000}] * 2, "usage": IMAGE_USAGE})
    without = orjson.dumps({"data": [{"b64_json": "A" * 3_000_000}] * 2})
    for body in (image, without):
        pieces = [body[at : at + 500_000] for at in range(0, len(body), 500_000)]
        status, headers, got = await studio.post("/images/generations", draw("gpt-image-1", n=2), Media(pieces))
        assert (status, got == body) == (200, True)
        assert "x-farebox-cost" not in headers
    await until(lambda: studio.shop.farebox.app.gateway.unsettled == 0)
    events = await studio.shop.farebox.usage()
    assert [event["cost_nanos"] for event in events] == [2 * 5 + 2 * 272 * 30, 2 * 5 + 272 * 30]
    assert [event["basis"] for event in events] == ["estimated", "reported"]


async def test_funds_that_do_not_cover_it(studio: Studio) -> None:
    shop = studio.shop
    _, key = await shop.farebox.new_wallet("0.000001")
    for row in ROWS.values():
        is_json = isinstance(row.body, bytes)
        headers = shop.farebox.headers(key) | {"Content-Type": "application/json" if is_json else CONTENT_TYPE}
        data = row.body if is_json else form_bytes(*row.body)
        async with shop.farebox.session.post(shop.farebox.base_url + row.path, data=data, headers=headers) as reply:
            assert (reply.status, b"insufficient_funds" in await reply.read()) == (402, True)
    assert not shop.upstream.log


async def test_a_reply_that_is_looked_through_is_whole_and_kept_for_a_retry(studio: Studio) -> None:
    image = orjson.dumps({"data": [{"b64_json": "A" * 700_000}], "usage": IMAGE_USAGE})
    asked = orjson.dumps({"model": "gpt-image-1", "prompt": "A cat.", "size": "1024x1024", "quality": "low"})
    behaviour = Media([image[at : at + 50_000] for at in range(0, len(image), 50_000)])
    first, second = [
        await studio.post("/images/generations", asked, behaviour, **{"Idempotency-Key": "one-cat"}) for _ in range(2)
    ]
    assert (first[0], second[0], first[2], second[2]) == (200, 200, image, image)
    assert second[1]["idempotent-replayed"] == "true"
    assert first[1]["x-farebox-cost"] == second[1]["x-farebox-cost"]
    assert len(studio.shop.upstream.log) == 1
    await studio.charged(10 + 272 * 30, "reported")


@rows
async def test_a_call_whose_gateway_seems_dead_is_swept_and_settled_late(studio: Studio, name: str) -> None:
    row, gate, farebox = ROWS[name], Gate(), studio.shop.farebox
    asking = spawn(studio.post(row.path, row.body, dataclasses.replace(row.reported, gate=gate)), name="call")
    await gate.arrived()
    await studio.shop.presume_dead()
    [swept] = await farebox.usage()
    assert (swept["resolution"], swept["reason"], swept["charged_nanos"]) == ("expired", "swept", 0)
    assert (await farebox.wallet())["held_nanos"] == 0
    gate.open()
    assert (await asking)[0] == 200
    await settled(farebox)
    assert sorted(event["charged_nanos"] for event in await farebox.usage()) == [0, row.exact]
    assert (await farebox.wallet())["balance_nanos"] == CREDIT_NANOS - row.exact
