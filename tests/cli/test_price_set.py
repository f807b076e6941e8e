"""A price by hand: exact, of any meter, and refused where it says nothing clear."""

from typing import Any

import pytest

from tests.cli.conftest import BadUsage
from tests.cli.test_price import PRICE_MEMBERS, set_price
from tests.support.command import Command


def test_a_price_is_set_for_a_new_model(farebox: Command) -> None:
    made = set_price(farebox, "mine", "--cached-input", "0.075", "--cache-write", "0", "--actor", "me")
    assert made["rates_per_million"] == {
        "input": "2.50",
        "cached_input": "0.075",
        "cache_write": "0.00",
        "output": "10.00",
    }
    assert made["rates_picos"] == {
        "input": 2_500_000,
        "cached_input": 75_000,
        "cache_write": 0,
        "output": 10_000_000,
    }
    assert made["limits"]["context_tokens_max"] == 128_000
    assert made["limits"]["output_tokens_max"] == 16_384
    shown = farebox.json("price", "show", "mine")
    assert shown.keys() == {"model", "limits", "prices"}
    assert shown["prices"][0].keys() == PRICE_MEMBERS | {"in_force"}
    assert (shown["prices"][0]["source"], shown["prices"][0]["in_force"]) == ("set by me", True)


def test_a_new_version_keeps_limits_and_history(farebox: Command) -> None:
    set_price(farebox, "mine", "--context", "1000", "--max-output", "100")
    made = farebox.json("price", "set", "mine", "--input", "0", "--output", "0", "--max-output", "200")
    assert made["limits"]["context_tokens_max"] == 1_000
    assert made["limits"]["output_tokens_max"] == 200
    shown = farebox.json("price", "show", "mine")
    assert [(one["rates_picos"], one["in_force"]) for one in shown["prices"]] == [
        ({"input": 0, "output": 0}, True),
        ({"input": 2_500_000, "output": 10_000_000}, False),
    ]
    # 0 is a price: the model is on offer, for nothing.
    assert farebox.json("price", "list")["prices"][0]["rates_per_million"] == {"input": "0.00", "output": "0.00"}


def test_a_price_in_the_past_is_refused(farebox: Command) -> None:
    options = ("--input", "1", "--output", "1", "--effective-from", "2020-01-01")
    said = farebox("price", "set", "mine", *options)
    assert (said.exit_code, said.out) == (2, "")
    assert "lies in the past" in said.err


def test_any_meter_can_be_priced_without_tokens(farebox: Command) -> None:
    options = ("--rate", "characters=15", "--rate", "containers/4g=0.12", "--rate", "web_searches=0.01")
    made: Any = farebox.json("price", "set", "voice", *options, "--multiplier", "flex=0.5")
    assert made["rates_picos"] == {
        "characters": 15_000_000,
        "web_searches": 10_000_000_000,
        "containers/4g": 120_000_000_000,
    }
    assert made["multipliers"] == {"flex": "0.50"}
    said = farebox("price", "set", "voice", *options).out
    assert said.startswith(
        "voice: characters 15.00/1M characters, containers/4g 0.12/container, web_searches 0.01/search"
    )


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["set", "m"], "no price is given"),
        (["set", "m", "--context", "5"], "no price is given"),
        (["set", "m", "--rate", "input"], "'input' is not METER=PRICE"),
        (["set", "m", "--rate", "input=-1"], "'input=-1' is not METER=PRICE"),
        (["set", "m", "--rate", "words=1"], "words: not a meter"),
        (["set", "m", "--rate", "audio_milliseconds=1"], "audio_milliseconds: not a meter"),
        (["set", "m", "--rate", "audio_hours=0.111"], "0.111 per hour is no whole number of picos"),
        (["set", "m", "--rate", "images=1", "--rate", "images=2"], "images is given twice"),
        (["set", "m", "--rate", "audio_hours=36", "--rate", "audio_seconds=1"], "audio_milliseconds is given twice"),
        (["set", "m", "--input", "1", "--rate", "input=2"], "input is given twice"),
        (["set", "m", "--input", "1", "--multiplier", "flex"], "'flex' is not TIER=TIMES"),
        (["set", "m", "--input", "1", "--multiplier", "flex=0.00001"], "more than four decimal places"),
        (["set", "m", "--input", "1", "--multiplier", "flex=101"], "out of range"),
        (["set", "m", "--input", "1", "--multiplier", "F!=1"], "is not the name of a tier"),
        (["set", "m", "--input", "1", "--multiplier", "a=1", "--multiplier", "a=2"], "a is given twice"),
        (["set", "m", "--input", "-1", "--output", "1"], "'-1' is not a decimal price per million"),
        (["set", "m", "--input", "1e3", "--output", "1"], "'1e3' is not a decimal price per million"),
        (["set", "m", "--input", "0.0000001", "--output", "1"], "more than six decimal places"),
        (["set", "m", "--input", "10000001", "--output", "1"], "out of range"),
        (["set", "m", "--input", "1", "--output", "1", "--context", "0"], "not in the range"),
        (["set", "m", "--input", "1", "--output", "1", "--max-output", "many"], "not a valid integer"),
        (["set", "m", "--input", "1", "--output", "1", "--effective-from", "later"], "'later' is not a time"),
        (["set", "", "--input", "1", "--output", "1"], "must not be empty"),
        (["import", "--providers", "open ai,,"], "names separated by commas"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_bad_usage_is_one_clear_line(bad_usage: BadUsage, arguments: list[str], why: str) -> None:
    assert why in bad_usage("price", *arguments)
