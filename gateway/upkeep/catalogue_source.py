"""The price catalogue: the data bundled with genai-prices, and overlays on top. Nothing is ever fetched.

A model that cannot be priced exactly by our meters is skipped and said so: unpriced, its calls are refused, and that
is safer than wrong. Skipped are: prices that depend on the time of day; output priced by its kind (audio, images,
reasoning); prices per request or per page; rates finer than a pico; and what an overlay calls unpriced.

Of one name at several providers the first provider counts, priced or not. Names are those a client would send: the
model's id where the data's own rule accepts it, and every name that rule lists. Prefixes and patterns are not
enumerated: an unknown snapshot stays unpriced until an overlay says what it is `like`.

The tier rule of genai-prices (0.2.3, types.py `calc_unit_price`) is ours: total input tokens strictly above `start`
reprice the whole request; a meter without a rate is priced as the more general one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.core.catalogue import InvalidPrice, Meter, Model, Rates, Tier, rate_per_million
from gateway.upkeep.catalogue_overlay import Note, Overlay, read_overlay

if TYPE_CHECKING:
    from genai_prices.types import MatchLogic, ModelInfo, ModelPrice, Provider

SHIPPED_OVERLAY = Path(__file__).with_name("catalogue_overlay.toml")

# Makers before hosts, so that a maker's own price counts for its own names. Left out, but available by name:
# openrouter (its price follows the route it picks), azure and aws (deployment names), perplexity (a fee per search).
DEFAULT_PROVIDERS = (
    "openai",
    "anthropic",
    "google",
    "x-ai",
    "deepseek",
    "mistral",
    "moonshotai",
    "zai",
    "minimax",
    "groq",
    "together",
    "fireworks",
)

# Where nobody knows a model's limits. Too high makes a hold too large; too low would let a true reading look false.
CONTEXT_TOKENS_UNKNOWN = 1_048_576
OUTPUT_TOKENS_UNKNOWN = 131_072
# A model without an output rate (embeddings) has no output; this is the least that a limit can be.
OUTPUT_TOKENS_NONE = 1

_METERS = {
    "input_mtok": Meter.INPUT,
    "cache_read_mtok": Meter.CACHED_INPUT,
    "cache_write_mtok": Meter.CACHE_WRITE,
    "output_mtok": Meter.OUTPUT,
}
# Priced by the maker, but never used through us: the endpoints refuse audio and video input, hosted tools, and cache
# lifetimes beyond the ordinary one.
_NEVER_USED = frozenset(
    {
        "web_searches_kcount",
        "storage_searches_kcount",
        "input_audio_mtok",
        "cache_audio_read_mtok",
        "input_video_mtok",
        "audio_hours",
        "input_audio_hours",
        "cache_write_1h_mtok",
    }
)


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One model with its current price, ready to be stored."""

    model: Model
    rates: Rates
    tiers: tuple[Tier, ...]
    source: str
    multipliers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A model that is not offered, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Entries in the order of their providers, each name once; and what was left out."""

    entries: tuple[CatalogueEntry, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, slots=True)
class _Found:
    """What the data says of one name. Without rates, `reason` says why."""

    owned_by: str
    source: str
    context_tokens_max: int | None
    rates: Rates | None = None
    tiers: tuple[Tier, ...] = ()
    reason: str = ""


def load_catalogue(
    *, providers: Sequence[str] = DEFAULT_PROVIDERS, overlay: Path | None = None, at: datetime
) -> list[CatalogueEntry]:
    """Every model that can be priced, as of `at`. `overlay` is an operator's own file. Raises InvalidPrice."""
    return list(read_catalogue(providers=providers, overlay=overlay, at=at).entries)


def read_catalogue(
    *, providers: Sequence[str] = DEFAULT_PROVIDERS, overlay: Path | None = None, at: datetime
) -> Catalogue:
    """The same, with what was skipped. An operator's word goes before the shipped overlay's. Raises InvalidPrice."""
    shipped = read_overlay(SHIPPED_OVERLAY)
    own = read_overlay(overlay) if overlay is not None else Overlay({}, ())
    found = _find(providers, at)
    entries: dict[str, CatalogueEntry] = {}
    skipped: list[Skipped] = []
    copies: list[tuple[str, str, list[Note]]] = []
    for name in dict.fromkeys([*found, *shipped.models, *own.models]):
        provider = found[name].owned_by if name in found else None
        notes = [*own.notes_on(name, provider), *shipped.notes_on(name, provider)]
        decisive = next((note for note in notes if note.decides_price), None)
        if decisive is not None and decisive.like is not None:
            copies.append((name, decisive.like, notes))
            continue
        priced = _price(found.get(name), decisive)
        if isinstance(priced, str):
            skipped.append(Skipped(name, priced))
        else:
            entries[name] = _entry(name, priced, notes)
    originals = dict(entries)
    for name, like, notes in copies:
        if like in originals:
            entries[name] = _copy(name, originals[like], notes)
        elif name in own.models:
            raise InvalidPrice(f"{overlay}: {own.models[name].key}.like: no model {like!r} has a price of its own")
        else:
            skipped.append(Skipped(name, f"like {like}, which has no price"))
    return Catalogue(tuple(entries.values()), tuple(skipped))


