"""The one multiplication: exact, whole, and never above the ceiling."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Context, Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.catalogue import METERS, Meter, Price, Rates, Tier
from gateway.core.money import COST_PICOS_MAX, ceil_nanos, round_nanos
from gateway.core.pricing import (
    STANDARD,
    CostOutOfRange,
    Terms,
    Unpriced,
    ceiling_picos,
    cost_picos,
    dearest_rate,
    dearest_rates,
    is_priced,
    is_tier_priced,
    priced_alternatives,
    rate_picos,
    rates_at,
    without_alternatives,
)

INPUTS = (Meter.INPUT, Meter.CACHED_INPUT, Meter.CACHE_WRITE)
TEXT = (*INPUTS, Meter.OUTPUT)
TOKENS = st.integers(0, 2_000_000)
RATE = st.integers(0, 10**9)
# Of the oracle below alone: what it says it has from the words of the README and the design, not from the code.
EVERY_INPUT = (
    *("input", "cached_input", "cache_write", "cache_write_12h"),
    *("audio_input", "cached_audio_input", "image_input", "cached_image_input"),
)
NEXT = {
    "cached_input": "input",
    "cache_write": "input",
    "image_input": "input",
    "cached_image_input": "image_input",
    "cached_audio_input": "audio_input",
    "reasoning_output": "output",
    "images/high/1024x1024": "images/high",
    "images/high": "images",
    "images/low/512x512": "images/low",
    "images/low": "images",
    "containers/4g": "containers",
}
TOOLS = ("web_searches", "file_searches", "containers", "containers/4g")
EVERY_NAME = (*METERS, *(name for name in NEXT if "/" in name))
SHARES = st.integers(0, 100_000)


def price(rates: Rates, *tiers: Tier) -> Price:
    return Price(1, "m", datetime(2026, 1, 1, tzinfo=UTC), "test", rates, tiers)


@st.composite
def prices(draw: st.DrawFn) -> Price:
    """Any shape of price that the catalogue can hold: cached and write rates optional, tiers partial."""
    rates: dict[str, int] = {Meter.INPUT: draw(RATE), Meter.OUTPUT: draw(RATE)}
    rates |= draw(st.dictionaries(st.sampled_from([Meter.CACHED_INPUT, Meter.CACHE_WRITE]), RATE))
    starts = sorted(draw(st.sets(st.integers(1, 1_000_000), max_size=3)))
    tier_rates = st.dictionaries(st.sampled_from(TEXT), RATE, min_size=1)
    return price(rates, *(Tier(start, draw(tier_rates)) for start in starts))


QUANTITIES = st.fixed_dictionaries({}, optional=dict.fromkeys(map(str, TEXT), TOKENS))


@st.composite
def any_prices(draw: st.DrawFn) -> Price:
    """Prices of any meters and variants, any tiers of them, and any tiers of service."""
    any_rates = st.dictionaries(st.sampled_from(EVERY_NAME), RATE, min_size=1, max_size=12)
    starts = sorted(draw(st.sets(st.integers(1, 1_000_000), max_size=2)))
    tiers = [Tier(start, draw(any_rates)) for start in starts]
    shares = draw(st.dictionaries(st.sampled_from(["flex", "priority", "batch"]), SHARES))
    return replace(price(draw(any_rates), *tiers), multipliers=shares)


USED = st.dictionaries(st.sampled_from(EVERY_NAME), TOKENS, max_size=8)
TERMS = st.builds(Terms, st.sampled_from(["", "default", "flex", "priority", "batch"]), st.integers(1, 20_000))
EXACT = Context(prec=80)


def oracle(price: Price, quantities: Mapping[str, int], terms: Terms = STANDARD) -> Decimal | None:
    """The rule again, meter by meter, in decimals: the highest tier passed that knows the meter, else its base.

    None where something that was used has no price.
    """
    total_input = sum(quantities.get(meter, 0) for meter in EVERY_INPUT)
    levels = [price.rates, *(tier.rates for tier in price.tiers if total_input > tier.above_input_tokens)]
    cost = Decimal(0)
    share = Decimal(1)
    if terms.service_tier in price.multipliers:
        share = Decimal(price.multipliers[terms.service_tier]).scaleb(-4)
    elif terms.service_tier not in {"", "default"}:
        return None
    for meter, quantity in quantities.items():
        known: str | None = meter
        while known is not None and not any(known in rates for rates in levels):
            known = NEXT.get(known)
        if known is None:
            if quantity:
                return None
            continue
        rate = EXACT.multiply(Decimal([rates[known] for rates in levels if known in rates][-1]), Decimal(1))
        rate = EXACT.multiply(rate, Decimal(terms.upstream_bp).scaleb(-4))
        if known not in TOOLS:
            rate = EXACT.multiply(rate, share)
        rate = rate.to_integral_value(ROUND_CEILING)
        cost = EXACT.add(cost, EXACT.multiply(rate, Decimal(quantity)))
    return cost


@given(prices(), QUANTITIES)
def test_a_cost_is_the_exact_sum_in_whole_picos(price: Price, quantities: dict[str, int]) -> None:
    cost = cost_picos(price, quantities)
    assert type(cost) is int
    assert cost == oracle(price, quantities)


@settings(max_examples=150, deadline=None)
@given(any_prices(), USED, TERMS)
def test_every_meter_tier_and_term_costs_what_the_oracle_says(
    price: Price, quantities: dict[str, int], terms: Terms
) -> None:
    expected = oracle(price, quantities, terms)
    try:
        cost = cost_picos(price, quantities, terms)
    except Unpriced:
        assert expected is None
    except CostOutOfRange:
        assert expected is not None
        assert expected > COST_PICOS_MAX
    else:
        assert type(cost) is int
        assert cost == expected


# What a bound of the first may turn out to be, besides itself.
MAY_BE = {
    "input": ("cached_input", "cache_write"),
    "cache_write_12h": ("input", "cached_input", "cache_write"),
    "audio_input": ("cached_audio_input", "input", "cached_input", "cache_write"),
    "image_input": ("cached_image_input", "input", "cached_input", "cache_write"),
    "output": ("reasoning_output",),
    "images": ("images/low/512x512", "images/high/1024x1024"),
    "containers": ("containers/4g",),
}


@settings(max_examples=150, deadline=None)
@given(st.data(), any_prices(), TERMS)
def test_whatever_a_bound_turns_out_to_be_its_ceiling_covers_it(
    data: st.DataObject, price: Price, terms: Terms
) -> None:
    extra = data.draw(st.dictionaries(st.sampled_from([*MAY_BE, "characters", "web_searches"]), st.integers(0, 10**5)))
    into, out = data.draw(st.integers(0, 10**6)), data.draw(st.integers(0, 10**5))
    outputs = data.draw(st.sampled_from([("output",), ("output", "audio_output"), ("image_output",)]))
    try:
        bound = dearest_rates(price, into, extra=extra, outputs=outputs, terms=terms).ceiling_picos(into, out)
    except (Unpriced, CostOutOfRange):
        return
    used: dict[str, int] = {"requests": 1} if "requests" in price.rates else {}
    for name, most in [("input", into), *((name, out) for name in outputs[-1:]), *extra.items()]:
        turned = data.draw(st.sampled_from([name, *MAY_BE.get(name, ())]))
        used[turned] = used.get(turned, 0) + data.draw(st.integers(0, most))
    cost = oracle(price, used, terms)
    # Where only variants have a price, one of another name may have none: it is then no usage, but missing.
    assert cost is None or cost <= bound


@given(prices(), QUANTITIES, TOKENS, TOKENS)
def test_no_split_of_what_was_bounded_costs_more_than_the_ceiling(
    price: Price, quantities: dict[str, int], input_spare: int, output_spare: int
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


def test_no_meter_falls_back_to_a_rate_that_may_be_lower_than_its_own() -> None:
    text: Rates = {Meter.INPUT: 3, Meter.OUTPUT: 10}
    found = {meter for meter in METERS if is_priced(text, meter)}
    plain = ("input", "cached_input", "cache_write", "image_input", "cached_image_input")
    assert found == {*plain, "output", "reasoning_output"}


@pytest.mark.parametrize("meter", EVERY_INPUT)
def test_whatever_goes_in_brings_a_request_over_the_threshold(meter: str) -> None:
    tiered = price({**dict.fromkeys(EVERY_INPUT, 1), Meter.OUTPUT: 1}, Tier(100, {Meter.OUTPUT: 7}))
    assert cost_picos(tiered, {Meter.INPUT: 60, Meter.OUTPUT: 1}) == 61
    assert cost_picos(tiered, {Meter.INPUT: 60, meter: 41 if meter != "input" else 101, Meter.OUTPUT: 1}) >= 108


def test_a_cost_that_the_ledger_cannot_hold_is_refused() -> None:
    dear = price({Meter.INPUT: 2, Meter.OUTPUT: 2})
    assert cost_picos(dear, {Meter.INPUT: COST_PICOS_MAX // 2}) == COST_PICOS_MAX
    for quantity in (COST_PICOS_MAX // 2 + 1, -1):
        with pytest.raises(CostOutOfRange):
            cost_picos(dear, {Meter.INPUT: quantity})
    with pytest.raises(CostOutOfRange):
        ceiling_picos(dear, COST_PICOS_MAX, 0)


def test_a_tier_of_service_and_an_upstream_multiply_every_rate() -> None:
    plain = price({Meter.INPUT: 3, Meter.OUTPUT: 10})
    dear = replace(plain, multipliers={"priority": 20_000, "flex": 5_000})
    used: Rates = {Meter.INPUT: 10, Meter.OUTPUT: 10}
    # Each rate is rounded up to a whole pico once: 1.5 is 2; 3 at 1.1 is 4.
    table = {("", 10_000): 130, ("priority", 10_000): 260, ("flex", 10_000): 70, ("default", 11_000): 150}
    for (tier, upstream_bp), picos in table.items():
        assert cost_picos(dear, used, Terms(tier, upstream_bp)) == picos
        assert dearest_rates(dear, 10, terms=Terms(tier, upstream_bp)).ceiling_picos(10, 10) == picos
    with pytest.raises(Unpriced):
        cost_picos(plain, used, Terms("priority"))


def test_the_fees_of_hosted_tools_are_the_same_in_every_tier_of_service() -> None:
    tools = {Meter.WEB_SEARCHES: 10, Meter.FILE_SEARCHES: 5, "containers/4g": 7}
    one = replace(price({Meter.INPUT: 4, **tools}), multipliers={"flex": 5_000, "priority": 20_000})
    used: Rates = {Meter.INPUT: 1, Meter.WEB_SEARCHES: 1, Meter.FILE_SEARCHES: 1, "containers/4g": 1}
    # 2 and 8 for the token; 22 for the tools, and 25 with an upstream's tenth on top: 11 + 6 + 8, each rounded up.
    table = {Terms("flex"): 24, Terms("priority"): 30, Terms("flex", 11_000): 3 + 25}
    assert {terms: cost_picos(one, used, terms) for terms in table} == table


def test_a_call_cannot_name_itself_a_batch() -> None:
    halved = replace(price({Meter.INPUT: 4}), multipliers={"batch": 5_000, "flex": 5_000})
    assert [is_tier_priced(halved, tier) for tier in ("batch", "flex", "priority", "")] == [False, True, False, True]
    # Whoever takes batches bills them so.
    assert cost_picos(halved, {Meter.INPUT: 1}, Terms("batch")) == 2


def test_a_variant_is_priced_by_its_own_rate_or_the_more_general() -> None:
    rates = {"images": 40, "images/high": 60, "images/high/1024x1536": 90}
    table = {"images": 40, "images/low/512x512": 40, "images/high/1x1": 60, "images/high/1024x1536": 90}
    assert {name: rate_picos(rates, name) for name in table} == table
    # Of what is not known, the dearest counts.
    assert (dearest_rate(rates, "images"), dearest_rate({"images/low": 2}, "images")) == (90, 2)
    assert dearest_rate({Meter.WEB_SEARCHES: 5}, Meter.WEB_SEARCHES) == 5
    # Usage need not tell sound and images from text.
    text: Rates = {Meter.INPUT: 7, Meter.CACHE_WRITE: 9, Meter.AUDIO_INPUT: 2, Meter.IMAGE_INPUT: 3}
    assert dearest_rate(text, Meter.AUDIO_INPUT) == dearest_rate(text, Meter.IMAGE_INPUT) == 9
    with pytest.raises(Unpriced):
        rate_picos({"images/high": 1}, "images/low")


def test_a_call_is_bounded_by_the_dearest_way_in_which_its_model_is_priced() -> None:
    spoken, written = frozenset({Meter.CHARACTERS}), frozenset({Meter.INPUT, Meter.AUDIO_OUTPUT})
    by_character = price({Meter.CHARACTERS: 5})
    assert priced_alternatives(by_character, (spoken, written)) == [spoken]
    used: Rates = {Meter.CHARACTERS: 1, Meter.INPUT: 2, Meter.AUDIO_OUTPUT: 3, Meter.IMAGES: 4}
    assert without_alternatives(used, written, (spoken, written)) == {
        Meter.INPUT: 2,
        Meter.AUDIO_OUTPUT: 3,
        Meter.IMAGES: 4,
    }
    with pytest.raises(Unpriced):
        priced_alternatives(price({Meter.INPUT: 1}), (spoken, written))
