"""Whatever a valid request asks for and whatever its upstream may truly report, the charge is within the ceiling.

Goal: no under-hold. Method: requests of every endpoint of text with all that chat may hold, prices with any rate higher
than any other, and usage that is true of the request by the simplest tokenizer there is, one token for each byte, told
in as much detail as the upstream likes. FAREBOX_CEILING_EXAMPLES draws more.
"""

import base64
import os
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.catalogue import Meter, Model, Price, Tier
from gateway.endpoints.chat import ChatEndpoint
from gateway.endpoints.completions import CompletionsEndpoint
from gateway.endpoints.embeddings import EmbeddingsEndpoint
from gateway.endpoints.endpoint import Endpoint
from gateway.endpoints.moderations import ModerationsEndpoint
from gateway.request.admit import Offer, admit
from gateway.request.meter import Ending, Seen, meter
from tests.support.media_files import data_url, png, wav
from tests.support.offers import ANYONE, BEGINNING, hold_of, shelf_of

EXAMPLES = int(os.environ.get("FAREBOX_CEILING_EXAMPLES", "100"))
CONTEXT, OUTPUT = 200_000, 4_096
# Models of which the images are known, and one of which they are not.
MODELS = ("gpt-6", "gpt-5-nano", "gpt-4o", "other")
IMAGE_PATCHES = {"gpt-6": 1.2, "gpt-5-nano": 2.46}

METERS = [
    Meter.INPUT, Meter.CACHED_INPUT, Meter.CACHE_WRITE, Meter.CACHE_WRITE_12H, Meter.AUDIO_INPUT,
    Meter.CACHED_AUDIO_INPUT, Meter.IMAGE_INPUT, Meter.CACHED_IMAGE_INPUT, Meter.OUTPUT, Meter.REASONING_OUTPUT,
    Meter.AUDIO_OUTPUT, Meter.WEB_SEARCHES, Meter.REQUESTS,
]  # fmt: skip
# Mostly only one or two meters cost anything: no room that one bound leaves can then hide that another is too low.
FEW = st.sets(st.sampled_from(METERS), min_size=1, max_size=2).map(
    lambda dear: {meter: 9_000 if meter in dear else 0 for meter in METERS}
)
RATES = st.one_of(FEW, FEW, st.fixed_dictionaries({meter: st.integers(0, 10_000) for meter in METERS}))
TEXTS = st.one_of(st.text(max_size=30), st.integers(0, 400).map(lambda size: "\u00e9" * size))


@st.composite
def priced(draw: st.DrawFn, model: str) -> Price:
    tiered = st.lists(st.tuples(st.integers(1, 3_000), RATES), max_size=2, unique_by=lambda tier: tier[0])
    tiers = draw(st.one_of(st.just([]), st.just([]), tiered))
    multipliers = {"priority": draw(st.integers(10_000, 30_000)), "flex": draw(st.integers(0, 10_000))}
    ascending = tuple(Tier(above, rates) for above, rates in sorted(tiers, key=lambda tier: tier[0]))
    return Price(1, model, BEGINNING, "test", draw(RATES), ascending, multipliers)


class Truth:
    """The most that a request can truly use, in tokens."""

    def __init__(self) -> None:
        self.text = self.sound = self.image = 0
        self.output = 0
        self.speaks = self.caches_long = self.searches = False


def some(draw: st.DrawFn, most: int) -> int:
    """A number up to `most`, and often `most` itself."""
    return draw(st.one_of(st.just(most), st.integers(0, most)))


