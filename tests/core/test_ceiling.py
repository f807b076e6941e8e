"""Bounds of a call: never below what it can cost, and the largest cap that a sum can buy."""

from datetime import UTC, datetime

import pytest

from gateway.core.catalogue import Meter, Model, Price, Rates, Tier
from gateway.core.ceiling import Bounds, CapTooLarge, Ceiling, Slice, ceiling
from gateway.core.money import ceil_nanos
from gateway.core.pricing import CostOutOfRange, Unpriced, cost_picos

MODEL = Model("m", context_tokens_max=1_000, output_tokens_max=100)
RATES: Rates = {Meter.INPUT: 1_000, Meter.OUTPUT: 4_000}


def price_of(rates: Rates = RATES, tiers: tuple[Tier, ...] = ()) -> Price:
    return Price(1, "m", datetime(2026, 1, 1, tzinfo=UTC), "test", rates, tiers)


def bounds_of(tokens_in: int, cap: int | None, choices: int = 1, extra: Rates | None = None, passes: int = 1) -> Bounds:
    return Bounds(tokens_in, cap, choices, extra or {}, (Meter.OUTPUT,), passes)


def ceiling_of(price: Price, tokens_in: int, cap: int | None, choices: int = 1, least: int = 16) -> Ceiling:
    return ceiling(price, MODEL, bounds_of(tokens_in, cap, choices), min_output_tokens=least)


DEAR_ABOVE_10 = (Tier(10, {Meter.INPUT: 2_000}),)


@pytest.mark.parametrize(
    ("price", "tokens_in", "cap", "choices", "least", "expected"),
    [
        (price_of(), 10, 5, 1, 16, (10, 5, 30, 30)),
        (price_of(), 10, 5, 3, 16, (10, 5, 70, 70)),
        (price_of(), 10, 100, 1, 16, (10, 100, 410, 410)),
        (price_of(), 10, None, 1, 16, (10, 100, 410, 74)),
        (price_of(), 10, None, 2, 16, (10, 100, 810, 138)),
        (price_of(), 10, None, 1, 101, (10, 100, 410, 410)),  # the model says less than the least
        (price_of(), 5_000, 0, 1, 16, (1_000, 0, 1_000, 1_000)),  # the context bounds the prompt
        (price_of({Meter.INPUT: 1, Meter.OUTPUT: 0}), 1, 1, 1, 16, (1, 1, 1, 1)),  # a pico is held as a nano
        (price_of({Meter.INPUT: 0, Meter.OUTPUT: 0}), 10, None, 1, 16, (10, 100, 0, 0)),
        (price_of({**RATES, Meter.CACHE_WRITE: 1_250}), 100, 0, 1, 16, (100, 0, 125, 125)),
        (price_of({**RATES, Meter.CACHED_INPUT: 500}), 100, 0, 1, 16, (100, 0, 100, 100)),
        (price_of(tiers=DEAR_ABOVE_10), 10, 0, 1, 16, (10, 0, 10, 10)),
        (price_of(tiers=DEAR_ABOVE_10), 11, 0, 1, 16, (11, 0, 22, 22)),
    ],
)
def test_the_most_a_call_can_cost(
    price: Price, tokens_in: int, cap: int | None, choices: int, least: int, expected: tuple[int, ...]
) -> None:
    assert ceiling_of(price, tokens_in, cap, choices, least)[:4] == expected


@pytest.mark.parametrize(
    ("cap", "choices", "least", "slice_tokens", "expected"),
    [
        (None, 1, 16, 40, (10, 100, 410, 74, Slice(40, 16, 170))),
        (None, 2, 16, 40, (10, 100, 810, 138, Slice(40, 16, 330))),
        (None, 1, 50, 40, (10, 100, 410, 210, Slice(50, 50, 210))),  # never less than the least
        (None, 1, 16, 99, (10, 100, 410, 74, Slice(99, 16, 406))),
        (None, 1, 16, 100, (10, 100, 410, 74)),  # never more than the model's maximum
        (None, 1, 16, 4_096, (10, 100, 410, 74)),
        (50, 1, 16, 40, (10, 50, 210, 210)),  # a cap of the client is held whole
    ],
)
def test_a_hold_that_grows_begins_with_a_slice(
    cap: int | None, choices: int, least: int, slice_tokens: int, expected: tuple[object, ...]
) -> None:
    bounds = bounds_of(10, cap, choices)
    found = ceiling(price_of(), MODEL, bounds, min_output_tokens=least, slice_tokens=slice_tokens)
    assert found[:5] == (*expected, None)[:5]
    assert found.first_nanos == (found.slice.nanos if found.slice else found.nanos)


