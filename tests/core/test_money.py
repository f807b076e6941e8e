"""Amounts are exact, and rounded once."""

import math
from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.core.money import (
    AMOUNT_NANOS_MAX,
    COST_PICOS_MAX,
    NANOS_PER_UNIT,
    InvalidAmount,
    ceil_nanos,
    format_nanos,
    parse_nanos,
    round_nanos,
    scale_exactly,
)

WIDE = Context(prec=80)
AMOUNTS = st.integers(-AMOUNT_NANOS_MAX, AMOUNT_NANOS_MAX)


@given(st.integers(-COST_PICOS_MAX, COST_PICOS_MAX))
@example(500)
@example(1_500)
@example(2_500)
@example(-500)
@example(-1_500)
def test_a_charge_is_rounded_half_to_even(picos: int) -> None:
    exact = Decimal(picos).scaleb(-3, WIDE)
    assert round_nanos(picos) == int(exact.quantize(Decimal(1), ROUND_HALF_EVEN, WIDE)) == round(Fraction(picos, 1000))


@given(st.integers(0, COST_PICOS_MAX))
def test_a_ceiling_is_rounded_up_and_never_below_the_charge(picos: int) -> None:
    assert ceil_nanos(picos) == math.ceil(Fraction(picos, 1000))
    assert 0 <= ceil_nanos(picos) - round_nanos(picos) <= 1


@given(AMOUNTS)
def test_an_amount_survives_being_written_and_read(nanos: int) -> None:
    text = format_nanos(nanos)
    assert parse_nanos(text) == nanos
    assert Fraction(text) == Fraction(nanos, NANOS_PER_UNIT)
    whole, _, fraction = text.partition(".")
    assert 2 <= len(fraction) <= 9
    assert len(fraction) == 2 or not fraction.endswith("0")
    assert whole.lstrip("-").isdigit()


@pytest.mark.parametrize(
    ("nanos", "text"),
    [
        (0, "0.00"),
        (1, "0.000000001"),
        (-1, "-0.000000001"),
        (123_000, "0.000123"),
        (5_000_000_000, "5.00"),
        (-250_000_000, "-0.25"),
    ],
)
def test_amounts_are_written_for_people(nanos: int, text: str) -> None:
    assert format_nanos(nanos) == text


@pytest.mark.parametrize(
    ("text", "nanos"),
    [
        ("5", 5 * NANOS_PER_UNIT),
        ("+.5", 500_000_000),
        ("-0.25", -250_000_000),
        ("1.", NANOS_PER_UNIT),
        ("1e3", 1_000 * NANOS_PER_UNIT),
        ("1E-9", 1),
        ("0E-999", 0),
        ("1.000000000000000000000000000000000000000", NANOS_PER_UNIT),
        ("2305843009.213693952", AMOUNT_NANOS_MAX),
    ],
)
def test_plain_decimals_are_read(text: str, nanos: int) -> None:
    assert parse_nanos(text) == nanos


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "-",
        "five",
        "NaN",
        "inf",
        "1,5",
        "1_0",
        " 5",
        "5\n",
        "\u0663",
        "0x10",
        "1e9999",
        "1E+999",
        "1E-999",
        "0.0000000001",
        "1.0000000000000000000000000000001",
        "2305843009.213693953",
        "9" * 60,
    ],
)
def test_what_is_not_an_exact_amount_in_range_is_refused(text: str) -> None:
    with pytest.raises(InvalidAmount):
        parse_nanos(text)


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**18), max_value=10**18), st.integers(0, 12))
def test_scaling_is_exact_or_refused(amount: Decimal, places: int) -> None:
    exact = Fraction(amount) * 10**places
    scaled = scale_exactly(amount, places)
    assert scaled == exact if exact.denominator == 1 else scaled is None
