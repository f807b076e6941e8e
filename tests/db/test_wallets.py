"""Wallets by hand: opened, credited, adjusted, listed."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from gateway.clock import new_id
from gateway.db import wallets
from gateway.db.lanes import Outcome
from gateway.db.pool import Database
from tests.support.ledger_operations import checkpoint, expire, hold, id_before_now, open_ledger, settle, void

BY_HAND = {"actor": "test", "reason": "a test"}


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = Database(database_url)
    yield opened
    await opened.close()


async def test_a_wallet_is_opened_once(database: Database) -> None:
    wallet_id = new_id()
    await wallets.create(database, wallet_id, "first", floor_nanos=7)
    await wallets.create(database, wallet_id, "second")
    row = await wallets.get(database, wallet_id)
    assert row is not None
    wanted = {"name": "first", "status": "active", "balance_nanos": 0, "held_nanos": 0, "floor_nanos": 7}
    assert {name: row[name] for name in wanted} == wanted
    assert await wallets.get(database, new_id()) is None


async def test_a_wallet_and_its_first_credit_come_together_or_not_at_all(database: Database) -> None:
    async def create(wallet_id: str, posting_id: str | None) -> None:
        await wallets.create_with_credit(
            database, wallet_id, "test", posting_id or "no id", 5, floor_nanos=0, **BY_HAND
        )

    wallet_id, other = new_id(), new_id()
    await create(wallet_id, new_id())
    row = await wallets.get(database, wallet_id)
    assert row is not None
    assert row["balance_nanos"] == 5
    with pytest.raises(asyncpg.DataError):
        await create(other, None)
    assert await wallets.get(database, other) is None


async def test_money_is_posted_once_per_id(database: Database) -> None:
    wallet_id, credit_id, adjust_id = new_id(), new_id(), new_id()
    await wallets.create(database, wallet_id, "test")
    assert await wallets.credit(database, wallet_id, credit_id, 100, **BY_HAND) == (Outcome.POSTED, 100)
    assert await wallets.credit(database, wallet_id, credit_id, 100, **BY_HAND) == (Outcome.ALREADY_POSTED, 100)
    assert await wallets.adjust(database, wallet_id, adjust_id, -30, **BY_HAND) == (Outcome.POSTED, 70)
    assert await wallets.adjust(database, wallet_id, new_id(), -71, **BY_HAND) == (Outcome.INSUFFICIENT_FUNDS, 70)
    assert await wallets.credit(database, new_id(), new_id(), 1, **BY_HAND) == (Outcome.WALLET_UNKNOWN, 0)
    entry = await wallets.posting(database, wallet_id, adjust_id)
    assert entry is not None
    assert (entry["seq"], entry["kind"], entry["amount_nanos"], entry["reason"]) == (2, "adjust", -30, "a test")
    assert await wallets.posting(database, wallet_id, new_id()) is None


async def test_a_balance_has_an_upper_end(database: Database) -> None:
    wallet_id = new_id()
    await wallets.create(database, wallet_id, "test")
    await wallets.credit(database, wallet_id, new_id(), 2**62, **BY_HAND)
    with pytest.raises(wallets.BalanceOutOfRange):
        await wallets.credit(database, wallet_id, new_id(), 2**62, **BY_HAND)
    row = await wallets.get(database, wallet_id)
    assert row is not None
    assert row["balance_nanos"] == 2**62


async def test_a_wallet_is_suspended_and_reopened(database: Database) -> None:
    wallet_id = new_id()
    await wallets.create(database, wallet_id, "test")
    for status in ("suspended", "suspended", "active"):
        assert await wallets.set_status(database, wallet_id, status)
        row = await wallets.get(database, wallet_id)
        assert row is not None
        assert row["status"] == status
    assert not await wallets.set_status(database, new_id(), "suspended")
    with pytest.raises(asyncpg.DataError):
        await wallets.set_status(database, wallet_id, "closed")


async def test_wallets_and_entries_are_read_page_by_page(database: Database) -> None:
    ids = sorted(new_id() for _ in range(5))
    for wallet_id in reversed(ids):
        await wallets.create(database, wallet_id, "test")
    pages, after = [], None
    while page := [str(row["wallet_id"]) for row in await wallets.list_after(database, after, 2)]:
        pages.append(page)
        after = page[-1]
    assert pages == [ids[:2], ids[2:4], ids[4:]]
    for amount in range(1, 6):
        await wallets.credit(database, ids[0], new_id(), amount, **BY_HAND)
    assert [row["seq"] for row in await wallets.entries(database, ids[0], None, 2)] == [5, 4]
    assert [row["seq"] for row in await wallets.entries(database, ids[0], 4, 10)] == [3, 2, 1]
    assert await wallets.entries(database, ids[1], None, 10) == []


async def test_a_page_of_calls_never_parts_a_late_settle_from_what_was_swept(
    database: Database, database_url: str
) -> None:
    async with open_ledger(database_url) as ledger:
        wallet_id = await ledger.wallet(1_000)
        old, swept, new = (id_before_now(hours=hours) for hours in (3, 2, 1))
        await ledger.apply(wallet_id, hold(swept, 10), void(old), settle(new, 3))
        await ledger.one(wallet_id, checkpoint(swept, 4))
        await ledger.age(wallet_id, 120)
        await ledger.one(wallet_id, expire(swept))
        await ledger.one(wallet_id, settle(swept, 6))

    async def page(before: str | None, count: int) -> list[tuple[str, bool]]:
        return [(str(row["hold_id"]), row["late"]) for row in await wallets.usage(database, wallet_id, before, count)]

    assert await page(None, 1) == [(new, False)]
    assert await page(new, 1) == [(swept, True), (swept, False)]
    assert await page(swept, 9) == [(old, False)]
    assert await page(None, 9) == [(new, False), (swept, True), (swept, False), (old, False)]
    assert await page(old, 9) == []


async def test_a_floor_is_moved(database: Database) -> None:
    wallet_id = new_id()
    await wallets.create(database, wallet_id, "test")
    assert await wallets.set_floor(database, wallet_id, 5, actor="a", reason="b") is Outcome.POSTED
    row = await wallets.get(database, wallet_id)
    assert row is not None
    assert row["floor_nanos"] == 5
    assert await wallets.set_floor(database, new_id(), 5, actor="a", reason="b") is Outcome.WALLET_UNKNOWN