def _price(found: _Found | None, decisive: Note | None) -> _Found | str:
    """The price that counts, or why there is none."""
    if decisive is None:
        if found is None:
            return "an overlay names it, but gives no rates"
        return found if found.rates is not None else found.reason
    if decisive.unpriced is not None:
        return decisive.unpriced
    if found is None:
        return _Found("upstream", "overlay", None, decisive.rates, decisive.tiers)
    return replace(found, source=f"{found.source} + overlay", rates=decisive.rates, tiers=decisive.tiers)


def _entry(name: str, found: _Found, notes: list[Note]) -> CatalogueEntry:
    rates = found.rates
    if rates is None:
        raise AssertionError(f"{name} has no rates")
    context = next((n.context_tokens_max for n in notes if n.context_tokens_max), found.context_tokens_max)
    output = next((n.output_tokens_max for n in notes if n.output_tokens_max), context or OUTPUT_TOKENS_UNKNOWN)
    model = Model(
        name=name,
        context_tokens_max=context or CONTEXT_TOKENS_UNKNOWN,
        output_tokens_max=output if Meter.OUTPUT in rates else OUTPUT_TOKENS_NONE,
        hidden_reasoning=next((n.hidden_reasoning for n in notes if n.hidden_reasoning is not None), False),
        owned_by=next((n.owned_by for n in notes if n.owned_by), found.owned_by),
    )
    return CatalogueEntry(model, rates, found.tiers, found.source)


def _copy(name: str, original: CatalogueEntry, notes: list[Note]) -> CatalogueEntry:
    """`original` under another name; only what the copy's own note says is different."""
    model = replace(original.model, name=name)
    for name_of in ("context_tokens_max", "output_tokens_max", "hidden_reasoning", "owned_by"):
        said = next((value for note in notes if (value := getattr(note, name_of)) is not None), None)
        if said is not None:
            model = replace(model, **{name_of: said})
    return replace(original, model=model)


def _find(providers: Sequence[str], at: datetime) -> dict[str, _Found]:
    """Every name of `providers`, the first provider's word counting."""
    if at.tzinfo is None:
        raise ValueError("a price's date needs a time zone")
    # Imported here, once at start: it takes 0.2 s, which no command should pay that needs no prices.
    import genai_prices  # noqa: PLC0415
    from genai_prices.data import providers as known  # noqa: PLC0415

    by_id = {provider.id: provider for provider in known}
    found: dict[str, _Found] = {}
    for provider_id in providers:
        if provider_id not in by_id:
            raise InvalidPrice(f"providers: {provider_id!r} is not one of {', '.join(sorted(by_id))}")
        provider = by_id[provider_id]
        for info in provider.models:
            said = _read_model(info, provider, f"genai-prices {genai_prices.__version__}", at)
            for name in _names(info):
                found.setdefault(name, said)
    return found


def _read_model(info: "ModelInfo", provider: "Provider", release: str, at: datetime) -> _Found:
    source = f"{release} {provider.id}/{info.id}"
    try:
        rates, tiers = _read_price(_current(info, at))
    except InvalidPrice as error:
        return _Found(provider.id, source, info.context_window, reason=str(error))
    return _Found(provider.id, source, info.context_window, rates, tiers)


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


def _read_price(price: "ModelPrice") -> tuple[Rates, tuple[Tier, ...]]:
    """Picos per token, and a tier for each threshold of any rate. Raises InvalidPrice."""
    from genai_prices.types import TieredPrices  # noqa: PLC0415

    rates: dict[str, int] = {}
    steps: dict[int, dict[str, int]] = {}
    for key, value in vars(price).items():
        if value is None or key in _NEVER_USED:
            continue
        if key not in _METERS:
            raise InvalidPrice(f"priced by {key}, which is not metered")
        meter = _METERS[key]
        if isinstance(value, TieredPrices):
            rates[meter] = _rate(value.base, key)
            for tier in value.tiers:
                steps.setdefault(_threshold(tier.start, key), {})[meter] = _rate(tier.price, key)
        else:
            rates[meter] = _rate(value, key)
    if Meter.INPUT not in rates:
        raise InvalidPrice("no rate for input tokens")
    return rates, tuple(Tier(above, steps[above]) for above in sorted(steps))


def _rate(value: object, key: str) -> int:
    if not isinstance(value, Decimal):
        raise InvalidPrice(f"{key} is not a decimal")
    try:
        return rate_per_million(value)
    except InvalidPrice as error:
        raise InvalidPrice(f"{key}: {error}") from None


def _threshold(value: object, key: str) -> int:
    if type(value) is not int or value < 1:
        raise InvalidPrice(f"{key}: a tier starts at {value!r}")
    return value
