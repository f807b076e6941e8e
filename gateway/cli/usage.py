"""`farebox usage`: resolved calls in bulk, for spreadsheets and for other programs."""

import csv
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import click
import orjson

from gateway.cli.command import FareboxGroup
from gateway.cli.context import Misconfigured, Refused, run
from gateway.cli.output import amounts, moment, print_json, print_line, progress, text_id
from gateway.cli.parameters import identifier
from gateway.cli.parameters import moment as moment_parameter
from gateway.core.audit import INFORMATION, TERMS
from gateway.core.catalogue import METERS
from gateway.core.money import format_nanos
from gateway.db import usage as events
from gateway.db import wallets
from gateway.db.pool import Database, Row
from gateway.settings import Settings

COUNTED = (*METERS, *sorted(INFORMATION))
# What multiplied the rates, and the meters with variants, whose columns have the sum of them.
_TERMS = tuple(sorted(TERMS))
COLUMNS = (
    *("wallet_id", "hold_id", "began_at", "resolved_at", "late", "key_id", "model", "endpoint", "upstream"),
    *(
        "resolution",
        "basis",
        "reason",
        "price_id",
        *COUNTED,
        "variants",
        *_TERMS,
        "cost",
        "prior",
        "charged",
        "shortfall",
        "cost_picos",
    ),
    "entry_seq",
)
# What a spreadsheet takes for a formula at the beginning of a cell.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


# As RFC 4180 has it. With a line feed alone, Python before 3.13 leaves a carriage return in a cell without quotes.
_LINE_END = "\r\n"


class _CannotWrite(Exception):
    """The output failed, not the ledger."""


@click.group(cls=FareboxGroup)
def usage() -> None:
    """Usage: resolved calls in bulk."""


@usage.command()
@click.option("--wallet", "wallet_id", callback=identifier, metavar="WALLET", help="Of this wallet only.")
@click.option("--from", "since", callback=moment_parameter, metavar="TIME", help="Calls that began then or later.")
@click.option("--to", "until", callback=moment_parameter, metavar="TIME", help="Calls that began before that.")
@click.option("--format", "form", type=click.Choice(["csv", "jsonl"]), default="csv", show_default=True)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Where to; replaced as a whole when all is written. Without it, standard output.",
)
@click.pass_obj
def export(
    settings: Settings,
    wallet_id: str | None,
    since: datetime | None,
    until: datetime | None,
    form: str,
    output: Path | None,
    as_json: bool,
) -> None:
    """Write resolved calls, by wallet and time, as CSV or as JSON lines.

    One snapshot, read a batch at a time: any number of calls in little memory. Amounts are exact. In CSV, text that a
    spreadsheet would take for a formula begins with an apostrophe. With --json and --output FILE, a document says what
    was written.
    """
    if since is not None and until is not None and since >= until:
        raise click.UsageError("--from must be before --to")
    if as_json and output is None:
        raise click.UsageError("--json needs --output FILE: without it the calls themselves go to standard output")
    wanted = events.Wanted(wallet_id, since, until)
    with _opened(output) as target:
        try:
            rows = run(settings, lambda database: _export(database, wanted, form, target))
        except _CannotWrite as error:
            cause = error.__cause__
            assert isinstance(cause, OSError)
            if isinstance(cause, BrokenPipeError):
                raise cause from None
            if output is None:
                # What is left in the buffer has nowhere to go, and must not be tried again at exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise Misconfigured(f"{output or 'standard output'} cannot be written ({cause.strerror})") from None
    if as_json:
        print_json({"file": str(output), "format": form, "rows": rows})
    elif output is not None:
        print_line(f"{rows} calls written to {output}")


