"""Transcriptions: what a form may cost, and what each kind of reply is charged, worked out by hand in nanos.

Prices (tests/support/studio.py): 6 a millisecond, or 6 a token of sound, 2 of text in, 10 of text out. The sound lasts
3 s: 30 tokens; its bound is 5 s, for whole seconds are billed.
"""

from typing import Any

import orjson
import pytest

from gateway.core.catalogue import Meter
from gateway.core.usage import InvalidUsage, Limits
from gateway.endpoints.endpoint import InvalidRequest
from gateway.endpoints.transcription import TranscriptionEndpoint
from gateway.errors import ModelNotFound
from gateway.request.meter import Ending
from tests.support.forms import File, form_of
from tests.support.sounds import mp3, wav
from tests.support.studio import PRICES, charge_of, charge_of_stream, offer_for

ENDPOINT = TranscriptionEndpoint("audio.transcriptions")
SOUND = File("file", wav(3_000), "speech.wav", "audio/wav")
LIMITS = Limits(100_000, 2_000)
EVENTS = "text/event-stream; charset=utf-8"
TOKENS = {"type": "tokens", "input_tokens": 34, "output_tokens": 9, "total_tokens": 43}
DETAILS = {"input_token_details": {"audio_tokens": 30, "text_tokens": 4}}


def form(model: str = "by-time", *items: Any, sound: File = SOUND) -> list[Any]:
    return [("model", model), *items, sound]


def dump(**members: object) -> bytes:
    return orjson.dumps(members)


@pytest.mark.parametrize(
    ("model", "reply", "charge", "basis"),
    [
        ("by-time", dump(text="Hi", usage={"type": "duration", "seconds": 3}), 18_000, "reported"),
        ("by-time", dump(text="Hi", usage={"type": "duration", "seconds": 3.4}), 20_400, "reported"),
        ("by-time", dump(text="Hi", usage={"type": "duration", "seconds": 0}), 18_000, "estimated"),
        ("by-time", dump(text="", duration=3.25, segments=[]), 19_500, "reported"),
        ("by-time", dump(text="", duration="3.25"), 19_500, "reported"),
        ("by-time", dump(text="Hi"), 18_000, "estimated"),
        ("by-time", b"Hello there.\n", 18_000, "estimated"),
        ("by-time", b"\n", 18_000, "estimated"),
        ("by-time", b"WEBVTT\n\n00:00.000 --> 00:03.000\nHi\n", 18_000, "estimated"),
        ("by-time", dump(text="Hi", usage=TOKENS | DETAILS), 18_000, "estimated"),
        ("by-tokens", dump(text="Hi", usage=TOKENS | DETAILS), 30 * 6 + 4 * 2 + 9 * 10, "reported"),
        ("by-tokens", dump(text="Hi", usage=TOKENS), 34 * 6 + 9 * 10, "reported"),
        # Of a whole reply: 3 s are 30 tokens, its text of 12 bytes 3.
        ("by-tokens", dump(text="Hello there."), 30 * 6 + 3 * 10, "estimated"),
        ("by-tokens", b"Hello there.", 30 * 6 + 3 * 10, "estimated"),
        ("by-tokens", dump(text="Hello there.", usage={"type": "duration", "seconds": 3}), 210, "estimated"),
        ("by-tokens", dump(text="Hello there.", usage=TOKENS | {"output_tokens": -1}), 210, "estimated"),
        ("by-tokens", dump(text="Hello there.", usage=TOKENS | {"total_tokens": 9_999}), 210, "estimated"),
    ],
)
def test_a_reply_is_charged(model: str, reply: bytes, charge: int, basis: str) -> None:
    offer = offer_for(ENDPOINT, form(model))
    found = charge_of(offer, reply)
    assert (found.cost_nanos, found.basis) == (charge, basis)
    assert found.cost_nanos <= offer.ceiling.nanos


DELTAS = [b'data: {"type":"transcript.text.delta","delta":"Hello there, "}\n\n'] * 2
DONE = b"data: %b\n\n" % dump(type="transcript.text.done", text="Hello there, Hello there, ", usage=TOKENS | DETAILS)


