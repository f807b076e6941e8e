from datetime import UTC, datetime

from gateway.cli.price_text import multipliers_cell, other_rates_cell, rate_cells, rate_rows, rate_text, tiers_cell
from gateway.core.catalogue import Meter, Price, Rates, Tier

RATES: Rates = {Meter.INPUT: 2_500_000, Meter.CHARACTERS: 15_000_000, Meter.AUDIO_MILLISECONDS: 100_000}
PRICE = Price(
    1, "m", datetime(2026, 1, 1, tzinfo=UTC), "test", RATES, (Tier(9, {Meter.INPUT: 5_000_000}),), {"flex": 5_000}
)


def test_a_price_is_shown_in_the_unit_of_each_meter() -> None:
    assert rate_cells(RATES)[0] == "2.50"
    assert other_rates_cell(RATES) == "characters 15.00/1M characters, audio_minutes 0.006/minute"
    assert rate_text(Meter.AUDIO_OUTPUT, 64_000_000) == "audio_output 64.00"
    assert (tiers_cell(PRICE), multipliers_cell(PRICE.multipliers)) == ("above 9", "flex x0.50")
    assert rate_rows(PRICE) == [
        ("input", "2.50", "5.00", "1M tokens"),
        ("characters", "15.00", "", "1M characters"),
        ("audio_minutes", "0.006", "", "minute"),
    ]
