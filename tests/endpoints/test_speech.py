"""Speech: what a text may cost to be read, and what each kind of reply is charged, worked out by hand in nanos.

Prices (tests/support/studio.py): 15 a character; or 1 a token of text and 12 a token of sound, 20 a second. The text
has 12 characters.
"""

import base64
from typing import Any

import orjson
import pytest

from gateway.core.catalogue import Meter
from gateway.core.usage import InvalidUsage, Limits
from gateway.endpoints.endpoint import Changes, InvalidRequest
from gateway.endpoints.speech import SpeechEndpoint, sound_tokens_max
from gateway.errors import ModelNotFound
from gateway.request.meter import Ending
from tests.support.sounds import mp3, opus, wav
from tests.support.studio import charge_of, charge_of_stream, offer_for

ENDPOINT = SpeechEndpoint()
LIMITS = Limits(100_000, 2_000)
TEXT = "Hello there."
USAGE = {"input_tokens": 4, "output_tokens": 23, "total_tokens": 27}


def body(model: str = "by-sound", **members: object) -> bytes:
    return orjson.dumps({"model": model, "input": TEXT, "voice": "alloy"} | members)


def event(**members: object) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(members)


def delta(sound: bytes) -> bytes:
    return event(type="speech.audio.delta", audio=base64.b64encode(sound).decode())


DONE = event(type="speech.audio.done", usage=USAGE)


@pytest.mark.parametrize(
    ("model", "content_type", "pieces", "charge", "basis"),
    [
        # By characters: exactly known, whatever comes.
        ("by-character", "audio/mpeg", [mp3(50)], 12 * 15, "reported"),
        ("by-character", "text/event-stream", [delta(mp3(50)), DONE], 12 * 15, "reported"),
        ("by-character", "text/event-stream", [delta(mp3(50))], 12 * 15, "reported"),
        # 1.2 s are 24 tokens; the text of 12 bytes is 3.
        ("by-sound", "audio/mpeg", [mp3(50)], 3 + 24 * 12, "estimated"),
        ("by-sound", "application/octet-stream", [mp3(20), mp3(30)], 3 + 24 * 12, "estimated"),
        ("by-sound", "audio/opus", [opus(60)], 3 + 24 * 12, "estimated"),
        ("by-sound", "audio/wav", [wav(1_200, hertz=24_000)], 3 + 24 * 12, "estimated"),
        ("by-sound", "audio/pcm", [bytes(48 * 1_200)], 3 + 24 * 12, "estimated"),
        ("by-sound", "text/event-stream", [delta(mp3(25)), delta(mp3(25)), DONE], 4 + 23 * 12, "reported"),
        ("by-sound", "text/event-stream", [delta(mp3(25)), delta(mp3(25))], 3 + 24 * 12, "estimated"),
    ],
)
def test_a_reply_is_charged(model: str, content_type: str, pieces: list[bytes], charge: int, basis: str) -> None:
    offer = offer_for(ENDPOINT, body(model))
    found = charge_of_stream(offer, content_type, *pieces)
    assert (found.cost_nanos, found.basis) == (charge, basis)
    assert found.cost_nanos <= offer.ceiling.nanos


def test_half_a_reply_is_what_was_relayed_and_none_is_nothing() -> None:
    offer = offer_for(ENDPOINT, body())
    half = charge_of_stream(offer, "audio/mpeg", mp3(25), ending=Ending.BROKE)
    assert (half.cost_nanos, half.basis, half.reason) == (3 + 12 * 12, "estimated", "upstream_broke")
    assert charge_of_stream(offer, "audio/mpeg", ending=Ending.BROKE).is_void
    characters = offer_for(ENDPOINT, body("by-character"))
    assert charge_of_stream(characters, "audio/mpeg", ending=Ending.BROKE).is_void
    assert charge_of_stream(characters, "audio/mpeg", mp3(1), ending=Ending.BROKE).cost_nanos == 180


def test_the_last_bytes_of_sound_wait_for_the_settle() -> None:
    reader = ENDPOINT.reply_reader("audio/mpeg", offer_for(ENDPOINT, body()).request)
    assert reader is not None
    passed = reader.feed(mp3(3))
    assert 0 < len(passed) < len(mp3(3))
    assert passed + reader.finish() == mp3(3)


def test_json_where_sound_was_asked_for() -> None:
    offer = offer_for(ENDPOINT, body())
    assert ENDPOINT.reply_reader("application/json", offer.request) is None
    assert charge_of(offer, b'{"error":{"message":"no"}}').is_void
    with_sound = orjson.dumps({"audio": base64.b64encode(mp3(50)).decode()})
    assert charge_of(offer, with_sound).cost_nanos == 291
    assert not ENDPOINT.read_reply(b"<html>").count_output()


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("Hi", 11 + 200), ("x" * 4_096, 21_846 + 200), ("你好", 32 + 200), ("7", 43 + 200), ("٣", 48 + 200)],
)
def test_the_bound_of_the_sound(text: str, tokens: int) -> None:
    assert sound_tokens_max(text) == tokens


def test_the_bounds() -> None:
    extra = offer_for(ENDPOINT, body(instructions="Slowly.")).request.extra_max
    assert extra == {Meter.CHARACTERS: 12, Meter.INPUT: 12 + 7 + 256, Meter.AUDIO_OUTPUT: 264}
    assert ENDPOINT.read_request(body(input="Zoë 😀")).extra_max[Meter.CHARACTERS] == 5
    with pytest.raises(ModelNotFound):
        offer_for(ENDPOINT, body("by-time"))


@pytest.mark.parametrize(
    ("members", "refused"),
    [
        ({"model": None}, ("model", "invalid_request")),
        ({"model": 7}, ("model", "invalid_request")),
        ({"input": None}, ("input", "invalid_request")),
        ({"input": ""}, ("input", "invalid_request")),
        ({"input": ["a"]}, ("input", "invalid_request")),
        ({"input": 12}, ("input", "invalid_request")),
        ({"Input": "a"}, ("input", "duplicate_member")),
        ({"instructions": 1}, ("instructions", "invalid_request")),
        ({"stream_format": "ogg"}, ("stream_format", "invalid_request")),
        ({"stream_format": True}, ("stream_format", "invalid_request")),
    ],
)
def test_bad_requests_are_refused(members: dict[str, Any], refused: tuple[str, str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ENDPOINT.read_request(body(**members))
    assert (caught.value.param, caught.value.code) == refused


def test_a_text_given_twice_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        ENDPOINT.read_request(body().replace(b'"input"', b'"input":"x","input"'))
    assert caught.value.code == "duplicate_member"


def test_usage_that_cannot_be() -> None:
    assert ENDPOINT.read_usage({"input_tokens": 0, "output_tokens": 0}, LIMITS) is None
    for usage in ({"input_tokens": 4, "output_tokens": 0}, USAGE | {"total_tokens": 3}, USAGE | {"output_tokens": -1}):
        with pytest.raises(InvalidUsage):
            ENDPOINT.read_usage(usage, LIMITS)


def test_the_model_is_renamed_and_nothing_else() -> None:
    sent = ENDPOINT.upstream_body(body(), Changes("tts-9", include_usage=True, output_tokens_cap=5))
    assert sent == body("tts-9")
    assert ENDPOINT.upstream_body(body(), Changes()) == body()
