"""The catalogue says what the makers say, to the pico, and leaves out what it cannot say."""

import socket
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from functools import cache
from pathlib import Path

import pytest
from genai_prices.data import providers as genai_providers

from gateway.core.catalogue import InvalidPrice, Meter, Price, Rates, Tier, is_tool_meter
from gateway.core.money import format_nanos, round_nanos
from gateway.core.pricing import cost_picos
from gateway.upkeep.catalogue_overlay import read_overlay
from gateway.upkeep.catalogue_source import (
    DEFAULT_PROVIDERS,
    OUTPUT_TOKENS_NONE,
    SHIPPED_OVERLAY,
    CatalogueEntry,
    load_catalogue,
    read_catalogue,
)

AT = datetime(2026, 11, 21, 12, tzinfo=UTC)


@cache
def shipped() -> Mapping[str, CatalogueEntry]:
    return {entry.model.name: entry for entry in load_catalogue(at=AT)}


@cache
def skipped() -> Mapping[str, str]:
    return {item.name: item.reason for item in read_catalogue(at=AT).skipped}


def own(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(text)
    return path


def price_of(entry: CatalogueEntry) -> Price:
    return Price(1, entry.model.name, AT, entry.source, entry.rates, entry.tiers)


# Dollars per million tokens, as OpenAI's price list gives them: input, cached input, output.
PRICE_LIST = {
    "gpt-3.5-turbo": ("0.50", None, "1.50"),
    "gpt-4-turbo-2024-04-09": ("10.00", None, "30.00"),
    "gpt-4o": ("2.50", "1.25", "10.00"),
    "gpt-4o-2024-05-13": ("5.00", None, "15.00"),
    "gpt-4o-2024-11-20": ("2.50", "1.25", "10.00"),
    "gpt-4o-mini": ("0.15", "0.075", "0.60"),
    "gpt-4.1": ("2.00", "0.50", "8.00"),
    "gpt-4.1-mini": ("0.40", "0.10", "1.60"),
    "gpt-4.1-nano": ("0.10", "0.025", "0.40"),
    "o1": ("15.00", "7.50", "60.00"),
    "o3": ("2.00", "0.50", "8.00"),
    "o3-mini": ("1.10", "0.55", "4.40"),
    "o4-mini": ("1.10", "0.275", "4.40"),
    "gpt-5": ("1.25", "0.125", "10.00"),
    "gpt-5-mini": ("0.25", "0.025", "2.00"),
    "gpt-5-nano-2025-08-07": ("0.05", "0.005", "0.40"),
}


def test_well_known_models_cost_what_openai_lists() -> None:
    for name, (fresh, cached, output) in PRICE_LIST.items():
        stated = {Meter.INPUT: fresh, Meter.CACHED_INPUT: cached, Meter.OUTPUT: output}
        picos = {meter: int(Decimal(text) * 1_000_000) for meter, text in stated.items() if text is not None}
        tokens = {meter: rate for meter, rate in shipped()[name].rates.items() if not is_tool_meter(meter)}
        assert (name, tokens, shipped()[name].tiers) == (name, picos, ())


def test_a_golden_usage_costs_what_it_costs_by_hand() -> None:
    # 210 x 2.50 + 1,024 x 1.25 + 333 x 10.00 per million = 0.000525 + 0.00128 + 0.00333
    used: Rates = {Meter.INPUT: 210, Meter.CACHED_INPUT: 1_024, Meter.OUTPUT: 333}
    picos = cost_picos(price_of(shipped()["gpt-4o"]), used)
    assert (picos, format_nanos(round_nanos(picos))) == (5_135_000_000, "0.005135")
    # 7 x 0.005 per million is 35 nanos; 1 x 0.005 is 5. Nothing is lost on the way.
    assert round_nanos(cost_picos(price_of(shipped()["gpt-5-nano"]), {Meter.CACHED_INPUT: 7})) == 35


def test_long_context_reprices_the_whole_request_by_hand() -> None:
    entry = shipped()["gpt-5.4"]
    assert entry.tiers == (
        Tier(272_000, {Meter.INPUT: 5_000_000, Meter.CACHED_INPUT: 500_000, Meter.OUTPUT: 22_500_000}),
    )
    at_the_edge: dict[str, int] = {Meter.INPUT: 200_000, Meter.CACHED_INPUT: 72_000, Meter.OUTPUT: 10}
    # 0.5 + 0.018 + 0.00015, and one token more: 1.000005 + 0.036 + 0.000225
    assert cost_picos(price_of(entry), at_the_edge) == 518_150_000_000
    assert cost_picos(price_of(entry), at_the_edge | {Meter.INPUT: 200_001}) == 1_036_230_000_000


def test_every_number_is_whole_and_names_come_once() -> None:
    catalogue = read_catalogue(at=AT)
    names = [entry.model.name for entry in catalogue.entries] + [item.name for item in catalogue.skipped]
    assert len(names) == len(set(names))
    all_rates: list[Rates] = []
    for entry in catalogue.entries:
        all_rates += [entry.rates, *(tier.rates for tier in entry.tiers)]
        assert type(entry.model.context_tokens_max) is type(entry.model.output_tokens_max) is int
        assert min(entry.model.context_tokens_max, entry.model.output_tokens_max) >= 1
        assert entry.source
        starts = [tier.above_input_tokens for tier in entry.tiers]
        assert starts == sorted(set(starts))
    assert {type(picos) for rates in all_rates for picos in rates.values()} == {int}


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the catalogue opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert load_catalogue(at=AT)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("deepseek-chat", "time of day"),
        ("gemini-2.5-flash-image", "usage does not show"),
        ("mistral-ocr-latest", "input_document_kpages"),
        ("gpt-4o-search-preview", "fee per search"),
        ("gpt-live-1", "session"),
        ("whisper-large-v3", "ten seconds"),
        ("gpt-oss-120b", "host"),
    ],
)
def test_what_cannot_be_priced_exactly_is_skipped_with_its_reason(name: str, reason: str) -> None:
    assert name not in shipped()
    assert reason in skipped()[name]


