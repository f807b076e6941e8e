"""`farebox wallet`: open wallets, put money in, and see where it went."""

from collections.abc import Sequence
from typing import Any

import click
import orjson

from gateway.cli.command import FareboxGroup
from gateway.cli.context import OutcomeUnknown, Refused, away, run
from gateway.cli.output import amounts, moment, print_facts, print_json, print_line, print_table, text_id
from gateway.cli.parameters import (
    actor_option,
    amount_not_negative,
    amount_not_zero,
    amount_positive,
    identifier,
    limit_option,
    text,
    text_required,
)
from gateway.clock import new_id
from gateway.core.money import format_nanos
from gateway.db import wallets
from gateway.db.lanes import Outcome
from gateway.db.pool import Database, LedgerAway, Row
from gateway.settings import Settings

SHOWN_ROWS = 10

# A negative amount looks like an option to the parser; it is ours to refuse.
_TAKES_NEGATIVE = {"ignore_unknown_options": True}

_wallet_argument = click.argument("wallet_id", metavar="WALLET", callback=identifier)
_reason_option = click.option("--reason", required=True, callback=text_required, help="Why, for the record.")
_posting_option = click.option(
    "--posting-id",
    callback=identifier,
    metavar="UUID",
    help="Give the same id again to retry safely: one id posts once.",
)


@click.group(cls=FareboxGroup)
def wallet() -> None:
    """Wallets: prepaid money, and the ledger of what became of it."""


@wallet.command()
@click.option("--name", default="", callback=text, help="For people.")
@click.option("--credit", callback=amount_positive, metavar="AMOUNT", help="First credit.")
@click.option(
    "--floor",
    default="0",
    callback=amount_not_negative,
    metavar="AMOUNT",
    show_default=True,
    help="How far below zero the balance may go.",
)
@click.option("--reason", default="opening credit", show_default=True, callback=text_required, help="Of the credit.")
@actor_option()
@click.pass_obj
def create(
    settings: Settings, name: str, credit: int | None, floor: int, reason: str, actor: str, as_json: bool
) -> None:
    """Open a wallet, with a first credit if one is given."""
    wallet_id = new_id()

    async def work(database: Database) -> Row:
        if credit is None:
            await wallets.create(database, wallet_id, name, floor_nanos=floor)
        else:
            await wallets.create_with_credit(
                database, wallet_id, name, new_id(), credit, floor_nanos=floor, actor=actor, reason=reason
            )
        return await _get(database, wallet_id)

    _print_wallet(run(settings, work), as_json)


@wallet.command()
@_wallet_argument
@click.pass_obj
def show(settings: Settings, wallet_id: str, as_json: bool) -> None:
    """A wallet with its last ledger entries and calls."""

    async def work(database: Database) -> tuple[Row, Sequence[Row], Sequence[Row]]:
        return (
            await _get(database, wallet_id),
            await wallets.entries(database, wallet_id, None, SHOWN_ROWS),
            await wallets.usage(database, wallet_id, None, SHOWN_ROWS),
        )

    found, entries_found, calls = run(settings, work)
    if as_json:
        print_json(
            {
                **_wallet_document(found),
                "entries": [_entry_document(row) for row in entries_found],
                "calls": [_call_document(row) for row in calls],
            }
        )
        return
    _print_wallet(found, as_json)
    print_line("")
    _print_entries(entries_found, title="last entries")
    print_line("")
    print_table(
        ("at", "hold", "endpoint", "upstream", "became", "basis", "reason", "cost>", "charged>", "short>"),
        (
            (
                row["created_at"],
                row["hold_id"],
                row["endpoint"],
                row["upstream"],
                f"{row['resolution']}, late" if row["late"] else row["resolution"],
                row["basis"],
                row["reason"],
                *(format_nanos(row[name]) for name in ("cost_nanos", "charged_nanos", "shortfall_nanos")),
            )
            for row in calls
        ),
        title="last calls",
    )


@wallet.command(name="list")
@click.option("--after", callback=identifier, metavar="WALLET", help="Go on after this wallet.")
@limit_option(100)
@click.pass_obj
def list_wallets(settings: Settings, after: str | None, limit: int, as_json: bool) -> None:
    """Wallets in the order of their ids, which is the order in which they were opened."""
    rows = run(settings, lambda database: wallets.list_after(database, after, limit + 1))
    shown = rows[:limit]
    following = str(shown[-1]["wallet_id"]) if len(rows) > limit else None
    if as_json:
        print_json({"wallets": [_wallet_document(row) for row in shown], "next_after": following})
        return
    columns = ("balance_nanos", "held_nanos", "floor_nanos")
    print_table(
        ("wallet", "name", "status", "balance>", "held>", "floor>", "opened"),
        (
            (
                row["wallet_id"],
                row["name"],
                row["status"],
                *(format_nanos(row[name]) for name in columns),
                row["created_at"],
            )
            for row in shown
        ),
    )
    if following is not None:
        print_line(f"more: --after {following}")


