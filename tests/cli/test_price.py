from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.support.command import Command

PRICE_MEMBERS = {
    *("price_id", "effective_from", "source", "tiers", "multipliers"),
    *("rates_per_million", "rates_per_unit", "rates_picos"),
}


def set_price(farebox: Command, model: str, *options: str) -> Any:
    return farebox.json("price", "set", model, "--input", "2.50", "--output", "10", *options)


def test_a_price_to_come_is_not_yet_in_force(farebox: Command) -> None:
    set_price(farebox, "mine")
    to_come = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    made = farebox.json("price", "set", "mine", "--input", "3", "--output", "4", "--effective-from", to_come)
    assert made["effective_from"] == to_come
    assert [one["in_force"] for one in farebox.json("price", "show", "mine")["prices"]] == [False, True]
    assert farebox.json("price", "list")["prices"][0]["rates_per_million"]["input"] == "2.50"
    table = farebox("price", "show", "mine").out
    assert "to come" in table
    assert "in force" in table


def test_prices_are_listed_by_pattern(farebox: Command) -> None:
    for model in ("gpt-a", "gpt-b", "other"):
        set_price(farebox, model)
    listed = farebox.json("price", "list", "--model", "gpt-*")["prices"]
    assert [one["model"] for one in listed] == ["gpt-a", "gpt-b"]
    assert listed[0].keys() == PRICE_MEMBERS | {"model", "limits"}
    assert "1 models" in farebox("price", "list", "--model", "other").out
    assert farebox.json("price", "list", "--model", "none") == {"prices": []}


def test_an_unknown_model_is_refused(farebox: Command) -> None:
    said = farebox("price", "show", "none", "--json")
    assert (said.exit_code, said.document["error"]["code"]) == (1, "model_unknown")


def test_every_meter_is_shown_in_its_unit(farebox: Command) -> None:
    options = ("--rate", "audio_output=64", "--rate", "images/high/1x1=0.04", "--rate", "audio_minutes=0.006")
    set_price(farebox, "mine", *options, "--multiplier", "flex=0.5", "--multiplier", "priority=1.75")
    cell = "audio_output 64.00, audio_minutes 0.006/minute, images/high/1x1 0.04/image"
    for command in (("list",), ("show", "mine")):
        said = farebox("price", *command).out
        assert cell in said
        assert "flex x0.50, priority x1.75" in said
    (one,) = farebox.json("price", "show", "mine")["prices"]
    assert one["rates_per_unit"] == {"audio_minutes": "0.006", "images/high/1x1": "0.04"}
    assert one["rates_picos"]["audio_milliseconds"] == 100_000
    assert one["multipliers"] == {"flex": "0.50", "priority": "1.75"}
    lines = [line.split() for line in farebox("price", "show", "mine").out.splitlines()]
    assert ["audio_minutes", "0.006", "minute"] in lines


def test_each_tier_of_the_price_in_force_is_shown(farebox: Command, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.toml"
    overlay.write_text(
        '[model."m"]\nrates = { input = "0.5", output = "1" }\n'
        'tiers = [{ above_input_tokens = 4000, rates = { input = "1" } }]\n'
    )
    farebox.json("price", "import", "--providers", "openai", "--overlay", str(overlay))
    lines = [line.split() for line in farebox("price", "show", "m").out.splitlines()]
    assert ["meter", "price", "above", "4000", "per"] in lines
    assert ["input", "0.50", "1.00", "1M", "tokens"] in lines
