"""The one multiplication: exact, whole, and never above the ceiling."""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Context, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.catalogue import Meter, Price, Rates, Tier
from gateway.core.money import COST_PICOS_MAX, ceil_nanos, round_nanos
from gateway.core.pricing import CostOutOfRange, Unpriced, ceiling_picos, cost_picos, rate_picos, rates_at

INPUTS = (Meter.INPUT, Meter.CACHED_INPUT, Meter.CACHE_WRITE)
TOKENS = st.integers(0, 2_000_000)
RATE = st.integers(0, 10**9)


def price(rates: Rates, *tiers: Tier) -> Price:
    return Price(1, "m", datetime(2026, 1, 1, tzinfo=UTC), "test", rates, tiers)


@st.composite
def prices(draw: st.DrawFn) -> Price:
    """Any shape of price that the catalogue can hold: cached and write rates optional, tiers partial."""
    rates = {Meter.INPUT: draw(RATE), Meter.OUTPUT: draw(RATE)}
    rates |= draw(st.dictionaries(st.sampled_from((Meter.CACHED_INPUT, Meter.CACHE_WRITE)), RATE))
    starts = sorted(draw(st.sets(st.integers(1, 1_000_000), max_size=3)))
    tier_rates = st.dictionaries(st.sampled_from(list(Meter)), RATE, min_size=1)
    return price(rates, *(Tier(start, draw(tier_rates)) for start in starts))


QUANTITIES = st.fixed_dictionaries({}, optional=dict.fromkeys(Meter, TOKENS))


def oracle(price: Price, quantities: Mapping[Meter, int]) -> Decimal:
    """The rule again, meter by meter, in decimals: the highest tier passed that knows the meter, else its base."""
    exact = Context(prec=60)
    total_input = sum(quantities.get(meter, 0) for meter in INPUTS)
    cost = Decimal(0)
    for meter, quantity in quantities.items():
        for known in (meter, Meter.INPUT):
            levels = [price.rates, *(tier.rates for tier in price.tiers if total_input > tier.above_input_tokens)]
            stated = [Decimal(rates[known]) for rates in levels if known in rates]
            if stated:
                cost = exact.add(cost, exact.multiply(stated[-1], Decimal(quantity)))
                break
    return cost


@given(prices(), QUANTITIES)
def test_a_cost_is_the_exact_sum_in_whole_picos(price: Price, quantities: dict[Meter, int]) -> None:
    cost = cost_picos(price, quantities)
    assert type(cost) is int
    assert cost == oracle(price, quantities)


@given(prices(), QUANTITIES, TOKENS, TOKENS)
def test_no_split_of_what_was_bounded_costs_more_than_the_ceiling(
    price: Price, quantities: dict[Meter, int], input_spare: int, output_spare: int
) -> None:
    input_tokens = sum(quantities.get(meter, 0) for meter in INPUTS)
    ceiling = ceiling_picos(price, input_tokens + input_spare, quantities.get(Meter.OUTPUT, 0) + output_spare)
    assert type(ceiling) is int
    assert cost_picos(price, quantities) <= ceiling
    assert round_nanos(cost_picos(price, quantities)) <= ceil_nanos(ceiling)


@given(prices(), TOKENS, TOKENS)
def test_a_larger_bound_never_lowers_the_ceiling(price: Price, input_tokens: int, output_tokens: int) -> None:
    ceiling = ceiling_picos(price, input_tokens, output_tokens)
    assert ceiling <= ceiling_picos(price, input_tokens + 1, output_tokens)
    assert ceiling <= ceiling_picos(price, input_tokens, output_tokens + 1)


def test_a_tier_reprices_the_whole_request_only_above_its_threshold() -> None:
    tiered = price({Meter.INPUT: 2, Meter.OUTPUT: 10}, Tier(100, {Meter.INPUT: 4}), Tier(200, {Meter.OUTPUT: 15}))
    table = {100: 2 * 100 + 10, 101: 4 * 101 + 10, 200: 4 * 200 + 10, 201: 4 * 201 + 15}
    assert {n: cost_picos(tiered, {Meter.INPUT: n, Meter.OUTPUT: 1}) for n in table} == table
    # Cached tokens are input too: they bring a request over the threshold, and cost what input costs there.
    assert cost_picos(tiered, {Meter.INPUT: 1, Meter.CACHED_INPUT: 100}) == 4 * 101
    assert rates_at(tiered, 201) == {Meter.INPUT: 4, Meter.OUTPUT: 15}


def test_a_ceiling_counts_the_dearest_tier_that_is_reachable() -> None:
    falling = price({Meter.INPUT: 4, Meter.OUTPUT: 1}, Tier(100, {Meter.INPUT: 2, Meter.OUTPUT: 9}))
    assert ceiling_picos(falling, 100, 10) == 4 * 100 + 10
    assert ceiling_picos(falling, 101, 10) == 4 * 101 + 9 * 10


def test_a_ceiling_counts_a_cache_write_and_no_discount() -> None:
    cached = price({Meter.INPUT: 4, Meter.CACHED_INPUT: 1, Meter.CACHE_WRITE: 5, Meter.OUTPUT: 0})
    assert ceiling_picos(cached, 10, 10) == 50


def test_a_missing_rate_falls_back_to_the_general_one_or_is_unpriced() -> None:
    plain = price({Meter.INPUT: 3})
    assert rate_picos(plain.rates, Meter.CACHED_INPUT) == rate_picos(plain.rates, Meter.CACHE_WRITE) == 3
    assert cost_picos(plain, {Meter.INPUT: 1, Meter.OUTPUT: 0}) == 3
    assert ceiling_picos(plain, 1, 0) == 3
    with pytest.raises(Unpriced):
        cost_picos(plain, {Meter.OUTPUT: 1})
    with pytest.raises(Unpriced):
        ceiling_picos(plain, 1, 1)
    with pytest.raises(Unpriced):
        ceiling_picos(price({Meter.OUTPUT: 3}), 1, 1)


def test_a_cost_that_the_ledger_cannot_hold_is_refused() -> None:
    dear = price({Meter.INPUT: 2, Meter.OUTPUT: 2})
    assert cost_picos(dear, {Meter.INPUT: COST_PICOS_MAX // 2}) == COST_PICOS_MAX
    for refused in ({Meter.INPUT: COST_PICOS_MAX // 2 + 1}, {Meter.INPUT: -1}):
        with pytest.raises(CostOutOfRange):
            cost_picos(dear, refused)
    with pytest.raises(CostOutOfRange):
        ceiling_picos(dear, COST_PICOS_MAX, 0)
