"""What the data bundled with genai-prices says of each name, in our meters, to the pico.

Names are those a client would send: the model's id where the data's own rule accepts it, and every name that rule
lists. Prefixes and patterns are not enumerated: an unknown snapshot stays unpriced until an overlay says what it is
`like`. A price that depends on the time of day, has a dimension without a meter, or is finer than a pico has no rates
but a reason.

The tier rule of genai-prices (0.2.3, types.py `calc_unit_price`) is ours: total input tokens strictly above `start`
reprice the whole request; a meter without a rate is priced as the more general one. There, an `output_mtok` without
further rates prices sound and images, too: the overlay says where (`derived_rates`), since text may be all there is.

Its variants by tier of service, and for batches, become multipliers where one multiplier gives each rate of the variant
exactly, in every tier by size; else that tier of service has no price, and the reason is kept.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING

from gateway.core.catalogue import (
    MULTIPLIER_BP_MAX,
    ONE_BP,
    InvalidPrice,
    Meter,
    Price,
    Rates,
    Tier,
    is_tool_meter,
    rate_per_million,
)
from gateway.core.pricing import BATCH_TIER, DEFAULT_TIERS, Terms, multiplied
from gateway.core.rate_units import rate_per_thousand, read_rate

if TYPE_CHECKING:
    from genai_prices.types import MatchLogic, ModelInfo, ModelPrice, Provider

_PER_MILLION = {
    "input_mtok": Meter.INPUT,
    "cache_read_mtok": Meter.CACHED_INPUT,
    "cache_write_mtok": Meter.CACHE_WRITE,
    "output_mtok": Meter.OUTPUT,
    "output_reasoning_mtok": Meter.REASONING_OUTPUT,
    "input_audio_mtok": Meter.AUDIO_INPUT,
    "cache_audio_read_mtok": Meter.CACHED_AUDIO_INPUT,
    "output_audio_mtok": Meter.AUDIO_OUTPUT,
    "input_image_mtok": Meter.IMAGE_INPUT,
    "cache_image_read_mtok": Meter.CACHED_IMAGE_INPUT,
    "output_image_mtok": Meter.IMAGE_OUTPUT,
    "input_mchars": Meter.CHARACTERS,
}
_PER_THOUSAND = {
    "requests_kcount": Meter.REQUESTS,
    "web_searches_kcount": Meter.WEB_SEARCHES,
    "storage_searches_kcount": Meter.FILE_SEARCHES,
}
# The second says no more than the first wherever both are given.
_PER_HOUR = ("audio_hours", "input_audio_hours")
# The meters that the data can price.
DIMENSIONS = (*_PER_MILLION.values(), *_PER_THOUSAND.values(), Meter.AUDIO_MILLISECONDS)
# Priced by the maker, but never used through us: no endpoint takes video, nor asks for a cache lifetime of an hour.
_NEVER_USED = frozenset({"input_video_mtok", "cache_write_1h_mtok"})

# Of these the data has a rate, and its code a rule besides (0.2.3, types.py `ModelInfo.calc_price`).
_BILLED_AT_LEAST = {
    ("groq", "whisper-large-v3"): "at least ten seconds of each recording are billed",
    ("groq", "whisper-large-v3-turbo"): "at least ten seconds of each recording are billed",
}

_NO_MULTIPLIERS: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Found:
    """What the data says of one name. Without rates, `reason` says why.

    `left_out` are parts of the price that are not sold, with their reasons: a tier of service, or a meter.
    """

    owned_by: str
    source: str
    context_tokens_max: int | None
    rates: Rates | None = None
    tiers: tuple[Tier, ...] = ()
    reason: str = ""
    multipliers: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)


def find_models(providers: Sequence[str], at: datetime) -> dict[str, Found]:
    """Every name of `providers`, the first provider's word counting."""
    if at.tzinfo is None:
        raise ValueError("a price's date needs a time zone")
    # Imported here, once at start: it takes 0.2 s, which no command should pay that needs no prices.
    import genai_prices  # noqa: PLC0415
    from genai_prices.data import providers as known  # noqa: PLC0415

    by_id = {provider.id: provider for provider in known}
    found: dict[str, Found] = {}
    for provider_id in providers:
        if provider_id not in by_id:
            raise InvalidPrice(f"providers: {provider_id!r} is not one of {', '.join(sorted(by_id))}")
        provider = by_id[provider_id]
        for info in provider.models:
            said = _read_model(info, provider, f"genai-prices {genai_prices.__version__}", at)
            for name in _names(info):
                found.setdefault(name, said)
    return found


def _read_model(info: "ModelInfo", provider: "Provider", release: str, at: datetime) -> Found:
    source = f"{release} {provider.id}/{info.id}"
    if (provider.id, info.id) in _BILLED_AT_LEAST:
        reason = _BILLED_AT_LEAST[provider.id, info.id]
        return Found(provider.id, source, info.context_window, reason=reason)
    left_out: dict[str, str] = {}
    try:
        rates, tiers = _read_price(_current(info, at), left_out)
    except InvalidPrice as error:
        return Found(provider.id, source, info.context_window, reason=str(error))
    multipliers = _read_multipliers(info, at, rates, tiers, left_out)
    return Found(provider.id, source, info.context_window, rates, tiers, multipliers=multipliers, left_out=left_out)


