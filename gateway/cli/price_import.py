"""`farebox price import` and `farebox price check`: the catalogue that Farebox carries, brought in or compared."""

from collections.abc import Iterable
from pathlib import Path

import click

from gateway.cli.command import FareboxCommand
from gateway.cli.context import EXIT_BAD, run
from gateway.cli.output import NOTHING, print_json, print_line, print_table, rates_document, tiers_document
from gateway.cli.parameters import names
from gateway.cli.price_text import RATE_COLUMNS, multipliers_document, price_document, rate_cells
from gateway.core.rate_units import format_multiplier, format_rate, rate_name, unit_of
from gateway.db.pool import Database
from gateway.settings import Settings
from gateway.upkeep.catalogue_source import DEFAULT_PROVIDERS, Skipped
from gateway.upkeep.price_check import Comparison, Kind, ModelChange, Part, PartChange, check_prices
from gateway.upkeep.price_import import Change, ImportResult, import_prices

_SHOWN_CHANGES = 20
_SHOWN_PARTS = 200

_providers_option = click.option(
    "--providers", callback=names, metavar="A,B", help=f"In order of weight. [{','.join(DEFAULT_PROVIDERS)}]"
)
_overlay_option = click.option(
    "--overlay", type=click.Path(path_type=Path), metavar="FILE", help="Your own corrections and models."
)


@click.command(name="import", cls=FareboxCommand)
@_providers_option
@_overlay_option
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


@click.command(name="check", cls=FareboxCommand)
@_providers_option
@_overlay_option
@click.pass_context
def check_catalogue(
    context: click.Context, providers: tuple[str, ...] | None, overlay: Path | None, as_json: bool
) -> None:
    """Compare the prices in use with the catalogue that Farebox carries, and change nothing.

    Every new, changed and removed model is shown, by meter, tier, tier of service and limit. Prices set by hand are not
    compared. A removed model goes on being sold at its price. Exit code 1 where anything differs.
    """
    settings: Settings = context.obj

    async def work(database: Database) -> Comparison:
        return await check_prices(database, settings, providers=providers or DEFAULT_PROVIDERS, overlay=overlay)

    found = run(settings, work)
    if as_json:
        print_json(_comparison_document(found))
    else:
        _print_comparison(found)
    if found.changes:
        context.exit(EXIT_BAD)


def _import_document(result: ImportResult, dry_run: bool) -> dict[str, object]:
    return {
        "dry_run": dry_run,
        "added": len(result.added),
        "unchanged": result.unchanged,
        "kept": list(result.kept),
        "skipped": _skipped_document(result.skipped),
        "limits_changed": result.limits_changed,
        "changes": [_change_document(change) for change in result.added],
    }


def _skipped_document(skipped: Iterable[Skipped]) -> list[dict[str, str]]:
    return [{"model": one.name, "reason": one.reason} for one in skipped]


def _change_document(change: Change) -> dict[str, object]:
    before, entry = change.before, change.entry
    return {
        "model": entry.model.name,
        "before": price_document(before) if before is not None else None,
        "after": {
            **rates_document(entry.rates),
            "tiers": tiers_document(entry.tiers),
            "multipliers": multipliers_document(entry.multipliers),
        },
        "source": entry.source,
    }


def _print_import(result: ImportResult, dry_run: bool) -> None:
    changed = [change for change in result.added if change.before is not None]
    if changed:
        print_table(
            ("model", *RATE_COLUMNS, "instead of", *RATE_COLUMNS),
            (
                (
                    change.entry.model.name,
                    *rate_cells(change.entry.rates),
                    "",
                    *rate_cells(change.before.rates if change.before is not None else {}),
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


def _comparison_document(found: Comparison) -> dict[str, object]:
    return {
        "different": len(found.changes),
        "unchanged": found.unchanged,
        "set_by_hand": list(found.kept),
        "left_out": _skipped_document(found.left_out),
        "changes": [_model_change_document(change) for change in found.changes],
    }


def _model_change_document(change: ModelChange) -> dict[str, object]:
    document: dict[str, object] = {"model": change.model, "kind": str(change.kind)}
    if change.reason:
        document["reason"] = change.reason
    document["parts"] = [
        {
            "kind": part.part.kind,
            "name": part.part.name,
            "above_input_tokens": part.part.above_input_tokens or None,
            "before": part.before,
            "after": part.after,
            "before_text": _value_text(part.part, part.before),
            "after_text": _value_text(part.part, part.after),
        }
        for part in change.parts
    ]
    return document


def _print_comparison(found: Comparison) -> None:
    counts = {kind: sum(change.kind is kind for change in found.changes) for kind in Kind}
    rows = [(change, part) for change in found.changes if change.kind is Kind.CHANGED for part in change.parts]
    if rows:
        print_table(
            ("model", "what", "in use>", "catalogue>"),
            [(change.model, *_part_cells(part)) for change, part in rows[:_SHOWN_PARTS]],
            title="changed",
        )
        if len(rows) > _SHOWN_PARTS:
            print_line(f"and {len(rows) - _SHOWN_PARTS} more (--json lists all)")
    for kind, column in ((Kind.NEW, "price"), (Kind.REMOVED, "why")):
        shown = [change for change in found.changes if change.kind is kind]
        if shown:
            cells = [(change.model, change.reason or _new_text(change)) for change in shown[:_SHOWN_PARTS]]
            print_table(("model", column), cells, title=str(kind))
        if len(shown) > _SHOWN_PARTS:
            print_line(f"and {len(shown) - _SHOWN_PARTS} more (--json lists all)")
    numbers = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    print_line(f"{numbers}, {found.unchanged} unchanged, {len(found.kept)} set by hand")


def _part_cells(change: PartChange) -> tuple[str, str, str]:
    part = change.part
    what = rate_name(part.name) if part.kind == "rate" else part.name.replace("_", " ")
    if part.kind == "rate":
        what += f" per {unit_of(part.name)}"
    elif part.kind == "multiplier":
        what = f"service tier {part.name}"
    if part.above_input_tokens:
        what += f", above {part.above_input_tokens} tokens in"
    return what, _value_text(part, change.before) or NOTHING, _value_text(part, change.after) or NOTHING


def _new_text(change: ModelChange) -> str:
    rates = [part for part in change.parts if part.part.kind == "rate" and not part.part.above_input_tokens]
    return ", ".join(f"{rate_name(one.part.name)} {_value_text(one.part, one.after)}" for one in rates)


def _value_text(part: Part, value: int | str | None) -> str | None:
    if isinstance(value, int):
        if part.kind == "rate":
            return format_rate(part.name, value)
        if part.kind == "multiplier":
            return f"x{format_multiplier(value)}"
    return str(value) if value is not None else None
