"""The price catalogue: the data bundled with genai-prices, and overlays on top. Nothing is ever fetched.

A model that cannot be priced exactly by our meters is skipped and said so: unpriced, its calls are refused, and that
is safer than wrong. Skipped are what catalogue_data.py cannot read, and what an overlay calls unpriced. A tier of
service that cannot is left out, and calls that ask for it are refused.

Of one name at several providers the first provider counts, priced or not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from gateway.core.catalogue import ONE_BP, InvalidPrice, Meter, Model, Rates, Tier
from gateway.upkeep.catalogue_data import Found, find_models
from gateway.upkeep.catalogue_overlay import Derived, Note, Overlay, read_overlay

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

_OUTPUT_METERS = frozenset({Meter.OUTPUT, Meter.REASONING_OUTPUT, Meter.AUDIO_OUTPUT, Meter.IMAGE_OUTPUT})

_NO_MODEL = Model("", CONTEXT_TOKENS_UNKNOWN, OUTPUT_TOKENS_NONE)


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
    """Entries in the order of their providers, each name once; and what was left out.

    `left_out` are parts of the prices of entries: tiers of service and meters that are not sold, each with its reason.
    """

    entries: tuple[CatalogueEntry, ...]
    skipped: tuple[Skipped, ...]
    left_out: tuple[Skipped, ...] = ()


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
    found = find_models(providers, at)
    entries: dict[str, CatalogueEntry] = {}
    skipped: list[Skipped] = []
    left_out: list[Skipped] = []
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
            sold = {*entries[name].rates, *entries[name].multipliers}
            left_out += [Skipped(f"{name} {part}", why) for part, why in priced.left_out.items() if part not in sold]
    originals = dict(entries)
    for name, like, notes in copies:
        if like in originals:
            entries[name] = _copy(name, originals[like], notes)
        elif name in own.models:
            raise InvalidPrice(f"{overlay}: {own.models[name].key}.like: no model {like!r} has a price of its own")
        else:
            skipped.append(Skipped(name, f"like {like}, which has no price"))
    return Catalogue(tuple(entries.values()), tuple(skipped), tuple(left_out))


def _price(found: Found | None, decisive: Note | None) -> Found | str:
    """The price that counts, or why there is none."""
    if decisive is None:
        if found is None:
            return "an overlay names it, but gives no rates"
        return found if found.rates is not None else found.reason
    if decisive.unpriced is not None:
        return decisive.unpriced
    if found is None:
        return Found("upstream", "overlay", None, decisive.rates, decisive.tiers)
    return Found(found.owned_by, f"{found.source} + overlay", found.context_tokens_max, decisive.rates, decisive.tiers)


def _entry(name: str, found: Found, notes: list[Note]) -> CatalogueEntry:
    if found.rates is None:
        raise AssertionError(f"{name} has no rates")
    entry = CatalogueEntry(_NO_MODEL, found.rates, found.tiers, found.source, found.multipliers)
    entry = _adjusted(entry, notes)
    context = next((n.context_tokens_max for n in notes if n.context_tokens_max), found.context_tokens_max)
    output = next((n.output_tokens_max for n in notes if n.output_tokens_max), context or OUTPUT_TOKENS_UNKNOWN)
    model = Model(
        name=name,
        context_tokens_max=context or CONTEXT_TOKENS_UNKNOWN,
        output_tokens_max=OUTPUT_TOKENS_NONE if _OUTPUT_METERS.isdisjoint(entry.rates) else output,
        hidden_reasoning=next((n.hidden_reasoning for n in notes if n.hidden_reasoning is not None), False),
        owned_by=next((n.owned_by for n in notes if n.owned_by), found.owned_by),
    )
    return replace(entry, model=model)


def _adjusted(entry: CatalogueEntry, notes: Sequence[Note]) -> CatalogueEntry:
    """What the notes add to a price. Nothing is added by a note behind the one that states the whole price."""
    last = next((index for index, note in enumerate(notes) if note.decides_price), len(notes))
    heard = notes[: last + 1]
    extra = next((note.extra_rates for note in heard if note.extra_rates is not None), {})
    derived = next((note for note in heard if note.derived_rates is not None), None)
    multipliers = next((note.multipliers for note in heard if note.multipliers is not None), None)
    rates, tiers = {**entry.rates, **extra}, entry.tiers
    if derived is not None and derived.derived_rates is not None:
        # A rate of its own that the price has counts more than one that is reckoned.
        wanted = {meter: how for meter, how in derived.derived_rates.items() if meter not in rates}
        tiers = tuple(Tier(tier.above_input_tokens, _derive(tier.rates, wanted, derived.key)) for tier in tiers)
        rates = _derive(rates, wanted, derived.key)
    is_same = rates == entry.rates and tiers == entry.tiers and multipliers is None
    source = entry.source if is_same or entry.source.endswith("overlay") else f"{entry.source} + overlay"
    return replace(
        entry,
        rates=rates,
        tiers=tiers,
        multipliers=entry.multipliers if multipliers is None else multipliers,
        source=source,
    )


def _derive(rates: Rates, wanted: Mapping[str, Derived], key: str) -> dict[str, int]:
    """`rates` with those that are reckoned from another one of them. Raises InvalidPrice."""
    made = dict(rates)
    for meter, how in wanted.items():
        if how.meter in rates:
            picos, rest = divmod(rates[how.meter] * how.times_bp, ONE_BP)
            if rest:
                raise InvalidPrice(f"{key}.derived_rates.{meter}: no whole number of picos")
            made[meter] = picos
    return made


def _copy(name: str, original: CatalogueEntry, notes: list[Note]) -> CatalogueEntry:
    """`original` under another name; only what the copy's own note says is different."""
    model = replace(original.model, name=name)
    for name_of in ("context_tokens_max", "output_tokens_max", "hidden_reasoning", "owned_by"):
        said = next((value for note in notes if (value := getattr(note, name_of)) is not None), None)
        if said is not None:
            model = replace(model, **{name_of: said})
    return _adjusted(replace(original, model=model), [replace(note, like=None) for note in notes[:1]])
