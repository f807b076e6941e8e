from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import BadUsage
from tests.support.command import Command

PRICE_MEMBERS = {"price_id", "effective_from", "source", "rates_per_million", "rates_picos", "tiers"}
OVERLAY = """
[model."local-model"]
context_tokens_max = 8192
output_tokens_max = 1024
rates = { input = "0.5", output = "1.25" }
tiers = [{ above_input_tokens = 4000, rates = { input = "1" } }]
"""


def set_price(farebox: Command, model: str, *options: str) -> Any:
    return farebox.json("price", "set", model, "--input", "2.50", "--output", "10", *options)


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


def test_a_price_in_the_past_is_refused(farebox: Command) -> None:
    options = ("--input", "1", "--output", "1", "--effective-from", "2020-01-01")
    said = farebox("price", "set", "mine", *options)
    assert (said.exit_code, said.out) == (2, "")
    assert "lies in the past" in said.err


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


def test_the_catalogue_is_imported_once(farebox: Command, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.toml"
    overlay.write_text(OVERLAY)
    options = ("price", "import", "--providers", "openai", "--overlay", str(overlay))
    tried = farebox.json(*options, "--dry-run")
    assert tried.keys() == {"dry_run", "added", "unchanged", "kept", "skipped", "limits_changed", "changes"}
    assert farebox.json("price", "list") == {"prices": []}
    first = farebox.json(*options)
    assert (first["dry_run"], first["added"], first["changes"]) == (False, tried["added"], tried["changes"])
    assert first["added"] == len(first["changes"]) > 50
    assert first["changes"][0].keys() == {"model", "before", "after", "source"}
    second = farebox.json(*options)
    assert (second["added"], second["unchanged"], second["limits_changed"]) == (0, first["added"], 0)
    (local,) = farebox.json("price", "list", "--model", "local-model")["prices"]
    assert local["rates_per_million"] == {"input": "0.50", "output": "1.25"}
    assert local["limits"]["output_tokens_max"] == 1_024
    assert local["tiers"] == [
        {"above_input_tokens": 4_000, "rates_per_million": {"input": "1.00"}, "rates_picos": {"input": 1_000_000}}
    ]
    # A change of the overlay is shown beside what it replaces.
    overlay.write_text(OVERLAY.replace('"0.5"', '"0.75"'))
    said = farebox(*options)
    assert "local-model   0.75" in said.out
    assert f"1 prices added, {first['added'] - 1} unchanged, 0 set by hand and kept" in said.out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["set", "m", "--input", "1"], "Missing option '--output'"),
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


def test_a_bad_catalogue_is_one_clear_line(farebox: Command, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.toml"
    overlay.write_text('[model."m"]\nrates = { input = "-1" }\n')
    for options, why in (
        (("--overlay", str(overlay)), 'model."m".rates.input'),
        (("--overlay", str(tmp_path / "absent.toml")), "absent.toml"),
        (("--providers", "nobody"), "'nobody' is not one of"),
    ):
        said = farebox("price", "import", *options)
        assert (said.exit_code, said.out, said.err.count("\n")) == (2, "", 1)
        assert why in said.err
    assert farebox.json("price", "list") == {"prices": []}