# By hand from the price lists: dollars per million, but per hour of sound and per thousand searches.
EVERY_DIMENSION: Mapping[str, Mapping[str, str]] = {
    "gpt-audio": {"input": "2.5", "output": "10", "audio_input": "32", "audio_output": "64"},
    "gpt-realtime": {
        "input": "4",
        "cached_input": "0.4",
        "output": "16",
        "audio_input": "32",
        "cached_audio_input": "0.4",
        "audio_output": "64",
        "image_input": "5",
        "cached_image_input": "0.5",
    },
    "gpt-image-1.5": {
        "input": "5",
        "cached_input": "1.25",
        "output": "10",
        "image_input": "8",
        "cached_image_input": "2",
        "image_output": "32",
    },
    # One rate for all that is put out: images and text.
    "gpt-image-2": {
        "input": "5",
        "cached_input": "1.25",
        "output": "30",
        "image_input": "8",
        "cached_image_input": "2",
        "image_output": "30",
    },
    # Of two prices that the sources give the dearer.
    "gpt-4o-transcribe": {"input": "2.5", "output": "10", "audio_input": "6"},
    "gpt-4o-mini-transcribe": {"input": "1.25", "output": "5", "audio_input": "3"},
    "gpt-4o-mini-tts": {"input": "0.6", "output": "12", "audio_output": "12"},
    "tts-1-hd": {"characters": "30"},
    "text-embedding-3-small": {"input": "0.02"},
    "omni-moderation-latest": {"requests": "0"},
}


@pytest.mark.parametrize("name", EVERY_DIMENSION)
def test_every_dimension_has_the_price_of_the_list(name: str) -> None:
    picos = {meter: int(Decimal(text) * 1_000_000) for meter, text in EVERY_DIMENSION[name].items()}
    assert shipped()[name].rates == picos