async def _export(database: Database, wanted: events.Wanted, form: str, target: BinaryIO) -> int:
    if wanted.wallet_id is not None and await wallets.get(database, wanted.wallet_id) is None:
        raise Refused("wallet_unknown", f"there is no wallet {wanted.wallet_id}")
    encode: Callable[[Sequence[Row]], bytes] = csv_lines if form == "csv" else json_lines
    with progress() as (is_shown, show):
        done = total = 0

        def put(text: bytes) -> None:
            try:
                target.write(text)
                target.flush()
            except OSError as error:
                raise _CannotWrite from error

        def write(rows: Sequence[Row]) -> None:
            nonlocal done
            put(encode(rows))
            done += len(rows)
            show("calls", done, total)

        def hear(count: int) -> None:
            nonlocal total
            total = count

        if form == "csv":
            put((",".join(COLUMNS) + _LINE_END).encode())
        return await events.export(database, wanted, write, on_total=hear if is_shown else None)


@contextmanager
def _opened(output: Path | None) -> Iterator[BinaryIO]:
    """Where the bytes go. A file has its name only once it is whole, and is for its owner alone."""
    if output is None:
        yield sys.stdout.buffer
        return
    try:
        handle, name = tempfile.mkstemp(dir=output.absolute().parent, prefix=f".{output.name}-")
    except OSError as error:
        raise Misconfigured(f"{output} cannot be written ({error.strerror})") from None
    try:
        with os.fdopen(handle, "wb") as target:
            yield target
        os.replace(name, output)
    except OSError as error:
        raise Misconfigured(f"{output} cannot be written ({error.strerror})") from None
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)


def csv_lines(rows: Sequence[Row]) -> bytes:
    """Calls as lines of CSV, in the order of COLUMNS."""
    target = io.StringIO()
    writer = csv.writer(target, lineterminator=_LINE_END)
    for row in rows:
        used = orjson.loads(row["usage"]) if row["usage"] is not None else {}
        values: dict[str, object] = {
            **row,
            "began_at": moment(events.began_at(row["hold_id"])),
            "resolved_at": moment(row["created_at"]),
            "late": "true" if row["late"] else "false",
            **{name: harmless(row[name]) for name in ("model", "endpoint", "upstream", "reason")},
            **_used_columns(used),
            **{name: format_nanos(row[f"{name}_nanos"]) for name in ("cost", "prior", "charged", "shortfall")},
        }
        writer.writerow([values[name] for name in COLUMNS])
    return target.getvalue().encode()


def _used_columns(used: Mapping[str, object]) -> dict[str, object]:
    """A column for each meter, with its variants in it; and the variants by themselves, as `images/high=2`."""
    columns: dict[str, object] = {name: used.get(name) for name in COUNTED}
    variants = {name: quantity for name, quantity in sorted(used.items()) if "/" in name}
    for name, quantity in variants.items():
        general = name.partition("/")[0]
        before = columns.get(general)
        if isinstance(quantity, int):
            columns[general] = quantity + (before if isinstance(before, int) else 0)
    columns["variants"] = " ".join(f"{name}={quantity}" for name, quantity in variants.items()) or None
    for name in _TERMS:
        term = used.get(name)
        columns[name] = harmless(term) if isinstance(term, str) else term
    return columns


def harmless(text: str | None) -> str | None:
    """Text from outside that a spreadsheet will not run."""
    return f"'{text}" if text is not None and text.startswith(_FORMULA) else text


def json_lines(rows: Sequence[Row]) -> bytes:
    """Calls as JSON documents, one a line."""
    return b"".join(orjson.dumps(_document(row), option=orjson.OPT_APPEND_NEWLINE) for row in rows)


def _document(row: Row) -> dict[str, object]:
    plain = ("late", "model", "endpoint", "upstream", "resolution", "basis", "reason", "price_id")
    return {
        "wallet_id": str(row["wallet_id"]),
        "hold_id": str(row["hold_id"]),
        "began_at": moment(events.began_at(row["hold_id"])),
        "resolved_at": moment(row["created_at"]),
        "key_id": text_id(row["key_id"]),
        **{name: row[name] for name in plain},
        "usage": orjson.Fragment(row["usage"]) if row["usage"] is not None else None,
        **amounts(**{name: row[f"{name}_nanos"] for name in ("cost", "prior", "charged", "shortfall")}),
        "cost_picos": row["cost_picos"],
        "entry_seq": row["entry_seq"],
    }
