"""Sound, images, files, predictions, searches, long caches: each has a meter in the ceiling, or the call is refused."""

import base64
from typing import Any

import pytest

from gateway.core.catalogue import Meter, Rates
from gateway.errors import MalformedRequest, ModelNotFound
from gateway.request.admit import Offer
from gateway.request.meter import Ending, Seen, meter
from tests.support.gateway import CONTEXT, OUTPUT, RATES
from tests.support.media_files import wav
from tests.support.offers import WORKING_MODEL, hold_of, offer_of, price_of, shelf_of

# In nanos: 1 for text, 10 for sound in, 4 for text out, 20 for sound out, 3 for an image token; a search costs 5,000.
ALL: Rates = {
    **RATES,
    Meter.AUDIO_INPUT: 10_000,
    Meter.AUDIO_OUTPUT: 20_000,
    Meter.IMAGE_INPUT: 3_000,
    Meter.CACHE_WRITE: 1_250,
    Meter.CACHE_WRITE_12H: 2_000,
    Meter.WEB_SEARCHES: 5_000_000,
}
SHELF = shelf_of(prices=[price_of(WORKING_MODEL.name, ALL)])


def part(content: object, **members: Any) -> dict[str, Any]:
    return {"max_tokens": 100, "messages": [{"role": "user", "content": [content]}]} | members


SOUND = part({"type": "input_audio", "input_audio": {"data": base64.b64encode(wav(3)).decode(), "format": "wav"}})
IMAGE = part({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}})
FILE = part({"type": "file", "file": {"file_id": "file-1"}})
HEARD: dict[str, Any] = {"max_tokens": 100, "messages": [{"role": "assistant", "audio": {"id": "audio-1"}}]}
CACHED: dict[str, Any] = {"max_tokens": 100, "prompt_cache_options": {"ttl": "12h"}}


@pytest.mark.parametrize(
    ("members", "meters", "nanos"),
    [
        (SOUND, {Meter.AUDIO_INPUT}, 10 * 31 + 400),
        (IMAGE, set(), 3 * 48_600 + 400),
        (FILE, set(), 3 * CONTEXT + 400),
        (HEARD, {Meter.AUDIO_INPUT}, 10 * CONTEXT + 400),
        ({"max_tokens": 100, "modalities": ["text", "audio"], "audio": {"voice": "v"}}, {Meter.AUDIO_OUTPUT}, 2_000),
        ({"max_tokens": 100, "audio": {"voice": "v"}}, {Meter.AUDIO_OUTPUT}, 2_000),
        ({"max_tokens": 100, "n": 2, "prediction": {"type": "content", "content": "x" * 60}}, set(), 800 + 8 * 91),
        ({"max_tokens": 100, "web_search_options": {}}, {Meter.WEB_SEARCHES}, 5_000 + 400),
        (CACHED, {Meter.CACHE_WRITE_12H}, 400),
    ],
)  # fmt: skip
def test_each_has_its_meter_in_the_ceiling(members: dict[str, Any], meters: set[str], nanos: int) -> None:
    offer = offer_of(SHELF, **members)
    # What is text counts as such, at the rate of writing it to the cache.
    text = offer.ceiling.input_tokens_max * 1_250 / 1_000
    if members is CACHED:
        text = 2.0 * (offer_of(SHELF, **members | {"prompt_cache_options": {"ttl": "30m"}}).ceiling.input_tokens_max)
    assert offer.ceiling.nanos == pytest.approx(text + nanos, abs=1)
    for missing in meters:
        rates = {name: rate for name, rate in ALL.items() if name != missing}
        with pytest.raises(ModelNotFound) as refused:
            offer_of(shelf_of(prices=[price_of(WORKING_MODEL.name, rates)]), **members)
        assert refused.value.code == "model_not_priced"