@wallet.command(context_settings=_TAKES_NEGATIVE)
@_wallet_argument
@click.argument("amount", callback=amount_positive)
@_reason_option
@actor_option()
@_posting_option
@click.pass_obj
def credit(
    settings: Settings, wallet_id: str, amount: int, reason: str, actor: str, posting_id: str | None, as_json: bool
) -> None:
    """Add money to a wallet."""
    _post(settings, "credit", wallet_id, amount, reason, actor, posting_id, as_json)


@wallet.command(context_settings=_TAKES_NEGATIVE)
@_wallet_argument
@click.argument("amount", callback=amount_not_zero)
@_reason_option
@actor_option()
@_posting_option
@click.pass_obj
def adjust(
    settings: Settings, wallet_id: str, amount: int, reason: str, actor: str, posting_id: str | None, as_json: bool
) -> None:
    """Correct a balance: a negative AMOUNT takes money away, never more than is free."""
    _post(settings, "adjust", wallet_id, amount, reason, actor, posting_id, as_json)


@wallet.command()
@_wallet_argument
@click.pass_obj
def suspend(settings: Settings, wallet_id: str, as_json: bool) -> None:
    """Let no new call start; calls in flight are still charged."""
    _set_status(settings, wallet_id, "suspended", as_json)


@wallet.command()
@_wallet_argument
@click.pass_obj
def reopen(settings: Settings, wallet_id: str, as_json: bool) -> None:
    """Undo `suspend`."""
    _set_status(settings, wallet_id, "active", as_json)


@wallet.command()
@_wallet_argument
@click.argument("amount", callback=amount_not_negative)
@_reason_option
@actor_option()
@click.pass_obj
def floor(settings: Settings, wallet_id: str, amount: int, reason: str, actor: str, as_json: bool) -> None:
    """Let a balance go AMOUNT below zero, and no further; charges so far keep the floor of their time."""

    async def work(database: Database) -> Row:
        outcome = await wallets.set_floor(database, wallet_id, amount, actor=actor, reason=reason)
        if outcome is Outcome.WALLET_UNKNOWN:
            raise _unknown(wallet_id)
        if outcome is Outcome.INSUFFICIENT_FUNDS:
            raise Refused(outcome, "the wallet is further below zero already, or its holds would take it there")
        return await _get(database, wallet_id)

    _print_wallet(run(settings, work), as_json)


@wallet.command()
@_wallet_argument
@click.option("--before", type=click.IntRange(1), metavar="SEQ", help="Go on before this entry.")
@limit_option(100)
@click.pass_obj
def entries(settings: Settings, wallet_id: str, before: int | None, limit: int, as_json: bool) -> None:
    """A wallet's ledger entries, newest first."""

    async def work(database: Database) -> Sequence[Row]:
        await _get(database, wallet_id)
        return await wallets.entries(database, wallet_id, before, limit + 1)

    rows = run(settings, work)
    shown = rows[:limit]
    following = shown[-1]["seq"] if len(rows) > limit else None
    if as_json:
        documents = [_entry_document(row) for row in shown]
        print_json({"wallet_id": wallet_id, "entries": documents, "next_before": following})
        return
    _print_entries(shown)
    if following is not None:
        print_line(f"more: --before {following}")


async def _get(database: Database, wallet_id: str) -> Row:
    row = await wallets.get(database, wallet_id)
    if row is None:
        raise _unknown(wallet_id)
    return row


def _unknown(wallet_id: str) -> Refused:
    return Refused(Outcome.WALLET_UNKNOWN, f"there is no wallet {wallet_id}")


