"""For any request for sound or images, and any usage that its bounds allow, the charge is within the ceiling."""

from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.image_output import image_output_tokens_max
from gateway.endpoints.images import ImageGenerations
from gateway.endpoints.speech import SpeechEndpoint, sound_tokens_max
from gateway.endpoints.transcription import TranscriptionEndpoint
from gateway.request.admit import Offer
from tests.support.forms import File
from tests.support.sounds import aac, flac, mp3, mp4, opus, wav, webm
from tests.support.studio import charge_of, charge_of_stream, offer_for

SHARES = st.integers(0, 1_000)
SOUNDS = [
    (wav(3_000), 3_000),
    (mp3(100), 2_400),
    (aac(75), 3_200),
    (opus(100), 2_000),
    (flac(10), 2_560),
    (mp4(50, claimed_ms=3_200), 3_200),
    (mp4(50, claimed_ms=1), 3_200),
    (webm(50), 1_000),
]


def within(offer: Offer, cost_nanos: int, usage: object) -> None:
    assert cost_nanos <= offer.ceiling.nanos, usage


@settings(max_examples=60, deadline=None)
@given(
    number=st.integers(0, len(SOUNDS) - 1),
    model=st.sampled_from(["by-time", "by-tokens"]),
    share=SHARES,
    prompt=st.text(),
)
def test_transcriptions(number: int, model: str, share: int, prompt: str) -> None:
    file, milliseconds = SOUNDS[number]
    prompt = prompt.encode("utf-8", "ignore").decode()
    items: list[Any] = [("model", model), ("prompt", prompt), File("file", file)]
    offer = offer_for(TranscriptionEndpoint("audio.transcriptions"), items)
    seconds = {"type": "duration", "seconds": -(-milliseconds // 1_000)}
    spoken, text, out = -(-milliseconds // 100), len(prompt.encode()), 2 * share
    tokens = {
        "type": "tokens",
        "input_tokens": spoken + text,
        "input_token_details": {"audio_tokens": spoken, "text_tokens": text},
        "output_tokens": out,
        "total_tokens": spoken + text + out,
    }
    for usage in (seconds, tokens, None):
        charge = charge_of(offer, orjson.dumps({"text": "x" * share, "usage": usage}))
        within(offer, charge.cost_nanos, usage)


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(min_size=1, max_size=300),
    model=st.sampled_from(["by-character", "by-sound"]),
    frames=st.integers(1, 200),
    share=SHARES,
)
def test_speech(text: str, model: str, frames: int, share: int) -> None:
    text = text.encode("utf-8", "ignore").decode() or "x"
    offer = offer_for(SpeechEndpoint(), orjson.dumps({"model": model, "input": text, "voice": "alloy"}))
    read, said = len(text.encode()), max(1, sound_tokens_max(text) * share // 1_000)
    usage = {"input_tokens": read, "output_tokens": said, "total_tokens": read + said}
    done = b"data: %b\n\n" % orjson.dumps({"type": "speech.audio.done", "usage": usage})
    within(offer, charge_of_stream(offer, "text/event-stream", done).cost_nanos, usage)
    within(offer, charge_of_stream(offer, "audio/mpeg", mp3(frames)).cost_nanos, frames)


@settings(max_examples=100, deadline=None)
@given(
    model=st.sampled_from(["by-image", "gpt-image-1", "gpt-image-2", "other-image"]),
    quality=st.sampled_from(["low", "medium", "high", "max", "standard", "hd", "auto", None]),
    size=st.sampled_from(["1024x1024", "1536x1024", "3840x2160", "auto", None]),
    images=st.integers(1, 10),
    partials=st.integers(0, 3),
    share=SHARES,
)
def test_images(model: str, quality: str | None, size: str | None, images: int, partials: int, share: int) -> None:
    asked = {"model": model, "prompt": "A cat.", "quality": quality, "size": size, "n": images}
    offer = offer_for(ImageGenerations(), orjson.dumps(asked | {"partial_images": partials}))
    known = None if size in ("auto", None) else (int(str(size)[:4]), int(str(size)[5:]))
    most = images * (image_output_tokens_max(model, quality or "", known) + 100 * partials)
    made, planned = most * share // 1_000, images * share
    usage = {
        "input_tokens": 6,
        "output_tokens": made + planned,
        "output_tokens_details": {"image_tokens": made, "text_tokens": planned},
        "total_tokens": 6 + made + planned,
    }
    data = [{"b64_json": "AA"}] * images
    for said in (usage, None):
        charge = charge_of(offer, orjson.dumps({"data": data, "usage": said}))
        within(offer, charge.cost_nanos, said)
        alternatives = offer.request.alternatives
        used = {name for name in charge.usage if any(name in meters for meters in alternatives)}
        # A charge is by one set of meters, never by two together.
        assert any(used <= meters for meters in alternatives)
