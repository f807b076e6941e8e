"""What differs between the prices in use and the catalogue, said before anything is applied."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from gateway.clock import unix_seconds
from gateway.core.catalogue import Model, Price, Rates, Tier
from gateway.db import prices
from gateway.db.pool import Database
from gateway.settings import Settings
from gateway.upkeep.catalogue_source import DEFAULT_PROVIDERS, Catalogue, Skipped, read_catalogue
from gateway.upkeep.price_import import SET_BY_HAND


class Kind(StrEnum):
    """What an import would do about a difference. Of what is removed, the old price goes on being sold."""

    NEW = "new"
    CHANGED = "changed"
    REMOVED = "removed"


class Part(NamedTuple):
    """One thing that a price or a model's limits state.

    `above_input_tokens` is 0 where it is no tier's. `name` is a meter, a tier of service or a limit.
    """

    kind: str
    name: str
    above_input_tokens: int = 0


# Picos for a rate, ten-thousandths for a multiplier, tokens or a flag for a limit.
Stated = Mapping[Part, int | str]


@dataclass(frozen=True, slots=True)
class PartChange:
    """A part that is stated otherwise; None where it is not stated."""

    part: Part
    before: int | str | None
    after: int | str | None


@dataclass(frozen=True, slots=True)
class ModelChange:
    """A model that differs. `reason` says why the catalogue no longer has it, if it does."""

    model: str
    kind: Kind
    parts: tuple[PartChange, ...]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Prices in use against a catalogue. `kept` are set by hand, and not compared."""

    changes: tuple[ModelChange, ...]
    unchanged: int
    kept: tuple[str, ...]
    left_out: tuple[Skipped, ...]


async def check_prices(
    database: Database,
    settings: Settings,
    *,
    providers: Sequence[str] = DEFAULT_PROVIDERS,
    overlay: Path | None = None,
) -> Comparison:
    """Compare the database with the catalogue that an import would bring in. Raises InvalidPrice, LedgerAway."""
    at = datetime.fromtimestamp(unix_seconds(), UTC)
    catalogue = read_catalogue(providers=providers, overlay=overlay or settings.catalogue_overlay, at=at)
    return compare(await prices.current(database), await prices.load_models(database), catalogue)


def compare(in_force: Sequence[Price], models: Sequence[Model], catalogue: Catalogue) -> Comparison:
    """The differences, by model."""
    limits = {model.name: model for model in models}
    used = {
        price.model: _stated(price.rates, price.tiers, price.multipliers, limits.get(price.model))
        for price in in_force
        if not price.source.startswith(SET_BY_HAND)
    }
    kept = {price.model for price in in_force} - used.keys()
    offered = {
        entry.model.name: _stated(entry.rates, entry.tiers, entry.multipliers, entry.model)
        for entry in catalogue.entries
        if entry.model.name not in kept
    }
    reasons = {skipped.name: skipped.reason for skipped in catalogue.skipped}
    changes: list[ModelChange] = []
    for name in sorted(used.keys() | offered.keys()):
        before, after = used.get(name, {}), offered.get(name, {})
        parts = tuple(_differences(before, after))
        if name not in offered:
            reason = reasons.get(name, "the catalogue does not name it")
            changes.append(ModelChange(name, Kind.REMOVED, parts, reason))
        elif name not in used:
            changes.append(ModelChange(name, Kind.NEW, parts))
        elif parts:
            changes.append(ModelChange(name, Kind.CHANGED, parts))
    both = len(used.keys() & offered.keys())
    changed = sum(change.kind is Kind.CHANGED for change in changes)
    return Comparison(tuple(changes), both - changed, tuple(sorted(kept)), catalogue.left_out)


def _stated(rates: Rates, tiers: Sequence[Tier], multipliers: Mapping[str, int], model: Model | None) -> Stated:
    stated: dict[Part, int | str] = {Part("rate", meter): picos for meter, picos in rates.items()}
    for tier in tiers:
        stated |= {Part("rate", meter, tier.above_input_tokens): picos for meter, picos in tier.rates.items()}
    stated |= {Part("multiplier", name): share for name, share in multipliers.items()}
    if model is not None:
        stated[Part("limit", "context_tokens_max")] = model.context_tokens_max
        stated[Part("limit", "output_tokens_max")] = model.output_tokens_max
        stated[Part("limit", "hidden_reasoning")] = "yes" if model.hidden_reasoning else "no"
        stated[Part("limit", "owned_by")] = model.owned_by
    return stated


def _differences(before: Stated, after: Stated) -> Iterator[PartChange]:
    for part in dict.fromkeys([*before, *after]):
        if before.get(part) != after.get(part):
            yield PartChange(part, before.get(part), after.get(part))
