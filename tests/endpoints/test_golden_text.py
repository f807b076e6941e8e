"""Usage as the upstreams of the metering reference spell it, and the charge of each, worked out by hand to the nano.

Rates are picos a unit: 150,000 are 0.15 a million. The sum of each case stands beside it, in nanos.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from gateway.core.catalogue import Model, Price, Tier
from gateway.endpoints.chat import ChatEndpoint
from gateway.endpoints.completions import CompletionsEndpoint
from gateway.endpoints.embeddings import EmbeddingsEndpoint
from gateway.endpoints.endpoint import Endpoint
from gateway.endpoints.moderations import ModerationsEndpoint
from gateway.request.admit import admit
from gateway.request.meter import Ending, Seen, meter
from tests.support.offers import ANYONE, BEGINNING, hold_of, shelf_of

CHAT, TEXT, VECTORS, SAFETY = ChatEndpoint(), CompletionsEndpoint(), EmbeddingsEndpoint(), ModerationsEndpoint()
ASKED: Mapping[str, dict[str, Any]] = {
    CHAT.name: {"messages": [{"role": "user", "content": "Why?"}]},
    TEXT.name: {"prompt": "Why?"},
    VECTORS.name: {"input": "Why?"},
    SAFETY.name: {"input": "Why?"},
}

MINI = {"input": 150_000, "cached_input": 75_000, "output": 600_000}
GPT = {
    "input": 1_250_000, "cached_input": 125_000, "cache_write": 1_562_500, "cache_write_12h": 2_500_000,
    "output": 10_000_000,
}  # fmt: skip
LONG = (Tier(272_000, {"input": 2_500_000, "cached_input": 250_000, "cache_write": 3_125_000, "output": 15_000_000}),)
SPEAKING = {"input": 2_500_000, "audio_input": 40_000_000, "output": 10_000_000, "audio_output": 80_000_000}
SEARCHING = {"input": 2_500_000, "output": 10_000_000, "web_searches": 25_000_000_000}
SEEING = {
    "input": 2_000_000, "cached_input": 200_000, "image_input": 2_500_000, "cached_image_input": 250_000,
    "output": 8_000_000,
}  # fmt: skip
CLAUDE = {"input": 3_000_000, "cached_input": 300_000, "cache_write": 3_750_000, "output": 15_000_000}
OPEN = {"input": 200_000, "output": 600_000}
TIERED = {"priority": 20_000, "flex": 5_000}
LONG_CACHE = {"prompt_cache_options": {"ttl": "12h"}}


@dataclass(frozen=True, slots=True)
class Golden:
    """`reply` has the members of the JSON reply, or of the event that brings the usage of a stream."""

    name: str
    endpoint: Endpoint
    rates: Mapping[str, int]
    reply: Mapping[str, Any]
    nanos: int
    asked: Mapping[str, Any] = field(default_factory=dict)
    tiers: tuple[Tier, ...] = ()
    multipliers: Mapping[str, int] = field(default_factory=dict)


def used(prompt: object, completion: object = None, **members: Any) -> dict[str, Any]:
    """A reply with this usage; members with `None` are left out."""
    usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": completion} | members
    return {"usage": {name: value for name, value in usage.items() if value is not None}}


WROTE = used(
    2_000,
    300,
    total_tokens=2_300,
    prompt_tokens_details={
        "cached_tokens": 500,
        "cache_write_tokens": 1_000,
        "cache_write_tokens_details": {"ttl_30m_tokens": 800, "ttl_12h_tokens": 200},
    },
    completion_tokens_details={"reasoning_tokens": 256},
)

GOLDEN = (
    # 107 * 150 + 1,024 * 75 + 9 * 600 = 16,050 + 76,800 + 5,400
    Golden("openai, cached", CHAT, MINI,
           used(1_131, 9, total_tokens=1_140, prompt_tokens_details={"cached_tokens": 1_024, "audio_tokens": 0}),
           98_250),
    # 14 * 150 + 3 * 600
    Golden("azure", CHAT, MINI, used(14, 3, total_tokens=17) | {"prompt_filter_results": []}, 3_900),
    # 500 * 1,250 + 500 * 125 + 800 * 1,562.5 + 200 * 2,500 + 300 * 10,000
    Golden("openai, both caches written, reasoning", CHAT, GPT, WROTE, 5_437_500, LONG_CACHE),
    # The same twice, and half: the tier that the reply names.
    Golden("openai, priority", CHAT, GPT, WROTE | {"service_tier": "priority"}, 10_875_000,
           LONG_CACHE | {"service_tier": "priority"}, multipliers=TIERED),
    Golden("openai, flex", CHAT, GPT, WROTE | {"service_tier": "flex"}, 2_718_750,
           LONG_CACHE | {"service_tier": "flex"}, multipliers=TIERED),
    Golden("openai, priority that fell back", CHAT, GPT, WROTE | {"service_tier": "default"}, 5_437_500,
           LONG_CACHE | {"service_tier": "priority"}, multipliers=TIERED),
    # 272,000 * 1,250 + 10 * 10,000, and one token more: 272,001 * 2,500 + 10 * 15,000
    Golden("openai, up to the long context", CHAT, GPT, used(272_000, 10), 340_100_000, tiers=LONG),
    Golden("openai, long context", CHAT, GPT, used(272_001, 10), 680_152_500, tiers=LONG),
    # 20 * 2,500 + 40 * 40,000 + 20 * 10,000 + 100 * 80,000
    Golden("openai, sound", CHAT, SPEAKING,
           used(60, 120, total_tokens=180, prompt_tokens_details={"audio_tokens": 40, "text_tokens": 20},
                completion_tokens_details={"audio_tokens": 100, "text_tokens": 20}), 9_850_000,
           {"modalities": ["text", "audio"], "audio": {"voice": "v", "format": "wav"},
            "messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "A" * 800}}]}]}),
    # 8,010 * 2,500 + 200 * 10,000 + 25,000,000
    Golden("openai, search", CHAT, SEARCHING, used(8_010, 200), 47_025_000, {"web_search_options": {}}),
    # 50 * 2,500 + 90 * 10,000: what was rejected is output as any other.
    Golden("openai, prediction", CHAT, SEARCHING,
           used(50, 90, completion_tokens_details={"accepted_prediction_tokens": 20, "rejected_prediction_tokens": 40}),
           1_025_000, {"prediction": {"type": "content", "content": "x" * 400}}),
    # 120 * 2,000 + 100 * 200 + 200 * 2,500 + 600 * 250 + 10 * 8,000
    Golden("openai, images from the cache", CHAT, SEEING,
           used(1_020, 10, prompt_tokens_details={
               "cached_tokens": 700, "image_tokens": 800, "cached_tokens_details": {"image_tokens": 600}}), 990_000,
           {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://u"}}]}]}),
    # 25 * 200 + 7 * 600
    Golden("vllm", CHAT, OPEN, used(25, 7, total_tokens=32) | {"prompt_logprobs": None}, 9_200),
    # 19 * 200 + 4 * 600
    Golden("llama.cpp", CHAT, OPEN, used(19, 4, total_tokens=23) | {"timings": {"prompt_n": 19}}, 6_200),
    # 31 * 200 + 8 * 600
    Golden("ollama", CHAT, OPEN, used(31, 8, total_tokens=39), 11_000),
    # 10 * 3,000 + 1,200 * 3,750 + 6 * 15,000; its own cost says nothing to us.
    Golden("openrouter", CHAT, CLAUDE,
           used(1_210, 6, total_tokens=1_216, cost=0.0000425, is_byok=False,
                prompt_tokens_details={"cached_tokens": 0, "cache_write_tokens": 1_200}), 4_620_000),
    # 42 * 50 + 3 * 80
    Golden("groq", CHAT, {"input": 50_000, "output": 80_000},
           {"x_groq": used(42, 3, total_tokens=45, queue_time=0.01)}, 2_340, {"stream": True}),
    # 2 * 280 + 128 * 28 + 6 * 420
    Golden("deepseek", CHAT, {"input": 280_000, "cached_input": 28_000, "output": 420_000},
           used(130, 6, total_tokens=136, prompt_cache_hit_tokens=128, prompt_cache_miss_tokens=2,
                completion_tokens_details={"reasoning_tokens": 3}), 6_664),
    # 17 * 400 + 5 * 2,000
    Golden("mistral", CHAT, {"input": 400_000, "output": 2_000_000}, used(17, 5, total_tokens=22), 16_800,
           {"stream": True}),
    # 12 * 300 + (61 - 12) * 2,500: thinking is in the total alone.
    Golden("gemini", CHAT, {"input": 300_000, "output": 2_500_000}, used(12, 10, total_tokens=61), 126_100),
    # 188 * 3,000 + 512 * 750 + (1,021 - 700) * 15,000: so is reasoning.
    Golden("xai", CHAT, {"input": 3_000_000, "cached_input": 750_000, "output": 15_000_000},
           used(700, 3, total_tokens=1_021, cost_in_usd_ticks=57_630_000,
                prompt_tokens_details={"cached_tokens": 512}, completion_tokens_details={"reasoning_tokens": 318}),
           5_763_000),
    # (38 + 4) * 880
    Golden("together", CHAT, {"input": 880_000, "output": 880_000}, used(38, 4, total_tokens=42), 36_960,
           {"stream": True}),
    # 18 * 150 + 5 * 600
    Golden("litellm", CHAT, MINI, used(18, 5, total_tokens=23, prompt_tokens_details=None), 5_700),
    # 12 * 150 + 4 * 600
    Golden("a proxy that writes numbers as text", CHAT, MINI, used("12", 4.0, total_tokens="16"), 4_200),
    # 15 * 1,500 + 48 * 2,000
    Golden("openai, three prompts", TEXT, {"input": 1_500_000, "output": 2_000_000}, used(15, 48, total_tokens=63),
           118_500, {"prompt": ["a", "b", "c"], "max_tokens": 16}),
    # 4 * 200 + 16 * 600
    Golden("vllm, text", TEXT, OPEN, used(4, 16, total_tokens=20), 10_400, {"stream": True, "prompt": [1, 2, 3, 4]}),
    # 5 * 200 + 2 * 600
    Golden("llama.cpp, text", TEXT, OPEN, used(5, 2) | {"choices": [{"text": "!"}]}, 2_200, {"stream": True}),
    # 6 * 200 + 5 * 600
    Golden("ollama, text", TEXT, OPEN, used(6, 5, total_tokens=11), 4_200, {"stream": True}),
    # 8 * 20
    Golden("openai, vector", VECTORS, {"input": 20_000}, used(8, total_tokens=8), 160),
    # 2,055 * 130
    Golden("azure, vectors", VECTORS, {"input": 130_000}, used(2_055, total_tokens=2_055), 267_150,
           {"input": ["x" * 8_000] * 2}),
    # 9 * 100
    Golden("mistral, vector", VECTORS, {"input": 100_000}, used(9, 0, total_tokens=9), 900),
    # 20.5 and 61.5: half a nano goes to the even one.
    Golden("half a nano down", VECTORS, {"input": 20_500}, used(1), 20),
    Golden("half a nano up", VECTORS, {"input": 20_500}, used(3), 62),
    Golden("openai, moderation", SAFETY, {"requests": 0}, {"results": [{}]}, 0),
    Golden("moderation with a fee", SAFETY, {"requests": 2_000_000}, {"results": [{}]}, 2_000),
)  # fmt: skip


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden.name)
def test_a_charge_worked_out_by_hand(golden: Golden) -> None:
    price = Price(1, "m", BEGINNING, "test", golden.rates, golden.tiers, golden.multipliers)
    shelf = shelf_of([Model("m", 1_050_000, 128_000)], [price])
    body = orjson.dumps({"model": "m", **ASKED[golden.endpoint.name], **golden.asked})
    offer = admit(ANYONE, golden.endpoint, body, shelf, min_output_tokens=16, hold_slice_tokens=4_096)
    reply = orjson.dumps({"id": "reply", "choices": [], "data": [{}], "model": "m", **golden.reply})
    if golden.asked.get("stream"):
        reader = golden.endpoint.reply_reader("text/event-stream", offer.request)
        assert reader is not None
        zeros = orjson.dumps({"choices": [{"text": "x"}]} | used(0, 0))
        reader.feed(b"data: %b\n\ndata: %b\n\ndata: [DONE]\n\n" % (zeros, reply))
        reader.finish()
        seen = Seen(Ending.COMPLETED, reader.usage, int, service_tier=reader.service_tier)
    else:
        whole = golden.endpoint.read_reply(reply)
        seen = Seen(Ending.COMPLETED, whole.usage, int, service_tier=whole.service_tier)
    charge = meter(offer, hold_of(offer), seen)
    assert (charge.basis, charge.reason, charge.cost_nanos) == ("reported", None, golden.nanos)
