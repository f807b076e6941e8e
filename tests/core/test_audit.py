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


def test_a_meter_without_a_rate_is_said() -> None:
    price = Price(7, "m", PRICE.effective_from, "test", {Meter.INPUT: 1})
    with pytest.raises(Unexplained, match="price 7 has no rate for output"):
        recompute_picos(price, {"output": 1})
