"""The catalogue comes in once, and every difference is said before it does."""

from pathlib import Path

from tests.cli.test_price import set_price
from tests.support.command import Command

OVERLAY = """
[model."local-model"]
context_tokens_max = 8192
output_tokens_max = 1024
rates = { input = "0.5", output = "1.25" }
tiers = [{ above_input_tokens = 4000, rates = { input = "1" } }]
"""


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
        {
            "above_input_tokens": 4_000,
            "rates_per_million": {"input": "1.00"},
            "rates_per_unit": {},
            "rates_picos": {"input": 1_000_000},
        }
    ]
    # A change of the overlay is shown beside what it replaces.
    overlay.write_text(OVERLAY.replace('"0.5"', '"0.75"'))
    said = farebox(*options)
    assert "local-model   0.75" in said.out
    assert f"1 prices added, {first['added'] - 1} unchanged, 0 set by hand and kept" in said.out


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


def test_a_check_says_every_difference_and_changes_nothing(farebox: Command, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.toml"
    overlay.write_text(OVERLAY)
    options = ("--providers", "openai", "--overlay", str(overlay))
    first = farebox("price", "check", *options, "--json")
    assert (first.exit_code, {change["kind"] for change in first.document["changes"]}) == (1, {"new"})
    assert first.document.keys() == {"different", "unchanged", "set_by_hand", "left_out", "changes"}
    assert farebox.json("price", "list") == {"prices": []}
    added = farebox.json("price", "import", *options)["added"]
    clean = farebox("price", "check", *options, "--json")
    assert (clean.exit_code, clean.document["different"], clean.document["unchanged"]) == (0, 0, added)
    # A rate, a rate in a tier, a limit, a tier of service; one model more and one less; one set by hand is left alone.
    set_price(farebox, "gpt-4o")
    changed = OVERLAY.replace('"1.25"', '"1.5"').replace('input = "1"', 'input = "2"').replace("1024", "2048")
    changed += 'multipliers = { flex = "0.5" }\n[model."more"]\nrates = { images = "0.04" }\n'
    overlay.write_text(changed + '[model."gpt-4.1"]\nunpriced = "not here"\n')
    said = farebox("price", "check", *options, "--json")
    assert (said.exit_code, said.document["different"], said.document["set_by_hand"]) == (1, 3, ["gpt-4o"])
    by_model = {change["model"]: change for change in said.document["changes"]}
    assert (by_model["gpt-4.1"]["kind"], by_model["gpt-4.1"]["reason"]) == ("removed", "not here")
    assert by_model["more"]["kind"] == "new"
    parts = by_model["local-model"]["parts"]
    assert [(part["name"], part["above_input_tokens"], part["before_text"], part["after_text"]) for part in parts] == [
        ("output", None, "1.25", "1.50"),
        ("input", 4_000, "1.00", "2.00"),
        ("output_tokens_max", None, "1024", "2048"),
        ("flex", None, None, "x0.50"),
    ]
    table = [line.split() for line in farebox("price", "check", *options).out.splitlines()]
    assert ["local-model", "output", "per", "1M", "tokens", "1.25", "1.50"] in table
    assert ["more", "images", "0.04"] in table
    assert ["gpt-4.1", "not", "here"] in table
    assert f"1 new, 1 changed, 1 removed, {added - 3} unchanged, 1 set by hand".split() in table
    # What was said comes in, and then nothing differs but what no import takes away.
    assert farebox.json("price", "import", *options)["added"] == 2
    after = farebox("price", "check", *options, "--json").document
    assert [(change["model"], change["kind"]) for change in after["changes"]] == [("gpt-4.1", "removed")]
