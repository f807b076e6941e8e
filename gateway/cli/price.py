"""`farebox price`: what models cost. Prices are versions: a new one never changes what was charged."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path

import click

from gateway.cli.command import FareboxGroup
from gateway.cli.context import Misconfigured, Refused, run
from gateway.cli.output import (
    NOTHING,
    format_rate,
    moment,
    print_facts,
    print_json,
    print_line,
    print_table,
    rates_document,
    tiers_document,
)
from gateway.cli.parameters import actor_option, limit_option, names, rate, text_required
from gateway.cli.parameters import moment as moment_given
from gateway.core.catalogue import Meter, Model, Price, Rates
from gateway.db import prices
from gateway.db.pool import Database
from gateway.settings import Settings
from gateway.upkeep.catalogue_source import DEFAULT_PROVIDERS
from gateway.upkeep.price_import import SET_BY_HAND, Change, ImportResult, import_prices

# For a model that nobody has described; too low a limit would refuse calls that it can answer.
CONTEXT_TOKENS_DEFAULT = 128_000
OUTPUT_TOKENS_DEFAULT = 16_384
TOKENS_MAX = 100_000_000

_SHOWN_CHANGES = 20
_model_argument = click.argument("model", callback=text_required)
_RATE_COLUMNS = ("input>", "cached>", "cache write>", "output>")


@click.group(cls=FareboxGroup)
def price() -> None:
    """Prices, per million tokens, in versions."""


@price.command(name="import")
@click.option("--providers", callback=names, metavar="A,B", help=f"In order of weight. [{','.join(DEFAULT_PROVIDERS)}]")
@click.option("--overlay", type=click.Path(path_type=Path), metavar="FILE", help="Your own corrections and models.")
@click.option("--over-set-prices", is_flag=True, help="Also replace prices that were set by hand.")
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@click.pass_obj
def import_catalogue(
    settings: Settings,
    providers: tuple[str, ...] | None,
    overlay: Path | None,
    over_set_prices: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Bring in the catalogue that Farebox carries: a new version where a price differs, and nothing else.

    Prices set by hand are kept. Models that cannot be priced exactly are skipped, and so are not offered.
    """

    async def work(database: Database) -> ImportResult:
        return await import_prices(
            database,
            settings,
            providers=providers or DEFAULT_PROVIDERS,
            overlay=overlay,
            over_set_prices=over_set_prices,
            dry_run=dry_run,
        )

    result = run(settings, work)
    if as_json:
        print_json(_import_document(result, dry_run))
    else:
        _print_import(result, dry_run)


@price.command(name="list")
@click.option("--model", "pattern", default="*", help="A shell pattern of names, such as 'gpt-4*'.")
@click.pass_obj
def list_prices(settings: Settings, pattern: str, as_json: bool) -> None:
    """The prices in force now."""

    async def work(database: Database) -> tuple[list[Price], list[Model]]:
        return await prices.current(database), await prices.load_models(database)

    in_force, models = run(settings, work)
    by_name = {model.name: model for model in models}
    shown = [one for one in in_force if fnmatchcase(one.model, pattern)]
    if as_json:
        print_json({"prices": [_listed_document(one, by_name.get(one.model)) for one in shown]})
        return
    print_table(
        ("model", *_RATE_COLUMNS, "tiers", "context>", "output max>", "since", "source"),
        (
            (
                one.model,
                *_rate_cells(one.rates),
                _tiers_cell(one),
                *_limit_cells(by_name.get(one.model)),
                one.effective_from,
                one.source,
            )
            for one in shown
        ),
    )
    print_line(f"{len(shown)} models; prices are per million tokens")


@price.command()
@_model_argument
@limit_option(100)
@click.pass_obj
def show(settings: Settings, model: str, limit: int, as_json: bool) -> None:
    """A model's limits, and every version of its price, newest first."""

    async def work(database: Database) -> tuple[Model | None, list[Price], datetime]:
        return (
            await prices.get_model(database, model),
            await prices.history(database, model, limit),
            await prices.database_now(database),
        )

    found, versions, now = run(settings, work)
    if found is None and not versions:
        raise Refused("model_unknown", f"there is no model {model}")
    in_force = next((one.price_id for one in versions if one.effective_from <= now), None)
    if as_json:
        documents = [_price_document(one) | {"in_force": one.price_id == in_force} for one in versions]
        print_json({"model": model, "limits": _limits_document(found), "prices": documents})
        return
    limits = _limits_document(found) or {}
    print_facts({"model": model, **{name.replace("_", " "): value for name, value in limits.items()}})
    print_line("")
    print_table(
        ("price", "from", *_RATE_COLUMNS, "tiers", "source", ""),
        (
            (
                one.price_id,
                one.effective_from,
                *_rate_cells(one.rates),
                _tiers_cell(one),
                one.source,
                "in force" if one.price_id == in_force else "to come" if one.effective_from > now else "past",
            )
            for one in versions
        ),
    )