@st.composite
def chats(draw: st.DrawFn, model: str) -> tuple[dict[str, Any], Truth]:
    truth = Truth()
    messages: list[dict[str, Any]] = []
    for text in draw(st.lists(TEXTS, min_size=1, max_size=4)):
        truth.text += len(text.encode()) + 5
        messages.append({"role": "user", "content": text})
    parts: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(0, 2))):
        width, height = draw(st.integers(1, 2_000)), draw(st.integers(1, 2_000))
        parts.append({"type": "image_url", "image_url": {"url": data_url(png(width, height))}})
        patches = -(-width // 32) * -(-height // 32)
        if model in IMAGE_PATCHES:
            truth.image += int(min(patches, 30_000 if model == "gpt-6" else 1_536) * IMAGE_PATCHES[model])
        else:
            truth.image += 1_445 if model == "gpt-4o" else 48_169
    if draw(st.booleans()):
        tenths = draw(st.integers(0, 600))
        content = wav(tenths / 10, samples=100)
        parts.append({"type": "input_audio", "input_audio": {"data": base64.b64encode(content).decode()}})
        truth.sound += tenths
    if parts:
        messages.append({"role": "user", "content": parts})
    request: dict[str, Any] = {
        "messages": messages,
        "n": draw(st.integers(1, 3)),
        "max_tokens": draw(st.integers(1, 50)),
    }
    truth.output = request["n"] * request["max_tokens"]
    if draw(st.booleans()):
        request["prediction"] = {"type": "content", "content": draw(TEXTS)}
        truth.output += request["n"] * len(request["prediction"]["content"].encode())
    if draw(st.booleans()):
        request["modalities"], truth.speaks = ["text", "audio"], True
    if draw(st.booleans()):
        request["prompt_cache_options"], truth.caches_long = {"ttl": "12h"}, True
    if draw(st.integers(0, 3)) == 0:
        request["web_search_options"], truth.searches = {}, True
        truth.text += draw(st.integers(0, 20_000))
    return request, truth


@st.composite
def completions(draw: st.DrawFn) -> tuple[dict[str, Any], Truth]:
    truth, suffix = Truth(), draw(st.one_of(st.none(), TEXTS))
    prompt: Any = draw(
        st.one_of(TEXTS, st.lists(TEXTS, min_size=1, max_size=4), st.lists(st.integers(0, 9), min_size=1))
    )
    prompts = prompt if isinstance(prompt, list) and isinstance(prompt[0], str) else [prompt]
    for one in prompts:
        truth.text += 4 + len((suffix or "").encode()) + (len(one) if isinstance(one, list) else len(one.encode()))
    request = {"prompt": prompt, "suffix": suffix, "n": draw(st.integers(1, 3)), "max_tokens": draw(st.integers(0, 50))}
    request["best_of"] = draw(st.one_of(st.none(), st.integers(request["n"], 5)))
    truth.output = len(prompts) * max(request["n"], request["best_of"] or 1) * request["max_tokens"]
    return request, truth


@st.composite
def embeddings(draw: st.DrawFn) -> tuple[dict[str, Any], Truth]:
    truth = Truth()
    given_input: Any = draw(
        st.one_of(TEXTS, st.lists(TEXTS, min_size=1, max_size=4), st.lists(st.integers(0, 9), min_size=1))
    )
    texts = given_input if isinstance(given_input, list) and isinstance(given_input[0], str) else [given_input]
    truth.text = sum(3 + (len(one) if isinstance(one, list) else len(one.encode())) for one in texts)
    return {"input": given_input}, truth


@st.composite
def usages(draw: st.DrawFn, truth: Truth) -> dict[str, Any]:
    """True of the request; how much of it is told apart is the upstream's to choose."""
    text, sound, image = some(draw, truth.text), some(draw, truth.sound), some(draw, truth.image)
    prompt = min(text + sound + image, CONTEXT)
    output = some(draw, min(truth.output, OUTPUT))
    usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    if draw(st.booleans()):
        cached = some(draw, prompt)
        written = some(draw, prompt - cached)
        details: dict[str, Any] = {"cached_tokens": cached, "cache_write_tokens": written}
        if truth.caches_long:
            details["cache_write_tokens_details"] = {"ttl_12h_tokens": some(draw, written)}
        if draw(st.booleans()):
            details |= {"audio_tokens": sound, "image_tokens": image}
            kept = {"audio_tokens": some(draw, min(sound, cached))}
            kept["image_tokens"] = some(draw, min(image, cached - kept["audio_tokens"]))
            details["cached_tokens_details"] = kept
        usage["prompt_tokens_details"] = details
    if draw(st.booleans()):
        spoken = some(draw, output) if truth.speaks else 0
        told = {"audio_tokens": spoken, "reasoning_tokens": some(draw, output - spoken)}
        usage["completion_tokens_details"] = told
    return usage


def offered(endpoint: Endpoint, price: Price, request: dict[str, Any], tier: str | None) -> Offer:
    shelf = shelf_of([Model(price.model, CONTEXT, OUTPUT)], [price])
    body = orjson.dumps({"model": price.model, "service_tier": tier} | request)
    return admit(ANYONE, endpoint, body, shelf, min_output_tokens=16, hold_slice_tokens=4_096)


def check(data: st.DataObject, endpoint: Endpoint, model: str, request: dict[str, Any], truth: Truth) -> None:
    tier = data.draw(st.sampled_from([None, "default", "priority", "flex"]))
    offer = offered(endpoint, data.draw(priced(model)), request, tier)
    usage = data.draw(usages(truth))
    charge = meter(offer, hold_of(offer), Seen(Ending.COMPLETED, usage, lambda: truth.output))
    assert charge.cost_nanos <= offer.ceiling.nanos
    if charge.reason == "usage_invalid":
        # Parts that overlap, such as sound that was written to the cache: told by no upstream so far.
        assert "prompt_tokens_details" in usage
    elif usage["total_tokens"]:
        assert charge.basis == "reported"
        assert charge.usage.get("web_searches", 0) == truth.searches
    estimate = meter(offer, hold_of(offer), Seen(Ending.COMPLETED, None, lambda: 3 * truth.output))
    assert estimate.cost_nanos <= offer.ceiling.nanos


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.data(), st.sampled_from(MODELS))
def test_a_chat_is_charged_within_its_ceiling(data: st.DataObject, model: str) -> None:
    request, truth = data.draw(chats(model))
    check(data, ChatEndpoint(), model, request, truth)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.data())
def test_a_completion_is_charged_within_its_ceiling(data: st.DataObject) -> None:
    request, truth = data.draw(completions())
    check(data, CompletionsEndpoint(), "other", request, truth)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.data())
def test_an_embedding_is_charged_within_its_ceiling(data: st.DataObject) -> None:
    request, truth = data.draw(embeddings())
    check(data, EmbeddingsEndpoint(), "other", request, truth)


@given(st.data(), TEXTS.filter(bool))
def test_a_moderation_is_charged_at_its_ceiling(data: st.DataObject, text: str) -> None:
    offer = offered(ModerationsEndpoint(), data.draw(priced("other")), {"input": text}, None)
    charge = meter(offer, hold_of(offer), Seen(Ending.COMPLETED, {"requests": 1}, int))
    assert offer.ceiling.nanos - 1 <= charge.cost_nanos <= offer.ceiling.nanos
