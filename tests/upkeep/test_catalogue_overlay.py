"""An overlay is data from outside: what is wrong in it is refused by name."""

from pathlib import Path

import pytest

from gateway.core.catalogue import InvalidPrice, Meter, Tier
from gateway.upkeep.catalogue_overlay import NAME_CHARACTERS_MAX, OVERLAY_BYTES_MAX, parse_overlay, read_overlay

RATES = 'rates = { input = "1" }'


def test_a_model_is_read_whole() -> None:
    note = parse_overlay(
        f"""
        [model."vendor/name:1"]
        context_tokens_max = 8_192
        output_tokens_max = 1
        hidden_reasoning = false
        owned_by = "us"
        {RATES}
        tiers = [{{ above_input_tokens = 5, rates = {{ output = "0.000001" }} }}]
        extra_rates = {{ "containers/4g" = "0.12", "images/high/1x1" = "0.04", audio_minutes = "0.006" }}
        derived_rates = {{ cache_write_12h = "2 input", audio_output = "output" }}
        multipliers = {{ flex = "0.5", priority = "1.75" }}
        """
    ).models["vendor/name:1"]
    assert (note.context_tokens_max, note.output_tokens_max, note.hidden_reasoning) == (8_192, 1, False)
    assert (note.rates, note.tiers) == ({Meter.INPUT: 1_000_000}, (Tier(5, {Meter.OUTPUT: 1}),))
    assert note.owned_by == "us"
    assert note.extra_rates == {
        "containers/4g": 120_000_000_000,
        "images/high/1x1": 40_000_000_000,
        "audio_milliseconds": 100_000,
    }
    assert note.derived_rates == {"cache_write_12h": ("input", 20_000), "audio_output": ("output", 10_000)}
    assert note.multipliers == {"flex": 5_000, "priority": 17_500}


def test_the_example_in_the_readme_is_an_overlay() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    example = text[text.index('    [model."gpt-4o-mini"]') :].partition("\n\n")[0]
    models = parse_overlay(example).models
    assert models["gpt-4o-mini"].multipliers == {"priority": 16_667}
    assert models["gpt-4o-mini"].extra_rates == {"containers": 30_000_000_000, "containers/4g": 120_000_000_000}
    assert models["local/whisper"].rates == {"audio_milliseconds": 50_000}