def test_sound_by_time_searches_and_long_caches_have_the_price_of_the_list() -> None:
    # 0.006 a minute; 0.0045 a minute; 0.017 a minute, which is 283,333 1/3 picos a millisecond.
    sound = {"whisper-1": 100_000, "gpt-transcribe": 75_000, "gpt-realtime-whisper": 283_334}
    assert {name: shipped()[name].rates["audio_milliseconds"] for name in sound} == sound
    luna = shipped()["gpt-6-luna"]
    assert (luna.rates["web_searches"], luna.rates["file_searches"]) == (10_000_000_000, 2_500_000_000)
    # 12 hours in the cache cost twice the input, which is 0.10, and 0.20 above 272,000 tokens.
    assert (luna.rates["cache_write_12h"], luna.tiers[0].rates["cache_write_12h"]) == (200_000, 400_000)
    assert "cache_write_12h" not in shipped()["gpt-5.4"].rates
    # Where nobody says whether time or tokens cost, sound by time is not sold.
    assert "audio_milliseconds" not in shipped()["voxtral-small-24b-2507"].rates


def test_tiers_of_service_are_sold_where_one_multiplier_is_exact() -> None:
    table = {
        "gpt-5": {"batch": 5_000, "fast": 20_000, "flex": 5_000, "priority": 20_000},
        "gpt-5-mini": {"batch": 5_000, "fast": 18_000, "flex": 5_000, "priority": 18_000},
        # By the batch what comes from the cache costs as much as ever here.
        "gpt-4.1": {"fast": 17_500, "priority": 17_500},
        # Priority is 5/3 of the standard rates here, and flat where they rise with the size there.
        "gpt-4o-mini": {},
        "gpt-5.5": {"batch": 5_000, "flex": 5_000},
        "gpt-4o-transcribe": {},
    }
    assert {name: shipped()[name].multipliers for name in table} == table
    left_out = {item.name: item.reason for item in read_catalogue(at=AT).left_out}
    assert "one multiplier" in left_out["gpt-4o-mini priority"]
    assert "one multiplier" in left_out["gpt-5.5 fast"]
    assert "beside tokens" in left_out["voxtral-small-24b-2507 audio_milliseconds"]
    # Before its first day a variant is no price of its own.
    early = next(e for e in load_catalogue(at=datetime(2026, 1, 1, tzinfo=UTC)) if e.model.name == "gpt-5")
    assert "flex" not in early.multipliers


@pytest.mark.parametrize(
    ("day", "name", "rates"),
    [
        (datetime(2025, 6, 9, 23, 59, tzinfo=UTC), "o3", (10_000_000, 40_000_000)),
        (datetime(2025, 6, 10, tzinfo=UTC), "o3", (2_000_000, 8_000_000)),
        (datetime(2025, 6, 10, 1, tzinfo=timezone(timedelta(hours=3))), "o3", (10_000_000, 40_000_000)),
        (datetime(2026, 12, 31, tzinfo=UTC), "gemini-3.6-flash", (750_000, 3_750_000)),
        (datetime(2027, 1, 1, tzinfo=UTC), "gemini-3.6-flash", (1_500_000, 7_500_000)),
    ],
)
def test_the_price_in_force_on_the_day_counts(day: datetime, name: str, rates: tuple[int, int]) -> None:
    entry = next(entry for entry in load_catalogue(at=day) if entry.model.name == name)
    assert (entry.rates[Meter.INPUT], entry.rates[Meter.OUTPUT]) == rates


def test_a_date_without_a_time_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        load_catalogue(at=AT.replace(tzinfo=None))


def test_the_first_provider_of_a_name_counts() -> None:
    name = "openai/gpt-oss-120b"
    for order, cached in ((("groq", "together"), 75_000), (("together", "groq"), None)):
        entry = next(e for e in load_catalogue(providers=order, at=AT) if e.model.name == name)
        assert (entry.model.owned_by, entry.rates.get(Meter.CACHED_INPUT)) == (order[0], cached)
    # A host's own price for open weights counts; only the copy in OpenAI's list does not.
    assert "gpt-oss-120b" in {entry.model.name for entry in load_catalogue(providers=["cerebras"], at=AT)}
    with pytest.raises(InvalidPrice, match="providers: 'nobody'"):
        load_catalogue(providers=["nobody"], at=AT)


