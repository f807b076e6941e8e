"""`farebox price set`: a price by hand, of any meter."""

from collections.abc import Mapping
from datetime import datetime

import click

from gateway.cli.command import FareboxCommand
from gateway.cli.context import Misconfigured, run
from gateway.cli.output import moment, print_json, print_line, rates_document
from gateway.cli.parameters import actor_option, multipliers, rate, rates, text_required
from gateway.cli.parameters import moment as moment_given
from gateway.cli.price_text import limits_document, multipliers_cell, multipliers_document, rate_text
from gateway.core.catalogue import Meter, Model, Rates
from gateway.db import prices
from gateway.db.pool import Database
from gateway.settings import Settings
from gateway.upkeep.price_import import SET_BY_HAND

# For a model that nobody has described; too low a limit would refuse calls that it can answer.
CONTEXT_TOKENS_DEFAULT = 128_000
OUTPUT_TOKENS_DEFAULT = 16_384
TOKENS_MAX = 100_000_000


@click.command(name="set", cls=FareboxCommand)
@click.argument("model", callback=text_required)
@click.option("--input", "input_rate", callback=rate, metavar="PRICE", help="Per million input tokens.")
@click.option("--output", "output_rate", callback=rate, metavar="PRICE", help="Per million output tokens.")
@click.option("--cached-input", callback=rate, metavar="PRICE", help="As input without this.")
@click.option("--cache-write", callback=rate, metavar="PRICE", help="As input without this.")
@click.option(
    "--rate",
    "other_rates",
    multiple=True,
    callback=rates,
    metavar="METER=PRICE",
    help="Any other meter, in its unit: audio_output=64, images/high/1024x1024=0.04, audio_minutes=0.006.",
)
@click.option(
    "--multiplier",
    "shares",
    multiple=True,
    callback=multipliers,
    metavar="TIER=TIMES",
    help="A tier of service that is offered besides the default one: flex=0.5.",
)
@click.option("--context", type=click.IntRange(1, TOKENS_MAX), metavar="TOKENS", help="The model's context window.")
@click.option("--max-output", type=click.IntRange(1, TOKENS_MAX), metavar="TOKENS", help="The most it produces.")
@click.option("--effective-from", callback=moment_given, metavar="WHEN", help="ISO 8601; now without this.")
@actor_option()
@click.pass_obj
def set_price(
    settings: Settings,
    model: str,
    input_rate: int | None,
    output_rate: int | None,
    cached_input: int | None,
    cache_write: int | None,
    other_rates: Rates,
    shares: Mapping[str, int],
    context: int | None,
    max_output: int | None,
    effective_from: datetime | None,
    actor: str,
    as_json: bool,
) -> None:
    """Set a model's price by hand; 0 is a price. It is the whole price: what has none is not sold.

    Prices are per million tokens or characters; per image, request, search or container; and per time of sound, as
    audio_seconds, audio_minutes or audio_hours. A model that is new is made known: limits that are not given stay as
    they are, or are 128,000 tokens of context and 16,384 of output.
    """
    given = {
        Meter.INPUT: input_rate,
        Meter.CACHED_INPUT: cached_input,
        Meter.CACHE_WRITE: cache_write,
        Meter.OUTPUT: output_rate,
    }
    stated: dict[str, int] = {meter: picos for meter, picos in given.items() if picos is not None}
    if twice := stated.keys() & other_rates.keys():
        raise click.UsageError(f"{min(twice)} is given twice")
    stated |= other_rates
    if not stated:
        raise click.UsageError("no price is given: --input, --output or --rate METER=PRICE")

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
        version = prices.PriceVersion(model, since, stated, (), f"{SET_BY_HAND}{actor}", shares)
        await prices.add_prices(database, [version])
        return after, since

    stored, since = run(settings, work)
    if as_json:
        document = {"model": model, "limits": limits_document(stored), "effective_from": moment(since)}
        print_json(document | rates_document(stated) | {"multipliers": multipliers_document(shares)})
    else:
        cells = [rate_text(meter, picos) for meter, picos in stated.items()]
        if shares:
            cells.append(multipliers_cell(shares))
        print_line(f"{model}: {', '.join(cells)} (tokens by the million), from {moment(since)}")