def test_the_first_family_that_covers_a_name_counts_after_the_exact_note() -> None:
    overlay = parse_overlay(
        """
        [model.abc]
        output_tokens_max = 1
        [[family]]
        match = "ab*"
        provider = "acme"
        output_tokens_max = 2
        [[family]]
        match = "a?[c-d]"
        output_tokens_max = 3
        [[family]]
        match = "*"
        output_tokens_max = 4
        """
    )
    table = {("abc", "acme"): [1, 2], ("abc", None): [1, 3], ("abd", "other"): [3], ("ABC", "acme"): [4]}
    for (name, provider), limits in table.items():
        assert [note.output_tokens_max for note in overlay.notes_on(name, provider)] == limits


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("models = 1", "models: unknown"),
        ("model = 1", "model: must be a table"),
        ("[model]\nx = 1", 'model."x": must be a table'),
        ('[model.""]', 'model."": a model'),
        ('[model." x"]', 'model." x": a model'),
        (f'[model."{"x" * (NAME_CHARACTERS_MAX + 1)}"]', "a model's name"),
        ("[model.x]\nprice = 1", 'model."x".price: unknown'),
        ("[model.x]\noutput_tokens_max = 0", 'model."x".output_tokens_max: must be a whole number'),
        ("[model.x]\noutput_tokens_max = true", 'model."x".output_tokens_max'),
        ("[model.x]\ncontext_tokens_max = 1.5", 'model."x".context_tokens_max'),
        ("[model.x]\ncontext_tokens_max = 100_000_001", 'model."x".context_tokens_max'),
        ("[model.x]\nhidden_reasoning = 1", 'model."x".hidden_reasoning'),
        ('[model.x]\nowned_by = ""', 'model."x".owned_by'),
        ("[model.x]\nrates = {}", 'model."x".rates: must have at least one'),
        ("[model.x]\nrates = 1", 'model."x".rates: must be a table'),
        ('[model.x]\nrates = { words = "1" }', 'model."x".rates.words: not a meter'),
        ("[model.x]\nrates = { input = 2.50 }", 'model."x".rates.input: must be a decimal string'),
        ("[model.x]\nrates = { input = 2 }", 'model."x".rates.input: must be a decimal string'),
        ('[model.x]\nrates = { input = "two" }', "model.\"x\".rates.input: 'two' is not"),
        ('[model.x]\nrates = { input = "-1" }', 'model."x".rates.input: -1 per million'),
        ('[model.x]\nrates = { input = "NaN" }', 'model."x".rates.input: NaN per million'),
        ('[model.x]\nrates = { input = "0.0000001" }', 'model."x".rates.input: 1E-7 per million has more than six'),
        ('[model.x]\nrates = { input = "1000001" }', 'model."x".rates.input: 1000001 per million is out of range'),
        ("[model.x]\ntiers = []", 'model."x".tiers: given without rates'),
        (f"[model.x]\n{RATES}\ntiers = 1", 'model."x".tiers: must be a list'),
        (f"[model.x]\n{RATES}\ntiers = [{{ {RATES} }}]", 'model."x".tiers[0].above_input_tokens'),
        (f"[model.x]\n{RATES}\ntiers = [{{ above_input_tokens = 5 }}]", 'model."x".tiers[0].rates'),
        (f"[model.x]\n{RATES}\ntiers = [{{ above_input_tokens = 5, {RATES}, to = 1 }}]", 'model."x".tiers[0].to'),
        (
            f"[model.x]\n{RATES}\ntiers = [" + 2 * f"{{ above_input_tokens = 5, {RATES} }}, " + "]",
            'model."x".tiers[1].above_input_tokens: tiers must ascend',
        ),
        ('[model.x]\nrates = { audio_milliseconds = "1" }', 'model."x".rates.audio_milliseconds: not a meter'),
        ('[model.x]\nrates = { audio_hours = "0.111" }', 'model."x".rates.audio_hours: 0.111 per hour is no whole'),
        (
            '[model.x]\nrates = { audio_hours = "36", audio_seconds = "1" }',
            'model."x".rates.audio_seconds: audio_milliseconds is given twice',
        ),
        ('[model.x]\nrates = { "images/HD" = "1" }', 'model."x".rates.images/HD: not a meter'),
        ('[model.x]\nextra_rates = { images = "-1" }', 'model."x".extra_rates.images: -1 per image'),
        ('[model.x]\nderived_rates = { words = "2 input" }', 'model."x".derived_rates.words: not a meter'),
        ('[model.x]\nderived_rates = { output = "2 words" }', 'model."x".derived_rates.output: not a meter'),
        ('[model.x]\nderived_rates = { output = "x input" }', "model.\"x\".derived_rates.output: 'x' is not"),
        ("[model.x]\nderived_rates = { output = 2 }", 'model."x".derived_rates.output: must be a string'),
        ('[model.x]\nmultipliers = { flex = "0.00001" }', 'model."x".multipliers.flex: 0.00001 times has more'),
        ("[model.x]\nmultipliers = { flex = 0.5 }", 'model."x".multipliers.flex: must be a decimal string'),
        ('[model.x]\nmultipliers = { "Flex!" = "1" }', "model.\"x\".multipliers: multipliers: 'Flex!' is not"),
        (f'[model.x]\n{RATES}\nunpriced = "why"', 'model."x": give one of'),
        (f'[model.x]\n{RATES}\nlike = "y"', 'model."x": give one of'),
        ("family = 1", "family: must be a list"),
        ("[[family]]\noutput_tokens_max = 1", "family[0].match"),
        ('[[family]]\nmatch = "*"\n[[family]]\nmatch = 1', "family[1].match"),
        ('[[family]]\nmatch = "x*"\nprovider = 1', "family[0].provider"),
        ('[[family]]\nmatch = "x*"\nlike = "y"', "family[0] (x*).like"),
        ('[[family]]\nmatch = "x*"\ncontext_tokens_max = -1', "family[0] (x*).context_tokens_max"),
    ],
)
def test_bad_content_is_refused_and_its_key_named(text: str, key: str) -> None:
    with pytest.raises(InvalidPrice) as refused:
        parse_overlay(text)
    assert key in str(refused.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    bad = {
        "missing.toml": None,
        "broken.toml": b"[model",
        "latin1.toml": b"\xff",
        "wrong.toml": b"family = 1",
        "large.toml": b"#" * (OVERLAY_BYTES_MAX + 1),
    }
    for name, content in bad.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InvalidPrice, match=name):
            read_overlay(path)
