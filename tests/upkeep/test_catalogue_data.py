"""Each price costs what genai-prices calculates itself, in every dimension, tier and tier of service that it knows."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache

import pytest
from genai_prices.data import providers as genai_providers
from genai_prices.types import (
    ModelInfo,
    ModelPrice,
    PriceVariant,
    Provider,
    TieredPrices,
    Usage,
)
from genai_prices.types import Tier as GenaiTier

from gateway.core.catalogue import Meter, Price, Rates
from gateway.core.money import PICOS_PER_UNIT
from gateway.core.pricing import Terms, cost_picos
from gateway.upkeep.catalogue_data import DIMENSIONS, find_models
from gateway.upkeep.catalogue_source import DEFAULT_PROVIDERS, CatalogueEntry, load_catalogue

AT = datetime(2026, 11, 21, 12, tzinfo=UTC)
# Input, of which cached, written, sound (of which cached) and images (of which cached); output, of which reasoning,
# sound and images.
SHAPES = [
    (1_000, 0, 0, 0, 0, 0, 0, 1_000, 0, 0, 0),
    (12_345, 345, 1_000, 500, 45, 77, 7, 678, 100, 50, 28),
    (100_001, 1, 0, 0, 0, 1, 1, 9, 9, 0, 0),
    (1_000_000, 400_000, 77, 3, 2, 2, 1, 50_000, 1, 2, 3),
]


@cache
def entries() -> Mapping[str, CatalogueEntry]:
    return {entry.model.name: entry for entry in load_catalogue(at=AT)}


def of_the_data() -> Iterator[tuple[CatalogueEntry, ModelInfo, Provider]]:
    """Entries with what genai-prices itself finds by their names, at the provider that they name as their source."""
    for entry in entries().values():
        _, _, rest = entry.source.partition("genai-prices ")
        if not rest or entry.model.name.startswith(("gpt-realtime-whisper", "voxtral-")):
            continue
        provider_id, _, model_id = rest.removesuffix(" + overlay").split(" ", 1)[1].partition("/")
        provider = next(provider for provider in genai_providers if provider.id == provider_id)
        info = provider.find_model(entry.model.name)
        assert info is not None
        assert info.id == model_id
        yield entry, info, provider


def used(shape: tuple[int, ...], rates: Rates) -> tuple[dict[str, int], Usage]:
    """One use in our words and in theirs. What our price has no meter for is not told to either."""
    total, cached, written, audio, cached_audio, image, cached_image, output, reasoning, spoken, drawn = shape
    knows = rates.keys()
    audio, cached_audio = (audio, cached_audio) if Meter.AUDIO_INPUT in knows else (0, 0)
    image, cached_image = (image, cached_image) if Meter.IMAGE_INPUT in knows else (0, 0)
    cached_audio *= Meter.CACHED_AUDIO_INPUT in knows
    cached_image *= Meter.CACHED_IMAGE_INPUT in knows
    output = output if Meter.OUTPUT in knows else 0
    spoken = spoken if output and Meter.AUDIO_OUTPUT in knows else 0
    drawn = drawn if output and Meter.IMAGE_OUTPUT in knows else 0
    reasoning = reasoning if output and Meter.REASONING_OUTPUT in knows else 0
    if Meter.INPUT not in knows:
        total = cached = written = 0
    cached = max(cached, cached_audio + cached_image)
    quantities: dict[str, int] = {
        Meter.INPUT: total - cached - written - (audio - cached_audio) - (image - cached_image),
        Meter.CACHED_INPUT: cached - cached_audio - cached_image,
        Meter.CACHE_WRITE: written,
        Meter.AUDIO_INPUT: audio - cached_audio,
        Meter.CACHED_AUDIO_INPUT: cached_audio,
        Meter.IMAGE_INPUT: image - cached_image,
        Meter.CACHED_IMAGE_INPUT: cached_image,
        Meter.OUTPUT: output - reasoning - spoken - drawn,
        Meter.REASONING_OUTPUT: reasoning,
        Meter.AUDIO_OUTPUT: spoken,
        Meter.IMAGE_OUTPUT: drawn,
        Meter.CHARACTERS: 4_321 if Meter.CHARACTERS in knows else 0,
        Meter.AUDIO_MILLISECONDS: 61_000 if Meter.AUDIO_MILLISECONDS in knows else 0,
        Meter.WEB_SEARCHES: 3 if Meter.WEB_SEARCHES in knows else 0,
        Meter.FILE_SEARCHES: 2 if Meter.FILE_SEARCHES in knows else 0,
        Meter.REQUESTS: 1 if Meter.REQUESTS in knows else 0,
    }
    theirs = Usage(
        input_tokens=total,
        cache_read_tokens=cached,
        cache_write_tokens=written,
        input_audio_tokens=audio,
        cache_audio_read_tokens=cached_audio,
        input_image_tokens=image,
        cache_image_read_tokens=cached_image,
        output_tokens=output,
        output_reasoning_tokens=reasoning,
        output_audio_tokens=spoken,
        output_image_tokens=drawn,
        input_characters=quantities[Meter.CHARACTERS],
        audio_seconds=61 if quantities[Meter.AUDIO_MILLISECONDS] else 0,
        input_audio_seconds=61 if quantities[Meter.AUDIO_MILLISECONDS] else 0,
        web_searches=quantities[Meter.WEB_SEARCHES],
        storage_searches=quantities[Meter.FILE_SEARCHES],
    )
    return quantities, theirs


def test_every_entry_costs_exactly_what_genai_prices_calculates() -> None:
    compared = 0
    seen: set[str] = set()
    for entry, info, provider in of_the_data():
        price = Price(1, entry.model.name, AT, entry.source, entry.rates, entry.tiers, entry.multipliers)
        contexts = {"": None} | {tier: {"service_tier": tier} for tier in entry.multipliers}
        if "batch" in contexts:
            contexts["batch"] = {"processing": "batch"}
        for shape in SHAPES:
            quantities, usage = used(shape, entry.rates)
            seen |= {meter for meter, quantity in quantities.items() if quantity and meter in entry.rates}
            for tier, context in contexts.items():
                theirs = info.calc_price(usage, provider, genai_request_timestamp=AT, price_context=context)
                ours = Decimal(cost_picos(price, quantities, Terms(tier)))
                assert ours == theirs.total_price * PICOS_PER_UNIT, (entry.model.name, tier, shape)
                compared += 1
    assert compared > 4 * 800
    # Every meter that the default providers price took part.
    assert seen == {meter for meter in DIMENSIONS if meter not in {Meter.REASONING_OUTPUT, Meter.REQUESTS}}


def test_prices_of_requests_and_of_reasoning_are_read_where_the_data_has_them() -> None:
    found = find_models(["perplexity"], AT)
    assert found["sonar"].rates is not None
    # 12 a thousand requests.
    assert found["sonar"].rates[Meter.REQUESTS] == 12_000_000_000
    # Citations have no meter.
    assert "output_citation_mtok" in found["sonar-deep-research"].reason
    every = find_models([provider.id for provider in genai_providers], AT)
    priced = [one.rates for one in every.values() if one.rates is not None]
    assert len(priced) > 1_500
    assert any(Meter.REASONING_OUTPUT in rates for rates in priced)


def planted(monkeypatch: pytest.MonkeyPatch, name: str, base: ModelPrice, variant: ModelPrice) -> Mapping[str, int]:
    """The multipliers that are read of a model with this price and this price for `flex`."""
    provider = next(provider for provider in genai_providers if provider.id == "openai")
    info = next(info for info in provider.models if info.id == name)
    monkeypatch.setattr(info, "prices", base)
    monkeypatch.setattr(info, "price_variants", [PriceVariant({"service_tier": "flex"}, variant)])
    return find_models(["openai"], AT)[name].multipliers


def per(**rates: str) -> dict[str, Decimal]:
    return {name: Decimal(text) for name, text in rates.items()}


@pytest.mark.parametrize(
    ("variant", "multipliers"),
    [
        (per(input_mtok="1", cache_read_mtok="0.1", output_mtok="4"), {"flex": 5_000}),
        (per(input_mtok="2", output_mtok="8", cache_read_mtok="0.2"), {"flex": 10_000}),
        # One rate goes another way, or stays, or the fee of a tool moves too.
        (per(input_mtok="1", cache_read_mtok="0.1", output_mtok="5"), {}),
        (per(input_mtok="1", output_mtok="4"), {}),
        (per(input_mtok="1", cache_read_mtok="0.1", output_mtok="4", web_searches_kcount="5"), {}),
        # A third is no number of ten-thousandths.
        (per(input_mtok="0.666667", cache_read_mtok="0.066667", output_mtok="2.666667"), {}),
        # A rate that the price does not have.
        (per(input_mtok="1", cache_read_mtok="0.1", output_mtok="4", input_audio_mtok="1"), {}),
        # A thousand times is a slip.
        (per(input_mtok="2000", cache_read_mtok="200", output_mtok="8000"), {}),
    ],
)
def test_a_variant_is_a_multiplier_only_if_each_rate_is(
    monkeypatch: pytest.MonkeyPatch, variant: dict[str, Decimal], multipliers: Mapping[str, int]
) -> None:
    base = per(input_mtok="2", cache_read_mtok="0.2", output_mtok="8", web_searches_kcount="10")
    assert planted(monkeypatch, "gpt-5", ModelPrice(**base), ModelPrice(**variant)) == multipliers


def test_a_variant_must_be_a_multiple_in_every_tier_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def tiered(base: str, start: int, above: str) -> ModelPrice:
        return ModelPrice(input_mtok=TieredPrices(Decimal(base), [GenaiTier(start, Decimal(above))]))

    base = tiered("2", 1_000, "4")
    table = [(("1", 1_000, "2"), {"flex": 5_000}), (("1", 1_000, "3"), {}), (("1", 2_000, "2"), {})]
    for variant, multipliers in table:
        assert planted(monkeypatch, "gpt-5", base, tiered(*variant)) == multipliers


def test_the_default_providers_have_rates_for_most_of_their_names() -> None:
    found = find_models(DEFAULT_PROVIDERS, AT)
    assert sum(one.rates is not None for one in found.values()) > 650
    assert all(one.reason for one in found.values() if one.rates is None)
