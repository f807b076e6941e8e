"""What a response and a transcription cost, worked out by hand, and the bounds that no truthful usage passes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.catalogue import Meter, Model, Rates
from gateway.core.usage import InvalidUsage, Limits
from gateway.endpoints.endpoint import OUTPUT_TOKENS, Changes, Endpoint, InvalidRequest
from gateway.endpoints.realtime import (
    Conversation,
    Extent,
    RealtimeEndpoint,
    Sound,
    TranscriptionEndpoint,
    response_request,
    transcription_request,
)
from gateway.endpoints.realtime_events import read_upstream
from gateway.endpoints.realtime_frames import read_client
from gateway.errors import ModelNotFound
from gateway.request.admit import Offer, Route, priced
from gateway.request.meter import Ending, Seen, meter
from tests.support.offers import hold_of, price_of, upstream_of
from tests.support.realtime import CONTEXT, OUTPUT, frame, sound

MODEL = Model("gpt-realtime", CONTEXT, OUTPUT)
# Dollars per million tokens, as published: text 4.00, cached 0.40, out 16.00; sound 32.00, cached 0.40, out 64.00.
RATES: Rates = {
    Meter.INPUT: 4_000_000, Meter.CACHED_INPUT: 400_000, Meter.OUTPUT: 16_000_000, Meter.AUDIO_INPUT: 32_000_000,
    Meter.CACHED_AUDIO_INPUT: 400_000, Meter.AUDIO_OUTPUT: 64_000_000, Meter.IMAGE_INPUT: 5_000_000,
}  # fmt: skip
TRANSCRIBE: Rates = {Meter.INPUT: 2_500_000, Meter.AUDIO_INPUT: 6_000_000, Meter.OUTPUT: 10_000_000}
ROUTES = (Route(upstream_of(), "model"),)
WHISPER: Rates = {Meter.AUDIO_MILLISECONDS: 100_000}  # 0.006 dollars a minute


def offered(extent: Extent, rates: Rates = RATES) -> Offer:
    price = price_of(MODEL.name, rates)
    request = response_request(MODEL.name, extent, {}, MODEL, price, OUTPUT_TOKENS)
    return priced(RealtimeEndpoint(), request, b"", (MODEL, price, ROUTES), min_output_tokens=1, hold_slice_tokens=1)


def transcribed(rates: Rates, seconds: int = 60) -> Offer:
    of = Sound(seconds * 1_000, 0)
    request = transcription_request("model", of, MODEL)
    found = (MODEL, price_of("model", rates), ROUTES)
    return priced(TranscriptionEndpoint(of.milliseconds), request, b"", found, min_output_tokens=1, hold_slice_tokens=1)


def u10(text: int, audio: int, image: int, out: int, out_audio: int, **more: Any) -> dict[str, Any]:
    into = text + audio + image
    return {
        "total_tokens": into + out + out_audio,
        "input_tokens": into,
        "output_tokens": out + out_audio,
        "input_token_details": {"text_tokens": text, "audio_tokens": audio, "image_tokens": image, **more},
        "output_token_details": {"text_tokens": out, "audio_tokens": out_audio},
    }


CACHED_TEXT = {"cached_tokens": 64, "cached_tokens_details": {"text_tokens": 64, "audio_tokens": 0, "image_tokens": 0}}
CACHED_BOTH = {"cached_tokens": 768, "cached_tokens_details": {"text_tokens": 128, "audio_tokens": 640}}
# Usage, and the charge in nanos: 4,000 a token of text, 400 cached, 16,000 out; 32,000 of sound, 64,000 out; 5,000.
GOLDEN = [
    # 55 x 4,000 + 64 x 400 + 13 x 32,000 + 30 x 16,000 + 91 x 64,000
    (u10(119, 13, 0, 30, 91, **CACHED_TEXT), 220_000 + 25_600 + 416_000 + 480_000 + 5_824_000),
    # 72 x 4,000 + 128 x 400 + 160 x 32,000 + 640 x 400 + 10 x 16,000 + 50 x 64,000
    (u10(200, 800, 0, 10, 50, **CACHED_BOTH), 288_000 + 51_200 + 5_120_000 + 256_000 + 160_000 + 3_200_000),
    # Nobody says what was cached: it counts as text. 200 x 4,000 + 100 x 400 + 200 x 32,000 + 10 x 16,000
    (u10(300, 200, 0, 10, 0, cached_tokens=100), 800_000 + 40_000 + 6_400_000 + 160_000),
    # 100 x 4,000 + 1,200 x 5,000 + 40 x 16,000
    (u10(100, 0, 1_200, 40, 0), 400_000 + 6_000_000 + 640_000),
    # Without details all is text: 50 x 4,000 + 20 x 16,000
    ({"input_tokens": 50, "output_tokens": 20, "total_tokens": 70}, 200_000 + 320_000),
    # What went in follows from the total: 100 x 4,000 + 20 x 16,000
    ({"output_tokens": 20, "total_tokens": 120}, 400_000 + 320_000),
]
U11 = [
    # 13 x 6,000 + 9 x 10,000
    (TRANSCRIBE, {"type": "tokens", "total_tokens": 22, "input_tokens": 13, "output_tokens": 9,
                  "input_token_details": {"text_tokens": 0, "audio_tokens": 13}}, 78_000 + 90_000),
    # 10 x 2,500 + 20 x 6,000 + 5 x 10,000
    (TRANSCRIBE, {"type": "tokens", "total_tokens": 35, "input_tokens": 30, "output_tokens": 5,
                  "input_token_details": {"text_tokens": 10, "audio_tokens": 20}}, 25_000 + 120_000 + 50_000),
    # 3,500 ms x 100, to the nearest millisecond
    (WHISPER, {"type": "duration", "seconds": 3.5}, 350_000),
    (WHISPER, {"type": "duration", "seconds": 7}, 700_000),
    (WHISPER, {"type": "duration", "seconds": 2.0004}, 200_000),
]  # fmt: skip


def charged(offer: Offer, usage: dict[str, Any]) -> tuple[int, str]:
    charge = meter(offer, hold_of(offer), Seen(Ending.COMPLETED, usage, int))
    return charge.cost_nanos, charge.basis


@pytest.mark.parametrize(("usage", "nanos"), GOLDEN)
def test_responses_by_hand(usage: dict[str, Any], nanos: int) -> None:
    assert charged(offered(Extent(1_000, 1_000, 2_000, 0, 200)), usage) == (nanos, "reported")


@pytest.mark.parametrize(("rates", "usage", "nanos"), U11)
def test_transcriptions_by_hand(rates: Rates, usage: dict[str, Any], nanos: int) -> None:
    offer = transcribed(rates)
    assert charged(offer, usage) == (nanos, "reported")
    assert nanos <= offer.ceiling.nanos


@pytest.mark.parametrize("seconds", [-1, True, "three", float("inf"), float("nan"), 10**10, 61.0, [3]])
def test_a_duration_that_cannot_be_true(seconds: object) -> None:
    with pytest.raises(InvalidUsage):
        TranscriptionEndpoint(60_000).read_usage({"type": "duration", "seconds": seconds}, Limits(1, 1))


def test_a_duration_of_nothing_says_nothing() -> None:
    assert TranscriptionEndpoint(60_000).read_usage({"seconds": 0.0}, Limits(1, 1)) is None


tokens = st.integers(0, 3_000)


@given(text=tokens, audio=tokens, image=tokens, returned=tokens, cap=st.integers(1, OUTPUT), data=st.data())
def test_no_truthful_usage_passes_the_ceiling(
    text: int, audio: int, image: int, returned: int, cap: int, data: st.DataObject
) -> None:
    offer = offered(Extent(text, audio, image, returned, cap))
    # What a response said comes back as text or as sound.
    again = data.draw(st.integers(0, returned))
    out = data.draw(st.integers(0, cap))
    said = data.draw(st.integers(0, out))
    usage = u10(text + again, audio + returned - again, image, out - said, said)
    assert meter(offer, hold_of(offer), Seen(Ending.COMPLETED, usage, int)).cost_nanos <= offer.ceiling.nanos


def test_what_nobody_knows_is_bounded_by_the_context() -> None:
    whole = CONTEXT * 32_000 + 100 * 64_000
    assert offered(Extent(1, 0, 0, 0, 100, is_unbounded=True)).ceiling.nanos == whole
    assert offered(Extent(0, CONTEXT, 0, 0, 100)).ceiling.nanos == whole
    assert offered(Extent(20_000, 6_000, 6_000, 0, 100)).ceiling.nanos == whole
    assert offered(Extent(1_000, 10, 0, 0, 10**9)).ceiling.output_tokens_max == OUTPUT


@pytest.mark.parametrize("missing", [Meter.AUDIO_INPUT, Meter.AUDIO_OUTPUT, Meter.OUTPUT, Meter.INPUT])
def test_a_model_without_a_price_for_it_is_refused(missing: str) -> None:
    with pytest.raises(ModelNotFound):
        offered(Extent(1, 1, 1, 0, 1), {meter: rate for meter, rate in RATES.items() if meter is not missing})
    if missing in TRANSCRIBE:
        with pytest.raises(ModelNotFound):
            transcribed({meter: rate for meter, rate in TRANSCRIBE.items() if meter is not missing})


def test_a_conversation_only_grows() -> None:
    talk = Conversation()
    before = talk.extent(10, 0)
    append = frame("input_audio_buffer.append", audio=sound(2))
    talk.add(read_client(append))
    after = talk.extent(10, 5)
    assert (after.audio_tokens - before.audio_tokens, after.returned_tokens) == (20, 5)
    assert talk.sound().milliseconds == 2_000
    talk.add(read_client(frame("session.update", session={"audio": {"input": {"format": {"type": "audio/pcmu"}}}})))
    # The same bytes may be six times as much sound.
    assert talk.extent(10, 0).audio_tokens == 120
    assert talk.committed().milliseconds == 12_000
    talk.responded(input_tokens=10_000, output_tokens=7)
    assert talk.extent(10, 0).returned_tokens == 7
    assert sum(talk.extent(10, 0)[:4]) >= 10_007


def test_after_a_commit_only_so_much_sound_is_carried_over() -> None:
    talk = Conversation()
    for _ in range(5):
        talk.add(read_client(frame("input_audio_buffer.append", audio=sound(20))))
    assert talk.committed().milliseconds == 100_000
    assert talk.sound().milliseconds == 30_000


def test_a_lower_cap_counts_when_it_is_announced() -> None:
    """Else a refused update would leave a session that holds too little."""
    talk = Conversation()

    def update(cap: object) -> None:
        talk.add(read_client(frame("session.update", session={"max_output_tokens": cap})))

    def announce(cap: object) -> None:
        data = frame("session.updated", session={"max_output_tokens": cap})
        session = read_upstream(data).session
        assert session is not None
        talk.announced(session, len(data), is_answer=True)

    update(100)
    assert talk.output_tokens_max(4_096) == 4_096
    announce(100)
    assert talk.output_tokens_max(4_096) == 100
    update("inf")
    assert talk.output_tokens_max(4_096) == 4_096
    update(50)
    announce("inf")
    announce(50)
    assert talk.output_tokens_max(4_096) == 50


def test_what_a_session_is_asked_for() -> None:
    endpoints: list[Endpoint] = [RealtimeEndpoint(), TranscriptionEndpoint(1)]
    for endpoint in endpoints:
        assert endpoint.read_request(b'{"model":"m"}').model == "m"
        for body in (b"{}", b'{"model":""}', b'{"model":1}', b"[]", b'{"model":"%b"}' % (b"m" * 300)):
            with pytest.raises(InvalidRequest):
                endpoint.read_request(body)
        assert endpoint.error_end({"error": {}}) == b'{"type":"error","error":{}}'
        assert endpoint.reply_reader("", endpoint.read_request(b'{"model":"m"}')) is None
        assert endpoint.read_reply(b"").usage is None
        assert endpoint.upstream_body(b"x", Changes()) == b"x"
