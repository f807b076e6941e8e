"""`farebox journal`: settles on disk that the ledger does not have yet, and sending them to it now."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import click
import orjson
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from gateway.cli.command import FareboxGroup
from gateway.cli.context import EXIT_BAD, Refused, run
from gateway.cli.output import amounts, console, moment, print_json, print_line, print_table
from gateway.core.journal_record import Record, placed_at_seconds
from gateway.core.money import format_nanos
from gateway.db.journal import Journal, JournalFile
from gateway.db.lanes import Lane
from gateway.db.pool import Connection, Database, connect
from gateway.metrics import Metrics
from gateway.settings import Settings
from gateway.tasks import spawn
from gateway.upkeep.replay import Replay, Replayed

# Nobody waits behind a replay by hand: it may wait longer for a slow ledger than a call does.
_WAIT_SECONDS = 30.0


@click.group(cls=FareboxGroup)
def journal() -> None:
    """Settles that could not reach the ledger. A gateway replays them by itself: this is for when none runs."""


@journal.command("list")
@click.option("--records", "with_records", is_flag=True, help="Also every record that can be read.")
@click.pass_obj
def list_(settings: Settings, with_records: bool, as_json: bool) -> None:
    """List the journal files of this data directory, and what is in them."""
    files = _files(settings)
    if as_json:
        print_json({"files": [_document(file, with_records=with_records) for file in files]})
        return
    print_table(
        ("file", "owner", "records>", "damaged>", "bytes>", "oldest"),
        ((f.path.name, f.owner, str(len(f.records)), str(f.damaged), str(f.bytes), _since(f.records)) for f in files),
    )
    if with_records:
        print_line("")
        print_table(
            ("file", "wallet", "hold", "operation", "cost>"),
            ((f.path.name, r.wallet_id, r.hold_id, *_what(r)) for f in files for r in f.records),
        )
    if any(file.owner == "none" for file in files):
        print_line("\na .damaged file could not be replayed whole: see deploy/runbooks/FareboxJournalDamaged.md")


@journal.command()
@click.option("--damaged", "with_damaged", is_flag=True, help="Try files that were set aside again, too.")
@click.pass_obj
@click.pass_context
def replay(context: click.Context, settings: Settings, with_damaged: bool, as_json: bool) -> None:
    """Send the records of gateways that died to the ledger now; exit 1 if some could not be given.

    Safe to repeat, and beside gateways that run: each record has the id of its hold, and is charged once. A file whose
    gateway lives is left to it. A file with records that cannot be read, or that the ledger refuses, is kept.
    """
    files = _files(settings)
    chosen = [file for file in files if file.owner == "dead" or (with_damaged and file.owner == "none")]
    given = Replayed(0, 0, 0)
    if chosen:
        with _progress(sum(len(file.records) for file in chosen)) as on_given:
            given = run(
                settings, lambda database: _replay(settings, database, with_damaged=with_damaged, on_given=on_given)
            )
    kept = [file.path.name for file in _files(settings) if file.owner == "none"]
    alive = sum(file.owner == "alive" for file in files)
    if as_json:
        counts = {"records": given.records, "refused": given.refused, "damaged": given.damaged}
        print_json({"ok": not given.refused + given.damaged, **counts, "kept": kept, "left_to_their_gateways": alive})
    else:
        print_line(f"{given.records} records given; {given.refused} refused, {given.damaged} damaged")
        if alive:
            print_line(f"{alive} files are left to gateways that run")
        for name in kept:
            print_line(f"kept for a person: {name}")
    if given.refused or given.damaged:
        context.exit(EXIT_BAD)


def _journal(settings: Settings) -> Journal:
    return Journal(settings.directory() / "journal", bytes_max=settings.journal_bytes_max)


def _files(settings: Settings) -> list[JournalFile]:
    try:
        return _journal(settings).files()
    except OSError as error:
        raise Refused("journal_unreadable", f"the journal cannot be read: {error}") from error


async def _replay(
    settings: Settings, database: Database, *, with_damaged: bool, on_given: Callable[[int], None]
) -> Replayed:
    async def connection() -> Connection:
        return await connect(database.dsn)

    lane = Lane(
        connection,
        _Unobserved(),
        batch_operations_max=settings.lane_batch_operations_max,
        queue_operations_max=settings.lane_queue_operations_max,
        statement_seconds=_WAIT_SECONDS,
        wait_seconds=_WAIT_SECONDS,
    )
    running = spawn(lane.run(), name="lane")
    try:
        replay = Replay(_journal(settings), lane, Metrics(), on_given=on_given)
        given = await replay.give_set_aside() if with_damaged else Replayed(0, 0, 0)
        return given + await replay.give_left_behind()
    finally:
        lane.close()
        await running


class _Unobserved:
    def batch_sent(self, operations: int) -> None: ...
    def statement_failed(self, kind: str) -> None: ...


def _document(file: JournalFile, *, with_records: bool) -> dict[str, object]:
    document: dict[str, object] = {
        "file": str(file.path),
        "owner": file.owner,
        "records": len(file.records),
        "damaged": file.damaged,
        "bytes": file.bytes,
        "oldest_at": moment(_since(file.records)),
    }
    if with_records:
        document["contents"] = [
            {"wallet_id": r.wallet_id, "hold_id": r.hold_id, "operation": orjson.loads(r.document), **_cost(r)}
            for r in file.records
        ]
    return document


def _since(records: list[Record]) -> datetime | None:
    """When the call of the oldest record began."""
    return datetime.fromtimestamp(min(map(placed_at_seconds, records)), UTC) if records else None


def _cost(record: Record) -> dict[str, object]:
    cost = orjson.loads(record.document).get("cost")
    return amounts(cost=cost) if isinstance(cost, int) else {}


def _what(record: Record) -> tuple[str, str]:
    """(operation, cost) for people."""
    document = orjson.loads(record.document)
    cost = document.get("cost")
    return str(document.get("op")), format_nanos(cost) if isinstance(cost, int) else ""


@contextmanager
def _progress(records: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error while the work lasts, if that is a terminal."""
    target = console(stderr=True)
    if not target.is_terminal:
        yield lambda _records: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=target, transient=True) as bar:
        task = bar.add_task("records", total=records)
        yield lambda given: bar.advance(task, given)
