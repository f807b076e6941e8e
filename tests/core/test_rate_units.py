"""A price means what its unit says, to the pico, and is shown as it was given."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.catalogue import METERS, InvalidPrice, Meter, rate_picos_max
from gateway.core.rate_units import (
    RATE_NAMES,
    format_multiplier,
    format_rate,
    is_per_million,
    rate_name,
    rate_per_thousand,
    read_multiplier,
    read_rate,
    unit_of,
)

PICOS = 10**12


@pytest.mark.parametrize(
    ("name", "text", "meter", "units_of_use"),
    [
        ("input", "2.50", "input", 10**6),
        ("cache_write_12h", "0.000001", "cache_write_12h", 10**6),
        ("characters", "15", "characters", 10**6),
        ("audio_seconds", "0.0001", "audio_milliseconds", 1_000),
        ("audio_minutes", "0.006", "audio_milliseconds", 60_000),
        ("audio_hours", "0.36", "audio_milliseconds", 3_600_000),
        ("images", "0.04", "images", 1),
        ("images/high/1024x1536", "0.25", "images/high/1024x1536", 1),
        ("containers/4g", "0.12", "containers/4g", 1),
        ("web_searches", "0.01", "web_searches", 1),
        ("requests", "0.000000000001", "requests", 1),
    ],
)
def test_a_price_is_whole_picos_of_its_meter(name: str, text: str, meter: str, units_of_use: int) -> None:
    found, picos = read_rate(name, Decimal(text))
    assert found == meter
    assert picos * units_of_use == Decimal(text) * PICOS
    # Shown, it can be given back.
    assert read_rate(rate_name(found), Decimal(format_rate(found, picos))) == (found, picos)


def test_well_known_prices_by_hand() -> None:
    # 0.006 a minute is 60,000 ms; 10 a thousand searches is a cent each.
    assert read_rate("audio_minutes", Decimal("0.006")) == (Meter.AUDIO_MILLISECONDS, 100_000)
    assert read_rate("images", Decimal("0.04")) == (Meter.IMAGES, 40_000_000_000)
    assert rate_per_thousand(Meter.WEB_SEARCHES, Decimal(10)) == 10_000_000_000
    assert (format_rate("audio_milliseconds", 100_000), unit_of("audio_milliseconds")) == ("0.006", "minute")
    assert (format_rate("images/low", 40_000_000_000), unit_of("images/low")) == ("0.04", "image")
    assert (read_multiplier(Decimal("1.75")), format_multiplier(17_500), format_multiplier(5_000)) == (
        17_500,
        "1.75",
        "0.50",
    )


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("words", "1", "not a meter"),
        ("images/", "1", "not a meter"),
        ("input/high", "1", "not a meter"),
        # Nobody says per what: it is refused before it is misread.
        ("audio_milliseconds", "1", "not a meter"),
        ("audio_hours", "0.111", "no whole number of picos"),
        ("audio_minutes", "0.017", "no whole number of picos"),
        ("images", "0.0000000000001", "no whole number of picos"),
        ("images", "1001", "per image is out of range"),
        ("images", "-0.01", "per image is out of range"),
        ("containers/4g", "NaN", "per container is out of range"),
        ("requests", "1E+999999", "per request is out of range"),
        ("audio_seconds", "Infinity", "per second is out of range"),
        ("characters", "0.0000001", "more than six decimal places"),
    ],
)
def test_what_is_not_exact_or_not_a_price_is_refused(name: str, text: str, why: str) -> None:
    with pytest.raises(InvalidPrice, match=why):
        read_rate(name, Decimal(text))


@pytest.mark.parametrize("text", ["-1", "NaN", "1.00001", "100.1", "1E+99999"])
def test_a_multiplier_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(InvalidPrice, match="times"):
        read_multiplier(Decimal(text))


@given(st.sampled_from([*METERS, "images/a/b"]), st.data())
def test_every_rate_can_be_shown_and_given_back(meter: str, data: st.DataObject) -> None:
    picos = data.draw(st.integers(0, rate_picos_max(meter)))
    shown = Decimal(format_rate(meter, picos))
    assert read_rate(rate_name(meter), shown) == (meter, picos)
    assert is_per_million(meter) == unit_of(meter).startswith("1M")
    assert rate_name(meter) in RATE_NAMES or "/" in meter
