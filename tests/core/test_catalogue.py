"""Prices from outside are checked before they count."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.catalogue import (
    METERS,
    RATE_PICOS_MAX,
    InvalidPrice,
    Tier,
    rate_per_million,
    rates_from_json,
    rates_to_json,
    tiers_from_json,
    tiers_to_json,
)

RATES = st.dictionaries(
    st.sampled_from([*METERS, "images/high/1024x1024", "containers/4g"]),
    st.integers(0, RATE_PICOS_MAX),
    min_size=1,
)
TIERS = st.dictionaries(st.integers(1, 10**9), RATES, max_size=4).map(
    lambda steps: tuple(Tier(above, steps[above]) for above in sorted(steps))
)


@given(RATES, TIERS)
def test_a_stored_price_is_read_back_as_it_was(rates: dict[str, int], tiers: tuple[Tier, ...]) -> None:
    assert rates_from_json(rates_to_json(rates)) == rates
    assert tiers_from_json(tiers_to_json(tiers)) == tiers


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"words": 1},
        {"input": 1.0},
        {"input": "1"},
        {"input": True},
        {"input": None},
        {"input": -1},
        {"input": RATE_PICOS_MAX + 1},
    ],
)
def test_rates_that_are_not_whole_picos_of_a_meter_are_refused(document: object) -> None:
    with pytest.raises(InvalidPrice, match="rates"):
        rates_from_json(document)


@pytest.mark.parametrize(
    "document",
    [
        None,
        {},
        [1],
        [{"rates": {"input": 1}}],
        [{"above_input_tokens": 0, "rates": {"input": 1}}],
        [{"above_input_tokens": True, "rates": {"input": 1}}],
        [{"above_input_tokens": 1.5, "rates": {"input": 1}}],
        [{"above_input_tokens": 5, "rates": {}}],
        [{"above_input_tokens": 5, "rates": {"input": 1}}, {"above_input_tokens": 5, "rates": {"input": 2}}],
    ],
)
def test_tiers_that_do_not_ascend_or_lack_rates_are_refused(document: object) -> None:
    with pytest.raises(InvalidPrice):
        tiers_from_json(document)


@pytest.mark.parametrize(
    ("per_million", "picos"),
    [("2.50", 2_500_000), ("0", 0), ("0.003625", 3_625), ("0.000001", 1), ("1000000", RATE_PICOS_MAX), ("1E+2", 10**8)],
)
def test_a_price_per_million_is_whole_picos_per_unit(per_million: str, picos: int) -> None:
    assert rate_per_million(Decimal(per_million)) == picos


@pytest.mark.parametrize(
    "per_million",
    ["-1", "-0", "NaN", "sNaN", "Infinity", "0.0000001", "2.5000000000000000000000000000001", "1000001", "1E+999999"],
)
def test_a_price_that_is_not_exact_or_in_range_is_refused(per_million: str) -> None:
    with pytest.raises(InvalidPrice, match="per million"):
        rate_per_million(Decimal(per_million))