@pytest.mark.parametrize(
    ("members", "usage", "nanos"),
    [
        (SOUND, {"prompt_tokens": 50, "completion_tokens": 5, "prompt_tokens_details": {"audio_tokens": 30}},
         20 + 300 + 20),
        # Usage need not say which tokens were sound.
        (SOUND, {"prompt_tokens": 50, "completion_tokens": 5}, 50 + 20),
        (IMAGE, {"prompt_tokens": 1_500, "completion_tokens": 1, "prompt_tokens_details": {"image_tokens": 1_445}},
         55 + 3 * 1_445 + 4),
        ({"modalities": ["text", "audio"], "max_tokens": 100},
         {"prompt_tokens": 10, "completion_tokens": 90, "completion_tokens_details": {"audio_tokens": 70}},
         10 + 80 + 1_400),
        (CACHED, {"prompt_tokens": 60, "completion_tokens": 1, "prompt_tokens_details": {
            "cache_write_tokens": 50, "cache_write_tokens_details": {"ttl_12h_tokens": 40}}}, 10 + 12.5 + 80 + 4),
        ({"max_tokens": 100, "web_search_options": {}}, {"prompt_tokens": 9_000, "completion_tokens": 10},
         9_000 + 40 + 5_000),
    ],
)  # fmt: skip
def test_true_usage_is_charged_within_the_ceiling(members: dict[str, Any], usage: dict[str, Any], nanos: float) -> None:
    offer = offer_of(SHELF, **members)
    charge = meter(offer, hold_of(offer), Seen(Ending.COMPLETED, usage, int))
    assert (charge.basis, charge.cost_nanos) == ("reported", round(nanos))
    assert charge.cost_nanos <= offer.ceiling.nanos


def charged(offer: Offer, count: int = 0) -> dict[str, int | str]:
    return meter(offer, hold_of(offer), Seen(Ending.COMPLETED, None, lambda: count)).usage


def test_without_usage_each_is_estimated_by_its_own_meter() -> None:
    sound = charged(offer_of(SHELF, **SOUND), 7)
    assert (sound["audio_input"], sound["output"]) == (31, 7)
    assert charged(offer_of(SHELF, **IMAGE))["image_input"] == 1_445
    assert charged(offer_of(SHELF, modalities=["audio"], max_tokens=100), 7)["audio_output"] == 7
    assert charged(offer_of(SHELF, web_search_options={}))["web_searches"] == 1
    assert charged(offer_of(SHELF, **CACHED))["input"] == 33


def test_a_model_that_searches_by_its_name_has_the_fee_unasked() -> None:
    model = type(WORKING_MODEL)("gpt-4o-search-preview", CONTEXT, OUTPUT)
    shelf = shelf_of([model], [price_of(model.name, ALL)], aliases={"test-model": model.name})
    offer = offer_of(shelf)
    assert offer.ceiling.input_tokens_max == CONTEXT
    usage = {"prompt_tokens": 10, "completion_tokens": 1}
    assert meter(offer, hold_of(offer), Seen(Ending.COMPLETED, usage, int)).cost_nanos == 10 + 4 + 5_000


def test_an_image_is_bounded_by_the_model_behind_an_alias() -> None:
    model = type(WORKING_MODEL)("gpt-4o", CONTEXT, OUTPUT)
    shelf = shelf_of([model], [price_of(model.name, ALL)], aliases={"test-model": model.name})
    assert offer_of(shelf, **IMAGE).request.extra_max[Meter.IMAGE_INPUT] == 1_445


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"prediction": "x"}, "prediction"),
        ({"web_search_options": True}, "web_search_options"),
        ({"audio": "alloy"}, "audio"),
        ({"modalities": ["text"], "audio": 7}, "audio"),
    ],
)
def test_what_is_malformed_is_refused(members: dict[str, Any], param: str) -> None:
    with pytest.raises(MalformedRequest) as refused:
        offer_of(SHELF, **members)
    assert refused.value.param == param