def test_names_are_those_that_a_client_sends() -> None:
    fireworks = [name for name, entry in shipped().items() if entry.model.owned_by == "fireworks"]
    assert fireworks
    assert all(name.startswith("accounts/fireworks/") for name in fireworks)
    assert {"gpt-4o", "gpt-4o-2024-08-06", "gpt-5.6", "claude-haiku-4-5-20251001", "grok-4-latest"} <= shipped().keys()


def test_every_openai_model_with_output_has_a_stated_limit() -> None:
    notes = read_overlay(SHIPPED_OVERLAY)
    for name, entry in shipped().items():
        if entry.model.owned_by == "openai" and entry.model.output_tokens_max != OUTPUT_TOKENS_NONE:
            stated = [note.output_tokens_max for note in notes.notes_on(name, "openai") if note.output_tokens_max]
            assert stated or "like" in str(notes.models.get(name)), name
            if Meter.AUDIO_OUTPUT not in entry.rates:
                assert entry.model.output_tokens_max <= entry.model.context_tokens_max, name


@pytest.mark.parametrize(
    ("name", "context", "output", "hidden"),
    [
        ("gpt-4o", 128_000, 16_384, False),
        ("gpt-4o-2024-05-13", 128_000, 4_096, False),
        ("gpt-4.1-mini", 1_047_576, 32_768, False),
        ("gpt-4-0613", 8_192, 8_192, False),
        ("o1-mini", 128_000, 65_536, True),
        ("o3", 200_000, 100_000, True),
        ("gpt-5", 400_000, 128_000, True),
        ("gpt-5-chat-latest", 400_000, 16_384, True),
        ("gpt-5-pro", 400_000, 272_000, True),
        ("gpt-5.4-mini", 400_000, 128_000, True),
        ("gpt-6-luna", 1_050_000, 128_000, True),
        ("claude-sonnet-4-5-20250929", 1_000_000, 64_000, True),
        ("gemini-2.0-flash", 1_048_576, 8_192, False),
        ("gemini-2.5-pro", 1_048_576, 65_536, True),
        ("grok-4", 256_000, 256_000, True),
        ("grok-4-fast-non-reasoning", 2_000_000, 2_000_000, False),
        ("text-embedding-3-small", 8_192, OUTPUT_TOKENS_NONE, False),
        ("gpt-4o-transcribe", 16_000, 2_000, False),
        ("gpt-realtime", 32_000, 4_096, False),
        ("gpt-realtime-2.1-mini", 128_000, 32_000, True),
        ("gpt-image-2", 1_048_576, 400_000, False),
        ("gpt-4o-mini-tts", 16_000, 32_768, False),
        ("tts-1", 1_048_576, OUTPUT_TOKENS_NONE, False),
    ],
)
def test_limits_and_hidden_reasoning_of_known_models(name: str, context: int, output: int, hidden: bool) -> None:
    model = shipped()[name].model
    assert (model.context_tokens_max, model.output_tokens_max, model.hidden_reasoning) == (context, output, hidden)


def test_the_demo_models_are_there() -> None:
    demo, free = shipped()["demo-chat"], shipped()["demo-free"]
    assert demo.rates == {Meter.INPUT: 500_000, Meter.CACHED_INPUT: 250_000, Meter.OUTPUT: 1_500_000}
    assert set(free.rates.values()) == {0}
    for model in (demo.model, free.model):
        limits = (model.context_tokens_max, model.output_tokens_max, model.hidden_reasoning, model.owned_by)
        assert limits == (16_384, 4_096, False, "farebox")
    assert demo.source == "overlay"


