from datetime import UTC, datetime

import pytest

from gateway.core.audit import Unexplained, recompute_picos
from gateway.core.catalogue import Meter, Price, Rates, Tier

RATES: Rates = {Meter.INPUT: 2_500_000, Meter.OUTPUT: 10_000_000}
PRICE = Price(7, "m", datetime(2026, 1, 1, tzinfo=UTC), "test", RATES, (Tier(1_000, {Meter.INPUT: 5_000_000}),))


@pytest.mark.parametrize(
    ("usage", "picos"),
    [
        ({}, 0),
        ({"input": 10, "output": 3}, 10 * 2_500_000 + 3 * 10_000_000),
        ({"input": 10, "output": 3, "reasoning": 2}, 10 * 2_500_000 + 3 * 10_000_000),
        ({"input": 600, "cached_input": 401}, 1_001 * 5_000_000),
    ],
)
def test_a_cost_is_worked_out_anew(usage: dict[str, int], picos: int) -> None:
    assert recompute_picos(PRICE, usage) == picos


@pytest.mark.parametrize(
    ("usage", "why"),
    [
        ({"inputs": 1}, "usage.inputs is not a meter"),
        ({"input": 1.0}, "usage.input is not a whole number"),
        ({"input": True}, "usage.input is not a whole number"),
        ({"input": -1}, "usage.input is not a whole number"),
        ({"reasoning": "2"}, "usage.reasoning is not a whole number"),
        ({"input": 10**15}, "out of range"),
        ([1], "usage is not an object"),
        (None, "usage is not an object"),
    ],
)
def test_usage_that_cannot_be_priced_is_said(usage: object, why: str) -> None:
    with pytest.raises(Unexplained, match=why):
        recompute_picos(PRICE, usage)


EVERY = Price(
    8,
    "m",
    PRICE.effective_from,
    "test",
    {
        Meter.INPUT: 3,
        Meter.AUDIO_INPUT: 40,
        Meter.REQUESTS: 1_000,
        Meter.WEB_SEARCHES: 500,
        "images": 70,
        "images/high": 90,
    },
    multipliers={"flex": 5_000, "batch": 2_500},
)


@pytest.mark.parametrize(
    ("usage", "picos"),
    [
        # Half of 3 is 2, and of 1,000 it is 500; a search costs what it costs.
        ({"input": 10, "requests": 1, "web_searches": 2, "service_tier": "flex"}, 20 + 500 + 1_000),
        ({"input": 10, "service_tier": "batch"}, 10),
        ({"input": 10, "service_tier": "default"}, 30),
        # 3 and 500 with a tenth more are 4 and 550.
        ({"input": 10, "web_searches": 1, "upstream_bp": 11_000}, 40 + 550),
        ({"input": 10, "service_tier": "flex", "upstream_bp": 11_000}, 20),
        ({"images/high/1024x1024": 2, "images/low/1x1": 1, "images": 1}, 180 + 70 + 70),
        ({"cached_audio_input": 2, "cached_image_input": 2}, 80 + 6),
    ],
)
def test_variants_requests_and_what_multiplied_are_worked_out_anew(usage: dict[str, object], picos: int) -> None:
    assert recompute_picos(EVERY, usage) == picos


@pytest.mark.parametrize(
    ("usage", "why"),
    [
        ({"input": 1, "service_tier": "priority"}, "price 8 has no rate for tier of service priority"),
        ({"input": 1, "service_tier": 1}, "usage.service_tier is not a string"),
        ({"input": 1, "upstream_bp": 1.1}, "usage.upstream_bp is not a number"),
        ({"input": 1, "upstream_bp": -1}, "usage.upstream_bp is not a number"),
        ({"input": 1, "upstream_bp": 10**6 + 1}, "usage.upstream_bp is not a number"),
        ({"containers/4g": 1}, "price 8 has no rate for containers"),
        ({"audio_output": 1}, "price 8 has no rate for audio_output"),
        ({"cache_write_12h": 1}, "price 8 has no rate for cache_write_12h"),
        ({"images/HIGH": 1}, "usage.images/HIGH is not a meter"),
    ],
)
def test_what_a_price_does_not_say_is_not_guessed(usage: dict[str, object], why: str) -> None:
    with pytest.raises(Unexplained, match=why):
        recompute_picos(EVERY, usage)


def test_a_meter_without_a_rate_is_said() -> None:
    price = Price(7, "m", PRICE.effective_from, "test", {Meter.INPUT: 1})
    with pytest.raises(Unexplained, match="price 7 has no rate for output"):
        recompute_picos(price, {"output": 1})