def _post(
    settings: Settings,
    kind: str,
    wallet_id: str,
    amount_nanos: int,
    reason: str,
    actor: str,
    given_posting_id: str | None,
    as_json: bool,
) -> None:
    posting_id = given_posting_id or new_id()

    async def work(database: Database) -> tuple[Outcome, int]:
        post = wallets.credit if kind == "credit" else wallets.adjust
        try:
            outcome, balance = await post(database, wallet_id, posting_id, amount_nanos, actor=actor, reason=reason)
        except wallets.BalanceOutOfRange:
            raise Refused("balance_out_of_range", "the balance would be more than the ledger can hold") from None
        except LedgerAway as error:
            hint = f"to find out, repeat the command with --posting-id {posting_id}"
            raise OutcomeUnknown(f"{away(error)[1]}\nit may have been posted: {hint}") from error
        if outcome is Outcome.ALREADY_POSTED:
            await _check_same_posting(database, kind, wallet_id, posting_id, amount_nanos)
        return outcome, balance

    outcome, balance = run(settings, work)
    if outcome is Outcome.WALLET_UNKNOWN:
        raise _unknown(wallet_id)
    if outcome is Outcome.INSUFFICIENT_FUNDS:
        raise Refused(outcome, f"the wallet has less than that free: its balance is {format_nanos(balance)}")
    if as_json:
        facts = amounts(amount=amount_nanos, balance=balance)
        print_json({"outcome": outcome, "wallet_id": wallet_id, "posting_id": posting_id, **facts})
    elif outcome is Outcome.ALREADY_POSTED:
        print_line(f"already posted; the balance is {format_nanos(balance)}")
    else:
        print_line(f"posted {format_nanos(amount_nanos)}; the balance is {format_nanos(balance)}")


async def _check_same_posting(
    database: Database, kind: str, wallet_id: str, posting_id: str, amount_nanos: int
) -> None:
    """Raises Refused where the id stands for something else: that is no retry."""
    row = await wallets.posting(database, wallet_id, posting_id)
    assert row is not None, "an id that is already posted has its entry"
    if (row["kind"], row["amount_nanos"]) != (kind, amount_nanos):
        raise Refused(
            "posting_differs",
            f"posting {posting_id} was a {row['kind']} of {format_nanos(row['amount_nanos'])}: nothing was done now",
        )


def _set_status(settings: Settings, wallet_id: str, status: str, as_json: bool) -> None:
    async def work(database: Database) -> Row:
        if not await wallets.set_status(database, wallet_id, status):
            raise _unknown(wallet_id)
        return await _get(database, wallet_id)

    _print_wallet(run(settings, work), as_json)


def _print_wallet(row: Row, as_json: bool) -> None:
    document = _wallet_document(row)
    if as_json:
        print_json(document)
        return
    names = ("name", "status", "balance", "held", "available", "floor")
    print_facts({"wallet": row["wallet_id"], **{name: document[name] for name in names}, "opened": row["created_at"]})


def _print_entries(rows: Sequence[Row], *, title: str | None = None) -> None:
    print_table(
        ("seq>", "at", "kind", "amount>", "balance after>", "with", "hold or posting", "actor", "reason"),
        (
            (
                row["seq"],
                row["created_at"],
                row["kind"],
                format_nanos(row["amount_nanos"]),
                format_nanos(row["balance_after_nanos"]),
                row["contra"],
                row["hold_id"] or row["posting_id"],
                row["actor"],
                row["reason"],
            )
            for row in rows
        ),
        title=title,
    )


def _wallet_document(row: Row) -> dict[str, Any]:
    free = row["balance_nanos"] - row["held_nanos"] + row["floor_nanos"]
    return {
        "wallet_id": str(row["wallet_id"]),
        "name": row["name"],
        "status": row["status"],
        **amounts(balance=row["balance_nanos"], held=row["held_nanos"], available=free, floor=row["floor_nanos"]),
        "entry_seq": row["entry_seq"],
        "created_at": moment(row["created_at"]),
    }


def _entry_document(row: Row) -> dict[str, Any]:
    return {
        "seq": row["seq"],
        "kind": row["kind"],
        "contra": row["contra"],
        **amounts(amount=row["amount_nanos"], balance_after=row["balance_after_nanos"]),
        "hold_id": text_id(row["hold_id"]),
        "posting_id": text_id(row["posting_id"]),
        "actor": row["actor"],
        "reason": row["reason"],
        "created_at": moment(row["created_at"]),
    }


def _call_document(row: Row) -> dict[str, Any]:
    return {
        "hold_id": str(row["hold_id"]),
        "late": row["late"],
        "resolution": row["resolution"],
        "basis": row["basis"],
        "reason": row["reason"],
        "endpoint": row["endpoint"],
        "upstream": row["upstream"],
        "price_id": row["price_id"],
        "usage": orjson.loads(row["usage"]) if row["usage"] is not None else None,
        **amounts(cost=row["cost_nanos"], charged=row["charged_nanos"], shortfall=row["shortfall_nanos"]),
        "entry_seq": row["entry_seq"],
        "created_at": moment(row["created_at"]),
    }
