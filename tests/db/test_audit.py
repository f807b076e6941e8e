"""Every kind of damage that a hand, a disk or a bug could do to the books is found, counted and named."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator

import asyncpg
import pytest

from gateway.clock import new_id
from gateway.core.audit import Finding
from gateway.db.audit import COSTS_CHECK, Audit, Progress, audit
from gateway.db.pool import LedgerAway
from gateway.db.streams import BATCH_ROWS
from tests.support.ledger import Books, apply, make_books, make_price, make_wallet, settle_operation
from tests.support.postgres import ScratchPostgres

_numbers = itertools.count(1)


@pytest.fixture
async def dsn(scratch: ScratchPostgres) -> AsyncIterator[str]:
    """A database of one's own to spoil."""
    name = f"audit_{next(_numbers)}"
    yield await scratch.clone(name)
    await scratch.drop(name)


@pytest.fixture
async def connection(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


@pytest.fixture
async def books(connection: asyncpg.Connection) -> Books:
    return await make_books(connection)


def failing(result: Audit) -> dict[str, Finding]:
    return {finding.check: finding for finding in result.findings if finding.differences}


async def test_sound_books_are_clean(dsn: str, books: Books) -> None:
    result = await audit(dsn)
    assert result.is_clean
    assert [finding.check for finding in result.findings][-1] == COSTS_CHECK
    # Settled three times, voided, swept, settled late, swept, settled.
    assert result.findings[-1].rows == 8


async def test_empty_books_are_clean(dsn: str) -> None:
    assert (await audit(dsn)).is_clean


# What is done to the books of `tests.support.ledger.make_books`, and exactly the checks that must see it. In the SQL,
# $1 is the wallet and $2 its first settled hold.
DAMAGE = {
    "changed balance": (
        "UPDATE wallets SET balance_nanos = balance_nanos + 1 WHERE wallet_id = $1 AND $2::uuid IS NOT NULL",
        {"balance_is_the_sum_of_entries", "accounts_sum_to_zero"},
    ),
    "changed entry amount": (
        "UPDATE ledger_entries SET amount_nanos = amount_nanos - 1 WHERE wallet_id = $1 AND hold_id = $2",
        {
            "balance_is_the_sum_of_entries",
            "balance_after_is_a_chain",
            "every_charge_has_one_usage_event",
            "every_charged_event_has_its_entry",
            "accounts_sum_to_zero",
        },
    ),
    "changed balance after": (
        "UPDATE ledger_entries SET balance_after_nanos = balance_after_nanos + 1 WHERE wallet_id = $1 AND hold_id = $2",
        {"balance_after_is_a_chain"},
    ),
    "missing entry": (
        "DELETE FROM ledger_entries WHERE wallet_id = $1 AND hold_id = $2",
        {
            "balance_is_the_sum_of_entries",
            "seq_is_dense",
            "balance_after_is_a_chain",
            "every_charged_event_has_its_entry",
            "accounts_sum_to_zero",
        },
    ),
    "missing usage event": (
        "DELETE FROM usage_events WHERE wallet_id = $1 AND hold_id = $2",
        {"every_charge_has_one_usage_event"},
    ),
    "changed usage tokens": (
        "UPDATE usage_events SET usage = usage || '{\"output\": 32}' WHERE wallet_id = $1 AND hold_id = $2",
        {COSTS_CHECK},
    ),
    "usage of no known meter": (
        "UPDATE usage_events SET usage = usage || '{\"seconds\": 0}' WHERE wallet_id = $1 AND hold_id = $2",
        {COSTS_CHECK},
    ),
    "usage removed": (
        "UPDATE usage_events SET usage = NULL WHERE wallet_id = $1 AND hold_id = $2",
        {COSTS_CHECK},
    ),
    "changed cost, consistently": (
        """
        UPDATE usage_events
        SET cost_picos = cost_picos + 1000, cost_nanos = cost_nanos + 1, shortfall_nanos = shortfall_nanos + 1
        WHERE wallet_id = $1 AND hold_id = $2
        """,
        {COSTS_CHECK},
    ),
    "changed exact cost under the rounding": (
        "UPDATE usage_events SET cost_picos = cost_picos - 1 WHERE wallet_id = $1 AND hold_id = $2",
        {COSTS_CHECK},
    ),
    "usage event doubled": (
        """
        INSERT INTO usage_events
        SELECT wallet_id, hold_id, true, resolution, basis, reason, key_id, price_id, endpoint, upstream, usage,
            held_nanos, cost_picos, cost_nanos, prior_nanos, charged_nanos, shortfall_nanos, entry_seq
        FROM usage_events WHERE wallet_id = $1 AND hold_id = $2
        """,
        {
            "at_most_one_resolution_and_one_late_settle",
            "a_late_settle_charges_the_rest",
            "every_charge_has_one_usage_event",
        },
    ),
    "price row edited": (
        "UPDATE prices SET rates = rates || '{\"output\": 4002}' WHERE $1::uuid <> $2::uuid",
        {COSTS_CHECK},
    ),
    "price row damaged": (
        "UPDATE prices SET rates = '{\"output\": -1}' WHERE $1::uuid <> $2::uuid",
        {COSTS_CHECK},
    ),
    "price row gone": (
        "DELETE FROM prices WHERE $1::uuid <> $2::uuid",
        {COSTS_CHECK, "every_event_names_a_price_and_a_reason"},
    ),
    "held sum wrong": (
        "UPDATE wallets SET held_nanos = held_nanos + 1 WHERE wallet_id = $1 AND $2::uuid IS NOT NULL",
        {"held_is_the_sum_of_open_holds"},
    ),
    "hold resolved and still open": (
        """
        INSERT INTO holds
        SELECT wallet_id, $2, state, key_id, price_id, endpoint, 0, decline, 60, now()
        FROM holds WHERE wallet_id = $1
        """,
        {"a_resolved_hold_is_not_open"},
    ),
    "wallet gone": (
        "DELETE FROM wallets WHERE wallet_id = $1 AND $2::uuid IS NOT NULL",
        {"nothing_belongs_to_no_wallet", "accounts_sum_to_zero"},
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_damage_is_found(dsn: str, connection: asyncpg.Connection, books: Books, damage: str) -> None:
    statement, checks = DAMAGE[damage]
    await connection.execute(statement, books.wallet_id, books.settled[0])
    found = failing(await audit(dsn))
    assert found.keys() == checks
    # Somebody is named: the wallet that was damaged, wherever a difference belongs to one.
    for finding in found.values():
        assert finding.first is not None
        assert finding.first.wallet_id in ({""} if finding.check == "accounts_sum_to_zero" else {books.wallet_id})


async def test_the_first_difference_says_what_was_expected_and_found(
    dsn: str, connection: asyncpg.Connection, books: Books
) -> None:
    statement, _ = DAMAGE["changed usage tokens"]
    for hold_id in reversed(books.settled):
        await connection.execute(statement, books.wallet_id, hold_id)
    finding = failing(await audit(dsn))[COSTS_CHECK]
    assert finding.first is not None
    # Both the exact and the rounded cost of three calls; the first call is named whatever the order of the rows.
    assert finding.differences == 6
    assert finding.first.hold_id == books.settled[0]
    # 100 times 1,250 + 7 times 625 + 31 times 4,001 picos were charged; 32 tokens would be 4,001 more.
    assert (finding.first.what, finding.first.expected, finding.first.found) == (
        f"cost_nanos at price {books.price.price_id}",
        "257",
        "253",
    )
    assert str(finding.first).startswith(f"wallet {books.wallet_id}, hold {books.settled[0]}: cost_nanos")


async def test_an_audit_under_load_sees_one_snapshot(dsn: str, connection: asyncpg.Connection) -> None:
    price = await make_price(connection)
    wallet_id = await make_wallet(connection)
    calls, stopping = itertools.count(1), False
    made = 0

    async def call_on() -> None:
        nonlocal made
        while not stopping:
            hold_id = f"{_prefix()}-7000-8000-{next(calls):012x}"
            # Unheld settles: as many rows as possible while the audit reads.
            await apply(connection, wallet_id, settle_operation(hold_id, price))
            made += 1

    load = asyncio.get_running_loop().create_task(call_on())
    try:
        for _ in range(4):
            before, totals = made, dict[str, int]()
            result = await audit(dsn, on_progress=_into(totals))
            assert result.is_clean
            assert made > before
            # Counted by one statement and read by another: only in one snapshot do they agree.
            rows = result.findings[-1].rows
            assert totals.get(COSTS_CHECK, 0) == rows
    finally:
        stopping = True
        await load


async def test_more_events_than_one_batch_are_all_read(dsn: str, connection: asyncpg.Connection) -> None:
    price = await make_price(connection)
    wallet_id = await make_wallet(connection)
    holds = [f"{_prefix()}-7000-8000-{number:012x}" for number in range(BATCH_ROWS + 500)]
    for start in range(0, len(holds), 500):
        await apply(connection, wallet_id, *(settle_operation(hold, price) for hold in holds[start : start + 500]))
    heard: list[tuple[int, int]] = []
    result = await audit(dsn, on_progress=lambda check, done, total: heard.append((done, total)))
    assert result.is_clean
    assert heard[-2:] == [(BATCH_ROWS, len(holds)), (len(holds), len(holds))]
    statement, _ = DAMAGE["changed exact cost under the rounding"]
    await connection.execute(statement, wallet_id, holds[-1])
    finding = failing(await audit(dsn))[COSTS_CHECK]
    assert finding.differences == 1
    assert finding.first is not None
    assert finding.first.hold_id == holds[-1]


async def test_a_time_limit_of_the_database_does_not_end_an_audit(
    dsn: str, connection: asyncpg.Connection, books: Books
) -> None:
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(f'ALTER DATABASE "{name}" SET idle_in_transaction_session_timeout = 100')
    pauses = iter([0.25])
    result = await audit(dsn, on_progress=lambda _check, _done, _total: time.sleep(next(pauses, 0)))
    assert result.is_clean


async def test_a_database_that_is_away_is_said() -> None:
    with pytest.raises(LedgerAway):
        await audit("postgresql://nobody@127.0.0.1:1/none")


def _prefix() -> str:
    """The time's part of a UUIDv7 of now."""
    return new_id()[:13]


def _into(totals: dict[str, int]) -> Progress:
    def hear(check: str, _done: int, total: int) -> None:
        totals[check] = total

    return hear