def test_free_output_needs_no_slices() -> None:
    free = price_of({Meter.INPUT: 1_000, Meter.OUTPUT: 0})
    found = ceiling(free, MODEL, bounds_of(10, None), min_output_tokens=16, slice_tokens=40)
    assert found[:5] == (10, 100, 10, 10, None)


def test_what_is_bought_is_what_covers_it() -> None:
    for price in (price_of(), price_of({Meter.INPUT: 1_333, Meter.OUTPUT: 777}, DEAR_ABOVE_10)):
        for choices in (1, 3):
            bound = ceiling_of(price, 11, None, choices)
            for tokens in range(100):
                nanos = bound.covering_nanos(tokens)
                assert bound.affordable_output_tokens(nanos) >= tokens
                assert bound.affordable_output_tokens(nanos - 1) < max(tokens, 1)


def test_what_else_is_used_is_part_of_the_ceiling() -> None:
    price = price_of({**RATES, Meter.AUDIO_INPUT: 9_000, Meter.CACHED_AUDIO_INPUT: 10_000, "images/high": 50_000})
    extra: Rates = {Meter.AUDIO_INPUT: 20, Meter.IMAGES: 2}
    found = ceiling(price, MODEL, bounds_of(10, 5, extra=extra), min_output_tokens=16)
    # 10 in, 5 out, 20 of sound at the dearer of two rates, two images at the only rate there is.
    assert found.nanos == 10 + 20 + 200 + 100
    assert found.covering_nanos(0) == 310
    # No meter of input counts more than the model can read, as often as it reads it.
    for passes in (1, 3):
        heard = bounds_of(0, 0, extra={Meter.AUDIO_INPUT: 10**9}, passes=passes)
        assert ceiling(price, MODEL, heard, min_output_tokens=16).nanos == 10 * MODEL.context_tokens_max * passes
    with pytest.raises(Unpriced):
        ceiling(price, MODEL, bounds_of(1, 1, extra={Meter.CHARACTERS: 1}), min_output_tokens=16)


def test_what_has_no_ceiling_is_refused() -> None:
    with pytest.raises(CapTooLarge, match="at most 100 completion tokens"):
        ceiling_of(price_of(), 10, 101)
    with pytest.raises(Unpriced):
        ceiling_of(price_of({Meter.INPUT: 1}), 10, 5)
    with pytest.raises(Unpriced):
        ceiling_of(price_of({Meter.OUTPUT: 1}), 10, 5)
    with pytest.raises(CostOutOfRange):
        ceiling_of(price_of({Meter.INPUT: 10**12, Meter.OUTPUT: 10**12}), 10, 100, choices=10**6)


@pytest.mark.parametrize("tokens_in", [1, 10, 11, 500])
def test_no_usage_within_the_bounds_costs_more(tokens_in: int) -> None:
    price = price_of({**RATES, Meter.CACHED_INPUT: 333, Meter.CACHE_WRITE: 1_501}, DEAR_ABOVE_10)
    bound = ceiling_of(price, tokens_in, 7)
    for meter in (Meter.INPUT, Meter.CACHED_INPUT, Meter.CACHE_WRITE):
        for used in range(1, tokens_in + 1):
            assert ceil_nanos(cost_picos(price, {meter: used, Meter.OUTPUT: 7})) <= bound.nanos


@pytest.mark.parametrize("rates", [RATES, {Meter.INPUT: 1_333, Meter.OUTPUT: 777}])
@pytest.mark.parametrize("choices", [1, 3])
@pytest.mark.parametrize("nanos", [0, 9, 10, 13, 14, 17, 100, 409, 410, 10_000])
def test_the_largest_cap_that_a_sum_buys(rates: Rates, choices: int, nanos: int) -> None:
    price = price_of(rates)
    bought = ceiling_of(price, 10, None, choices).affordable_output_tokens(nanos)

    def cost(tokens: int) -> int:
        return ceil_nanos(10 * rates[Meter.INPUT] + tokens * choices * rates[Meter.OUTPUT])

    assert bought == max((tokens for tokens in range(1, 101) if cost(tokens) <= nanos), default=0)


def test_free_output_is_bounded_by_its_limit() -> None:
    assert ceiling_of(price_of({Meter.INPUT: 1, Meter.OUTPUT: 0}), 10, 77).affordable_output_tokens(10) == 77