def test_a_stream_is_charged_by_the_usage_of_its_end() -> None:
    offer = offer_for(ENDPOINT, form("by-tokens", ("stream", "true")))
    assert charge_of_stream(offer, EVENTS, *DELTAS, DONE).cost_nanos == 278
    # Without it by its text: 26 bytes, 7 tokens; cut short after one delta of 13 bytes: 4 tokens.
    assert charge_of_stream(offer, EVENTS, *DELTAS).cost_nanos == 180 + 70
    assert charge_of_stream(offer, EVENTS, DELTAS[0], ending=Ending.BROKE).cost_nanos == 180 + 40
    assert charge_of_stream(offer, EVENTS, ending=Ending.BROKE).is_void


def test_the_bounds() -> None:
    request = offer_for(ENDPOINT, form("by-tokens", ("prompt", "Names: Zoë"), ("language", "en"))).request
    assert request.extra_max[Meter.AUDIO_MILLISECONDS] == 5_000
    assert request.extra_max[Meter.AUDIO_INPUT] == 50
    # 11 bytes of the prompt, 2 of the language, 9 of the model.
    assert request.extra_max[Meter.INPUT] == 256 + 22
    assert request.extra_estimate[Meter.INPUT] == 3
    assert offer_for(ENDPOINT, form("by-time")).ceiling.nanos == 30_000
    assert offer_for(ENDPOINT, form("by-tokens")).ceiling.nanos == 50 * 6 + (256 + 9) * 2 + 2_000 * 10


@pytest.mark.parametrize("model", ["by-character", "by-image"])
def test_a_model_without_a_price_for_sound_is_refused(model: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        offer_for(ENDPOINT, form(model))
    assert caught.value.code == "model_not_priced"


@pytest.mark.parametrize(
    ("items", "refused"),
    [
        ([SOUND], ("model", "invalid_request")),
        ([("model", ""), SOUND], ("model", "invalid_request")),
        ([("model", "m" * 257), SOUND], ("model", "invalid_request")),
        ([("model", "a"), ("model", "b"), SOUND], ("model", "duplicate_member")),
        ([("model", "a"), ("Model", "b"), SOUND], ("model", "duplicate_member")),
        ([("model", "a"), ("model[]", "b"), SOUND], ("model", "duplicate_member")),
        ([("model", "a"), ("model[0]", "b"), SOUND], ("model", "duplicate_member")),
        ([("model", "a"), (" model", "b"), SOUND], ("model", "duplicate_member")),
        ([File("model", b"a"), SOUND], ("model", "invalid_request")),
        ([("model", "a")], ("file", "invalid_request")),
        ([("model", "a"), SOUND, SOUND], ("file", "invalid_request")),
        ([("model", "a"), SOUND, SOUND._replace(name="file[]")], ("file", "duplicate_member")),
        ([("model", "a"), ("file", "RIFF")], ("file", "invalid_request")),
        ([("model", "a"), SOUND._replace(content=b"")], ("file", "not_audio")),
        ([("model", "a"), SOUND._replace(content=b"hello " * 100)], ("file", "not_audio")),
        ([("model", "a"), ("stream", "maybe"), SOUND], ("stream", "invalid_request")),
        ([("model", "a"), ("stream", "true"), ("stream", "false"), SOUND], ("stream", "duplicate_member")),
        ([("model", "a"), ("_charset_", "utf-7"), SOUND], ("_charset_", "invalid_request")),
    ],
)
def test_bad_forms_are_refused(items: list[Any], refused: tuple[str, str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ENDPOINT.read_form(form_of(*items))
    assert (caught.value.param, caught.value.code) == refused


@pytest.mark.parametrize("value", ["true", "True", "1"])
def test_the_order_of_a_form_does_not_matter(value: str) -> None:
    sound = SOUND._replace(content=mp3(100))
    one = ENDPOINT.read_form(form_of(sound, ("stream", value), ("model", "m")))
    assert one == ENDPOINT.read_form(form_of(("model", "m"), sound, ("stream", value)))
    assert one.stream


@pytest.mark.parametrize("seconds", [-1, "NaN", "Infinity", "x", None, True, 10**7, [], {}])
def test_seconds_that_cannot_be(seconds: object) -> None:
    with pytest.raises(InvalidUsage):
        ENDPOINT.read_usage({"type": "duration", "seconds": seconds}, LIMITS)


def test_what_only_looks_like_a_page_is_a_transcript() -> None:
    assert ENDPOINT.read_reply(b"<!DOCTYPE html> is how he began").count_output() > 0
    assert ENDPOINT.read_reply(b'{"error":{"message":"no"}}').failed
    assert PRICES["by-time"][Meter.AUDIO_MILLISECONDS] == 6_000