def _read_multipliers(
    info: "ModelInfo", at: datetime, rates: Rates, tiers: tuple[Tier, ...], left_out: dict[str, str]
) -> Mapping[str, int]:
    """One multiplier for each variant that is in force; the others are left out, with a reason."""
    contexts: dict[str, dict[str, str]] = {}
    for variant in info.price_variants or ():
        ((kind, value), *others) = variant.when.items()
        name = BATCH_TIER if variant.when == {"processing": "batch"} else value
        if others or kind not in {"service_tier", "processing"} or (kind == "processing" and value != "batch"):
            left_out[" ".join(f"{key} {word}" for key, word in variant.when.items())] = "no tier of service"
        elif name in DEFAULT_TIERS:
            continue
        elif variant.constraint is None or variant.constraint.active(at):
            contexts[name] = variant.when
    multipliers: dict[str, int] = {}
    for name, context in contexts.items():
        try:
            other, other_tiers = _read_price(info.get_prices(at, context), {})
        except InvalidPrice as error:
            left_out[name] = str(error)
            continue
        share = _share(rates, other)
        if share is None or not _is_multiple(rates, tiers, other, other_tiers, share):
            left_out[name] = "no one multiplier gives each of its rates exactly"
        else:
            multipliers[name] = share
    return multipliers or _NO_MULTIPLIERS


def _share(rates: Rates, other: Rates) -> int | None:
    """By what the first rate that a tier of service changes is multiplied, if that is whole ten-thousandths."""
    for meter, picos in rates.items():
        if picos and not is_tool_meter(meter) and meter in other:
            share, rest = divmod(other[meter] * ONE_BP, picos)
            return None if rest or share > MULTIPLIER_BP_MAX else share
    return None


def _is_multiple(
    rates: Rates, tiers: tuple[Tier, ...], other: Rates, other_tiers: tuple[Tier, ...], share: int
) -> bool:
    """Whether `other` is what our own arithmetic makes of `rates`, in each tier by size, to the pico."""
    price = Price(0, "", datetime.min.replace(tzinfo=UTC), "", rates, tiers, {"x": share})
    steps = [(0, rates), *((tier.above_input_tokens, tier.rates) for tier in tiers)]
    other_steps = [(0, other), *((tier.above_input_tokens, tier.rates) for tier in other_tiers)]
    return [(above, multiplied(price, step, Terms("x"))) for above, step in steps] == other_steps


def _names(info: "ModelInfo") -> list[str]:
    """The id where its own rule accepts it (some ids are labels), then each name the rule lists."""
    names = [info.id] if info.is_match(info.id) else []
    return list(dict.fromkeys([*names, *_listed_names(info.match)]))


def _listed_names(match: "MatchLogic") -> Iterator[str]:
    from genai_prices.types import ClauseEquals, ClauseOr  # noqa: PLC0415

    if isinstance(match, ClauseEquals):
        yield match.equals
    elif isinstance(match, ClauseOr):
        for clause in match.or_:
            yield from _listed_names(clause)


def _current(info: "ModelInfo", at: datetime) -> "ModelPrice":
    """The price in force: the last one whose start has come. Raises InvalidPrice where the time of day decides."""
    from genai_prices.types import ModelPrice, StartDateConstraint  # noqa: PLC0415

    if isinstance(info.prices, ModelPrice):
        return info.prices
    for conditional in reversed(info.prices):
        constraint = conditional.constraint
        if constraint is None:
            return conditional.prices
        if not isinstance(constraint, StartDateConstraint):
            raise InvalidPrice("the price depends on the time of day")
        if at.astimezone(UTC).date() >= constraint.start_date:
            return conditional.prices
    raise InvalidPrice("no price is in force yet")


def _read_price(price: "ModelPrice", left_out: dict[str, str]) -> tuple[Rates, tuple[Tier, ...]]:
    """Picos per unit, and a tier for each threshold of any rate. Raises InvalidPrice."""
    from genai_prices.types import TieredPrices  # noqa: PLC0415

    given = {key: value for key, value in vars(price).items() if value is not None and key not in _NEVER_USED}
    if "input_mtok" in given and not given.keys().isdisjoint(_PER_HOUR):
        # Nobody says whether a transcription costs one or both.
        left_out[Meter.AUDIO_MILLISECONDS] = "priced by the hour beside tokens"
        given = {key: value for key, value in given.items() if key not in _PER_HOUR}
    rates: dict[str, int] = {}
    steps: dict[int, dict[str, int]] = {}
    for key, value in given.items():
        if isinstance(value, TieredPrices):
            meter, rates[meter] = _rate(value.base, key)
            for tier in value.tiers:
                _, picos = _rate(tier.price, key)
                steps.setdefault(_threshold(tier.start, key), {})[meter] = picos
        else:
            meter, picos = _rate(value, key)
            if rates.setdefault(meter, picos) != picos:
                raise InvalidPrice(f"{key}: {meter} has two prices")
    if not rates:
        raise InvalidPrice("the data has no rate")
    if Meter.INPUT not in rates and not rates.keys() & {Meter.CHARACTERS, Meter.AUDIO_MILLISECONDS, Meter.REQUESTS}:
        raise InvalidPrice("no rate for what goes in")
    return rates, tuple(Tier(above, steps[above]) for above in sorted(steps))


def _rate(value: object, key: str) -> tuple[str, int]:
    if not isinstance(value, Decimal):
        raise InvalidPrice(f"{key} is not a decimal")
    try:
        if key in _PER_MILLION:
            return _PER_MILLION[key], rate_per_million(value)
        if key in _PER_THOUSAND:
            return _PER_THOUSAND[key], rate_per_thousand(_PER_THOUSAND[key], value)
        if key in _PER_HOUR:
            return Meter.AUDIO_MILLISECONDS, read_rate("audio_hours", value)[1]
    except InvalidPrice as error:
        raise InvalidPrice(f"{key}: {error}") from None
    raise InvalidPrice(f"priced by {key}, which is not metered")


def _threshold(value: object, key: str) -> int:
    if type(value) is not int or value < 1:
        raise InvalidPrice(f"{key}: a tier starts at {value!r}")
    return value
