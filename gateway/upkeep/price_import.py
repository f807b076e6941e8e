"""The price catalogue into the database: a version is added only where a price differs from the one in force."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gateway.clock import unix_seconds
from gateway.core.catalogue import Model, Price, rates_to_json, tiers_to_json
from gateway.db import prices
from gateway.db.pool import Database
from gateway.settings import Settings
from gateway.upkeep.catalogue_source import DEFAULT_PROVIDERS, CatalogueEntry, Skipped, read_catalogue

# How the source of a price begins that a person has set: an import does not go over it unasked.
SET_BY_HAND = "set by "


@dataclass(frozen=True, slots=True)
class Change:
    """A model whose price gets a new version; `before` is None for a model without one."""

    before: Price | None
    entry: CatalogueEntry


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What an import did, or on a dry run would do. `kept` are models whose price was set by hand."""

    added: tuple[Change, ...]
    unchanged: int
    kept: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    limits_changed: int


async def import_prices(
    database: Database,
    settings: Settings,
    *,
    providers: Sequence[str] = DEFAULT_PROVIDERS,
    overlay: Path | None = None,
    over_set_prices: bool = False,
    dry_run: bool = False,
) -> ImportResult:
    """Import the catalogue; the overlay is that of the settings unless another is given.

    Raises InvalidPrice, LedgerAway.
    """
    at = datetime.fromtimestamp(unix_seconds(), UTC)
    catalogue = read_catalogue(providers=providers, overlay=overlay or settings.catalogue_overlay, at=at)
    in_force = {price.model: price for price in await prices.current(database)}
    limits = {model.name: model for model in await prices.load_models(database)}
    kept = {name for name, price in in_force.items() if price.source.startswith(SET_BY_HAND) and not over_set_prices}
    offered = [entry for entry in catalogue.entries if entry.model.name not in kept]
    changes = []
    for entry in offered:
        before = in_force.get(entry.model.name)
        if before is None or before.source.startswith(SET_BY_HAND) or not _is_same(before, entry):
            changes.append(Change(before, entry))
    models = [entry.model for entry in offered if limits.get(entry.model.name) != entry.model]
    if not dry_run:
        await _store(database, changes, models)
    return ImportResult(
        added=tuple(changes),
        unchanged=len(offered) - len(changes),
        kept=tuple(sorted(kept & {entry.model.name for entry in catalogue.entries})),
        skipped=catalogue.skipped,
        limits_changed=sum(model.name in limits for model in models),
    )


async def _store(database: Database, changes: Sequence[Change], models: Sequence[Model]) -> None:
    # Limits first: a price without its model is not offered, a model without its price neither.
    if models:
        await prices.save_models(database, models)
    if changes:
        # By the database's clock, as it decides what is in force.
        now = await prices.database_now(database)
        entries = [change.entry for change in changes]
        await prices.add_prices(
            database,
            [prices.PriceVersion(e.model.name, now, e.rates, e.tiers, e.source, e.multipliers) for e in entries],
        )
    elif models:
        await prices.tell_changed(database)


def _is_same(price: Price, entry: CatalogueEntry) -> bool:
    return (
        rates_to_json(price.rates) == rates_to_json(entry.rates)
        and tiers_to_json(price.tiers) == tiers_to_json(entry.tiers)
        and price.multipliers == entry.multipliers
    )
