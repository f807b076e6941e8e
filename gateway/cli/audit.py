"""`farebox audit`: do the books balance, and does every charge follow from its price?"""

import click

from gateway.cli.command import FareboxCommand
from gateway.cli.context import EXIT_BAD, run
from gateway.cli.output import print_json, print_line, print_table, progress
from gateway.core.audit import Finding
from gateway.core.seal import parse_head
from gateway.db import audit as auditor
from gateway.settings import Settings


def _head(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, bytes] | None:
    try:
        return parse_head(value) if value is not None else None
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(cls=FareboxCommand)
@click.option("--expect", "kept", callback=_head, metavar="HEAD", help="A head that an earlier audit or log line gave.")
@click.pass_obj
@click.pass_context
def audit(context: click.Context, settings: Settings, kept: tuple[int, bytes] | None, as_json: bool) -> None:
    """Check every invariant and every seal, and work out every charge anew; exit 1 on any difference.

    Reads one snapshot, so it may run under load. Each check says how many differences it found, and names the first.

    The head that it prints stands for every entry sealed so far. Kept where nobody who can write to the database can
    write, and given back with --expect, it shows even a ledger whose seals were all made anew to fit.
    """
    with progress() as (_, on_progress):
        result = run(settings, lambda database: auditor.audit(database.dsn, kept=kept, on_progress=on_progress))
    if as_json:
        print_json(
            {
                "ok": result.is_clean,
                "head": result.head,
                "entries": result.entries,
                "sealed_entries": result.sealed,
                "checks": [_document(finding) for finding in result.findings],
            }
        )
    else:
        _print(result)
    if not result.is_clean:
        context.exit(EXIT_BAD)


def _print(result: auditor.Audit) -> None:
    print_table(
        ("check", "result"),
        (
            (finding.check, f"{finding.differences} differences" if finding.differences else "ok")
            for finding in result.findings
        ),
    )
    failed = [finding for finding in result.findings if finding.first is not None]
    for finding in failed:
        print_line(f"\n{finding.check}, the first of {finding.differences}:\n  {finding.first}")
    events = result.findings[-1].rows
    print_line(
        f"\n{len(failed)} of {len(result.findings)} checks found differences"
        if failed
        else f"\nthe books balance: {len(result.findings)} checks, {events} calls worked out anew"
    )
    print_line(f"{result.sealed} of {result.entries} entries are sealed; the newest head is {result.head}")


def _document(finding: Finding) -> dict[str, object]:
    document: dict[str, object] = {
        "check": finding.check,
        "ok": not finding.differences,
        "rows": finding.rows,
        "differences": finding.differences,
        "first": None,
    }
    if (first := finding.first) is not None:
        document["first"] = {
            "wallet_id": first.wallet_id or None,
            "seq": first.seq or None,
            "hold_id": first.hold_id or None,
            "what": first.what,
            "expected": first.expected or None,
            "found": first.found or None,
        }
    return document
