"""`farebox price`: what models cost. Prices are versions: a new one never changes what was charged."""

from collections.abc import Mapping
from datetime import datetime
from fnmatch import fnmatchcase

import click

from gateway.cli.command import FareboxGroup
from gateway.cli.context import Refused, run
from gateway.cli.output import print_facts, print_json, print_line, print_table
from gateway.cli.parameters import limit_option, text_required
from gateway.cli.price_import import check_catalogue, import_catalogue
from gateway.cli.price_set import set_price
from gateway.cli.price_text import (
    RATE_COLUMNS,
    limit_cells,
    limits_document,
    multipliers_cell,
    other_rates_cell,
    price_document,
    rate_cells,
    rate_rows,
    tiers_cell,
)
from gateway.core.catalogue import Model, Price
from gateway.db import prices
from gateway.db.pool import Database
from gateway.settings import Settings


@click.group(cls=FareboxGroup)
def price() -> None:
    """Prices, in versions."""


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
        ("model", *RATE_COLUMNS, "also", "tiers", "service tiers", "context>", "output max>", "since", "source"),
        (
            (
                one.model,
                *rate_cells(one.rates),
                other_rates_cell(one.rates),
                tiers_cell(one),
                multipliers_cell(one.multipliers),
                *limit_cells(by_name.get(one.model)),
                one.effective_from,
                one.source,
            )
            for one in shown
        ),
    )
    print_line(f"{len(shown)} models; prices are per million tokens, unless another unit stands beside them")


@price.command()
@click.argument("model", callback=text_required)
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
        documents = [price_document(one) | {"in_force": one.price_id == in_force} for one in versions]
        print_json({"model": model, "limits": limits_document(found), "prices": documents})
        return
    limits = limits_document(found) or {}
    print_facts({"model": model, **{name.replace("_", " "): value for name, value in limits.items()}})
    for one in versions:
        if one.price_id == in_force:
            print_line("")
            above = (f"above {tier.above_input_tokens}>" for tier in one.tiers)
            print_table(("meter", "price>", *above, "per"), rate_rows(one))
    print_line("")
    print_table(
        ("price", "from", *RATE_COLUMNS, "also", "tiers", "service tiers", "source", ""),
        (
            (
                one.price_id,
                one.effective_from,
                *rate_cells(one.rates),
                other_rates_cell(one.rates),
                tiers_cell(one),
                multipliers_cell(one.multipliers),
                one.source,
                "in force" if one.price_id == in_force else "to come" if one.effective_from > now else "past",
            )
            for one in versions
        ),
    )


def _listed_document(one: Price, model: Model | None) -> Mapping[str, object]:
    return {"model": one.model, "limits": limits_document(model), **price_document(one)}


for command in (import_catalogue, check_catalogue, set_price):
    price.add_command(command)