def test_an_operators_word_goes_before_ours(tmp_path: Path) -> None:
    path = own(
        tmp_path,
        """
        [model."gpt-4o"]
        output_tokens_max = 9_000
        [model."gpt-4.1"]
        rates = { input = "3", output = "9.00" }
        tiers = [{ above_input_tokens = 200_000, rates = { input = "6" } }]
        [model."deepseek-chat"]
        rates = { input = "0.30", output = "1.20" }
        [model."local/llama"]
        context_tokens_max = 8_192
        rates = { input = "0.000001", output = "0" }
        [model."our-gpt"]
        like = "gpt-4o"
        hidden_reasoning = true
        [model."gpt-5"]
        multipliers = { flex = "0.75" }
        extra_rates = { "containers/4g" = "0.12" }
        derived_rates = { cache_write_12h = "1.5 input", cached_input = "9 input" }
        [model."gpt-image-2"]
        rates = { images = "0.04", "images/high/1024x1536" = "0.25", output = "1" }
        [[family]]
        match = "gpt-3*"
        unpriced = "retired here"
        """,
    )
    ours = {entry.model.name: entry for entry in load_catalogue(overlay=path, at=AT)}
    # What it does not say stays as it was.
    assert ours["gpt-4o"].model.output_tokens_max == 9_000
    assert ours["gpt-4o"].model.context_tokens_max == 128_000
    assert ours["gpt-4o"].rates == shipped()["gpt-4o"].rates
    assert ours["gpt-4o"].source.endswith(" openai/gpt-4o")
    # Rates given are the whole price.
    assert ours["gpt-4.1"].rates == {Meter.INPUT: 3_000_000, Meter.OUTPUT: 9_000_000}
    assert ours["gpt-4.1"].tiers == (Tier(200_000, {Meter.INPUT: 6_000_000}),)
    assert ours["gpt-4.1"].source.endswith(" openai/gpt-4.1 + overlay")
    assert ours["deepseek-chat"].rates[Meter.OUTPUT] == 1_200_000
    assert ours["gpt-4.1"].multipliers == {}
    # What is added leaves the rest as it was; a rate that the data has is not reckoned anew.
    five = shipped()["gpt-5"]
    assert ours["gpt-5"].rates == {**five.rates, "containers/4g": 120_000_000_000, Meter.CACHE_WRITE_12H: 1_875_000}
    assert (ours["gpt-5"].multipliers, ours["gpt-5"].source) == ({"flex": 7_500}, f"{five.source} + overlay")
    # Nothing of ours is added to a whole price.
    assert ours["gpt-image-2"].rates == {
        "images": 40_000_000_000,
        "images/high/1024x1536": 250_000_000_000,
        "output": 1_000_000,
    }
    # Wholly new models, and new names for known ones.
    local = ours["local/llama"]
    assert (local.rates, local.source) == ({Meter.INPUT: 1, Meter.OUTPUT: 0}, "overlay")
    assert (local.model.context_tokens_max, local.model.output_tokens_max) == (8_192, 8_192)
    assert (ours["our-gpt"].rates, ours["our-gpt"].tiers) == (ours["gpt-4o"].rates, ours["gpt-4o"].tiers)
    assert ours["our-gpt"].model.output_tokens_max == 9_000
    assert ours["our-gpt"].model.hidden_reasoning
    assert not any(name.startswith("gpt-3") for name in ours)


def test_a_model_without_any_price_is_left_out_or_refused(tmp_path: Path) -> None:
    path = own(tmp_path, "[model.ghost]\noutput_tokens_max = 5")
    catalogue = read_catalogue(overlay=path, at=AT)
    assert ("ghost", "an overlay names it, but gives no rates") in [(s.name, s.reason) for s in catalogue.skipped]
    for target in ("nobody", "gpt-5-nano-2025-08-07", "deepseek-chat"):
        with pytest.raises(InvalidPrice, match=rf'own.toml: model."mine".like: no model \'{target}\''):
            load_catalogue(overlay=own(tmp_path, f'[model.mine]\nlike = "{target}"'), at=AT)
    # Our own names for a maker that is not asked for are merely left out.
    few = read_catalogue(providers=["openai"], at=AT)
    assert "claude-haiku-4-5-20251001" in {item.name for item in few.skipped}


def test_the_default_providers_are_known_and_named_once() -> None:
    assert len(set(DEFAULT_PROVIDERS)) == len(DEFAULT_PROVIDERS)
    assert set(DEFAULT_PROVIDERS) <= {provider.id for provider in genai_providers}
