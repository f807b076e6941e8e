"""What commands print: one JSON document for machines, or tables for people. Amounts in nanos come in as int."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from gateway.core.catalogue import Rates, Tier, rates_to_json
from gateway.core.money import format_nanos
from gateway.core.rate_units import format_rate, is_per_million, rate_name

# Pipes have no width; nothing is cut or wrapped on the way to another program.
_PIPE_COLUMNS = 1_000

NOTHING = "–"  # noqa: RUF001 - an en dash in an empty cell is meant


def print_json(document: Mapping[str, object]) -> None:
    """One document on stdout."""
    click.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())


def console(*, stderr: bool = False) -> Console:
    """Where tables go. Names and reasons are data: no markup in them is obeyed."""
    is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(
        stderr=stderr, markup=False, emoji=False, highlight=False, width=None if is_terminal else _PIPE_COLUMNS
    )


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """A table on stdout. A column whose name ends in `>` is aligned to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left", title_style="bold")
    for name in columns:
        is_number = name.endswith(">")
        table.add_column(
            name.removesuffix(">"), justify="right" if is_number else "left", no_wrap=is_number, overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    _print(table)


def print_facts(facts: Mapping[str, object]) -> None:
    """Names and values, one a line."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, Text(_cell(value)))
    _print(table)


def _print(table: Table) -> None:
    target = console()
    if target.is_terminal:
        target.print(table)
        return
    with target.capture() as captured:
        target.print(table)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def print_line(text: str) -> None:
    """A sentence on stdout."""
    click.echo(text)


def _cell(value: object) -> str:
    if value is None or value == "":
        return NOTHING
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    return str(value)


def amounts(**nanos: int) -> dict[str, object]:
    """Each amount twice: `balance` as a decimal string in units, `balance_nanos` as a whole number."""
    document: dict[str, object] = {}
    for name, value in nanos.items():
        document[name] = format_nanos(value)
        document[f"{name}_nanos"] = value
    return document


def moment(value: datetime | None) -> str | None:
    """A time in JSON: ISO 8601 in UTC."""
    return value.astimezone(UTC).isoformat() if value is not None else None


def text_id(value: object) -> str | None:
    """An id in JSON."""
    return str(value) if value is not None else None


def rates_document(rates: Rates) -> dict[str, object]:
    """Rates as decimal strings, per million or in the unit that the name says, and in picos per unit of use."""
    texts = {meter: format_rate(meter, picos) for meter, picos in sorted(rates.items())}
    return {
        "rates_per_million": {meter: text for meter, text in texts.items() if is_per_million(meter)},
        "rates_per_unit": {rate_name(meter): text for meter, text in texts.items() if not is_per_million(meter)},
        "rates_picos": rates_to_json(rates),
    }


def tiers_document(tiers: tuple[Tier, ...]) -> list[dict[str, object]]:
    """Tiers in ascending order."""
    return [{"above_input_tokens": tier.above_input_tokens, **rates_document(tier.rates)} for tier in tiers]


# What is done, how much of it, and of how much (0: nobody knows).
Show = Callable[[str, int, int], None]


@contextmanager
def progress() -> Iterator[tuple[bool, Show]]:
    """Whether a bar is shown, and how to move it: on standard error while the work lasts, if that is a terminal."""
    target = console(stderr=True)
    if not target.is_terminal:
        yield False, lambda _what, _done, _total: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=target, transient=True) as bar:
        task = bar.add_task("the database", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total or None)

        yield True, show
