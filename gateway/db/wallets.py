"""Wallets and their ledger entries: reads, and the two ways to post by hand."""

from collections.abc import Sequence

import asyncpg

from gateway.db.lanes import Outcome
from gateway.db.pool import Database, Row
from gateway.db.queries import queries

# The account on the other side of an entry made by hand.
CREDIT_ACCOUNT = "credits"
ADJUST_ACCOUNT = "adjustments"


class BalanceOutOfRange(ValueError):
    """The balance would be more than the ledger can hold. Nothing was changed."""


async def create(database: Database, wallet_id: str, name: str, *, floor_nanos: int = 0) -> None:
    """Open an empty wallet; nothing happens if it exists."""
    await database.fetch("wallet_create", wallet_id, name, floor_nanos)


async def create_with_credit(
    database: Database,
    wallet_id: str,
    name: str,
    posting_id: str,
    amount_nanos: int,
    *,
    floor_nanos: int,
    actor: str,
    reason: str,
) -> None:
    """Open a wallet with its first credit: both, or neither. Raises ValueError for what is no credit."""
    _refuse_unless(amount_nanos > 0)
    async with database.connection() as connection, connection.transaction():
        await connection.execute(queries()["wallet_create"], wallet_id, name, floor_nanos)
        posted = await connection.fetchval(
            queries()["wallet_post"], wallet_id, posting_id, "credit", CREDIT_ACCOUNT, amount_nanos, actor, reason
        )
        if posted != Outcome.POSTED:  # not an assert: raising is what takes the wallet back
            raise AssertionError(f"the first credit of a new wallet was answered {posted}")


async def get(database: Database, wallet_id: str) -> Row | None:
    """One wallet, or None."""
    return await database.fetch_one("wallet_get", wallet_id)


async def list_after(database: Database, after: str | None, count: int) -> Sequence[Row]:
    """Up to `count` wallets whose ids follow `after`."""
    return await database.fetch("wallet_list", after, count)


async def credit(
    database: Database, wallet_id: str, posting_id: str, amount_nanos: int, *, actor: str, reason: str
) -> tuple[Outcome, int]:
    """Add money, once per posting id. Gives the outcome and the balance in nanos.

    Raises BalanceOutOfRange, ValueError.
    """
    _refuse_unless(amount_nanos > 0)
    return await _post(database, wallet_id, posting_id, "credit", CREDIT_ACCOUNT, amount_nanos, actor, reason)


async def adjust(
    database: Database, wallet_id: str, posting_id: str, amount_nanos: int, *, actor: str, reason: str
) -> tuple[Outcome, int]:
    """Correct a balance either way, once per posting id. Gives the same. Raises BalanceOutOfRange, ValueError."""
    _refuse_unless(amount_nanos != 0)
    return await _post(database, wallet_id, posting_id, "adjust", ADJUST_ACCOUNT, amount_nanos, actor, reason)


def _refuse_unless(is_amount: bool) -> None:
    if not is_amount:
        raise ValueError("no amount of this kind")


async def _post(
    database: Database,
    wallet_id: str,
    posting_id: str,
    kind: str,
    contra: str,
    amount_nanos: int,
    actor: str,
    reason: str,
) -> tuple[Outcome, int]:
    try:
        row = await database.fetch_one("wallet_post", wallet_id, posting_id, kind, contra, amount_nanos, actor, reason)
    except asyncpg.NumericValueOutOfRangeError:
        raise BalanceOutOfRange from None
    assert row is not None, "wallet_post always answers"
    return Outcome(row["outcome"]), row["balance_nanos"] or 0


async def set_status(database: Database, wallet_id: str, status: str) -> bool:
    """Suspend or reopen a wallet; holds see it at once. False if there is none with this id."""
    return await database.fetch_one("wallet_set_status", wallet_id, status) is not None


async def set_floor(database: Database, wallet_id: str, floor_nanos: int, *, actor: str, reason: str) -> Outcome:
    """Change how far below zero a wallet may go: posted, wallet_unknown, or insufficient_funds (it is there)."""
    row = await database.fetch_one("wallet_set_floor", wallet_id, floor_nanos, actor, reason)
    assert row is not None
    return Outcome(row["outcome"])


async def posting(database: Database, wallet_id: str, posting_id: str) -> Row | None:
    """The entry that a posting id made, or None."""
    return await database.fetch_one("ledger_entry_by_posting", wallet_id, posting_id)


async def entries(database: Database, wallet_id: str, before_seq: int | None, count: int) -> Sequence[Row]:
    """A wallet's newest ledger entries before `before_seq`."""
    return await database.fetch("ledger_entry_list", wallet_id, before_seq, count)


async def usage(database: Database, wallet_id: str, before_hold_id: str | None, count: int) -> Sequence[Row]:
    """A wallet's newest resolved calls before `before_hold_id`."""
    return await database.fetch("usage_events_by_wallet", wallet_id, before_hold_id, count)