@price.command(name="set")
@_model_argument
@click.option("--input", "input_rate", required=True, callback=rate, metavar="PRICE", help="Per million input tokens.")
@click.option(
    "--output", "output_rate", required=True, callback=rate, metavar="PRICE", help="Per million output tokens."
)
@click.option("--cached-input", callback=rate, metavar="PRICE", help="As input without this.")
@click.option("--cache-write", callback=rate, metavar="PRICE", help="As input without this.")
@click.option("--context", type=click.IntRange(1, TOKENS_MAX), metavar="TOKENS", help="The model's context window.")
@click.option("--max-output", type=click.IntRange(1, TOKENS_MAX), metavar="TOKENS", help="The most it produces.")
@click.option("--effective-from", callback=moment_given, metavar="WHEN", help="ISO 8601; now without this.")
@actor_option()
@click.pass_obj
def set_price(
    settings: Settings,
    model: str,
    input_rate: int,
    output_rate: int,
    cached_input: int | None,
    cache_write: int | None,
    context: int | None,
    max_output: int | None,
    effective_from: datetime | None,
    actor: str,
    as_json: bool,
) -> None:
    """Set a model's price by hand, per million tokens; 0 is a price. A model that is new is made known.

    Limits that are not given stay as they are, or are 128,000 tokens of context and 16,384 of output.
    """
    given = {
        Meter.INPUT: input_rate,
        Meter.CACHED_INPUT: cached_input,
        Meter.CACHE_WRITE: cache_write,
        Meter.OUTPUT: output_rate,
    }
    rates: Rates = {meter: picos for meter, picos in given.items() if picos is not None}

    async def work(database: Database) -> tuple[Model, datetime]:
        now = await prices.database_now(database)
        if effective_from is not None and effective_from < now:
            raise Misconfigured(f"--effective-from lies in the past: the database has {moment(now)}")
        before = await prices.get_model(database, model)
        after = Model(
            name=model,
            context_tokens_max=context or (before.context_tokens_max if before else CONTEXT_TOKENS_DEFAULT),
            output_tokens_max=max_output or (before.output_tokens_max if before else OUTPUT_TOKENS_DEFAULT),
            hidden_reasoning=before.hidden_reasoning if before else False,
            owned_by=before.owned_by if before else "upstream",
        )
        await prices.save_models(database, [after])
        since = effective_from or now
        await prices.add_prices(database, [prices.PriceVersion(model, since, rates, (), f"{SET_BY_HAND}{actor}")])
        return after, since

    stored, since = run(settings, work)
    if as_json:
        document = {"model": model, "limits": _limits_document(stored), "effective_from": moment(since)}
        print_json(document | rates_document(rates))
    else:
        cells = ", ".join(f"{meter} {format_rate(picos)}" for meter, picos in rates.items())
        print_line(f"{model}: {cells} per million, from {moment(since)}")


def _rate_cells(rates: Rates) -> list[str]:
    meters = (Meter.INPUT, Meter.CACHED_INPUT, Meter.CACHE_WRITE, Meter.OUTPUT)
    return [format_rate(rates[meter]) if meter in rates else NOTHING for meter in meters]


def _tiers_cell(one: Price) -> str:
    return ", ".join(f"above {tier.above_input_tokens}" for tier in one.tiers)


def _limit_cells(model: Model | None) -> Sequence[object]:
    return (model.context_tokens_max, model.output_tokens_max) if model is not None else (NOTHING, NOTHING)


def _limits_document(model: Model | None) -> dict[str, object] | None:
    if model is None:
        return None
    return {
        "context_tokens_max": model.context_tokens_max,
        "output_tokens_max": model.output_tokens_max,
        "hidden_reasoning": model.hidden_reasoning,
        "owned_by": model.owned_by,
    }


def _price_document(one: Price) -> dict[str, object]:
    return {
        "price_id": one.price_id,
        "effective_from": moment(one.effective_from),
        "source": one.source,
        **rates_document(one.rates),
        "tiers": tiers_document(one.tiers),
    }


def _listed_document(one: Price, model: Model | None) -> Mapping[str, object]:
    return {"model": one.model, "limits": _limits_document(model), **_price_document(one)}


def _import_document(result: ImportResult, dry_run: bool) -> dict[str, object]:
    return {
        "dry_run": dry_run,
        "added": len(result.added),
        "unchanged": result.unchanged,
        "kept": list(result.kept),
        "skipped": [{"model": one.name, "reason": one.reason} for one in result.skipped],
        "limits_changed": result.limits_changed,
        "changes": [_change_document(change) for change in result.added],
    }


def _change_document(change: Change) -> dict[str, object]:
    before = change.before
    return {
        "model": change.entry.model.name,
        "before": _price_document(before) if before is not None else None,
        "after": {**rates_document(change.entry.rates), "tiers": tiers_document(change.entry.tiers)},
        "source": change.entry.source,
    }


def _print_import(result: ImportResult, dry_run: bool) -> None:
    changed = [change for change in result.added if change.before is not None]
    if changed:
        print_table(
            ("model", *_RATE_COLUMNS, "instead of", *_RATE_COLUMNS),
            (
                (
                    change.entry.model.name,
                    *_rate_cells(change.entry.rates),
                    "",
                    *_rate_cells(change.before.rates if change.before is not None else {}),
                )
                for change in changed[:_SHOWN_CHANGES]
            ),
            title="changed prices",
        )
        if len(changed) > _SHOWN_CHANGES:
            print_line(f"and {len(changed) - _SHOWN_CHANGES} more (--json lists all)")
    counts = [
        f"{len(result.added)} prices {'would be ' if dry_run else ''}added",
        f"{result.unchanged} unchanged",
        f"{len(result.kept)} set by hand and kept",
        f"{len(result.skipped)} skipped",
    ]
    print_line(", ".join(counts))
