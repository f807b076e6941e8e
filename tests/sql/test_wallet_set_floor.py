"""A floor may be moved, never so that what was right becomes wrong: a charge is judged by the floor of its time."""

import asyncpg
import pytest

from gateway.clock import new_id
from tests.support.ledger_operations import Ledger, hold, settle


async def set_floor(ledger: Ledger, wallet: str, floor: int) -> str:
    return str(await ledger.connection.fetchval("SELECT wallet_set_floor($1, $2, 'ann', 'a test')", wallet, floor))


async def test_a_floor_that_was_lowered_does_not_accuse_older_charges(ledger: Ledger) -> None:
    wallet = await ledger.wallet(10)
    assert await set_floor(ledger, wallet, 100) == "posted"
    assert await ledger.told(wallet, settle(new_id(), 60)) == ("settled_unheld", 60, 0)
    await ledger.post(wallet, 70)
    # Twice with no entry between: the floor of the charge is the first of the two.
    assert await set_floor(ledger, wallet, 5) == "posted"
    assert await set_floor(ledger, wallet, 0) == "posted"
    assert not await ledger.broken()
    # A charge under the floor of its own time is one still.
    change = ledger.connection.transaction()
    await change.start()
    for floors, seen in (("floor_nanos = 49", True), ("floor_nanos = 50", False)):
        await ledger.connection.execute(
            f"UPDATE wallet_floors SET {floors} WHERE wallet_id = $1 AND change = 2", wallet
        )
        assert ("charges_respect_the_floor_at_every_seq" in await ledger.broken()) is seen
    await change.rollback()
    rows = await ledger.connection.fetch(
        "SELECT change, last_seq, floor_nanos, actor, reason FROM wallet_floors WHERE wallet_id = $1 ORDER BY 1", wallet
    )
    assert [tuple(row) for row in rows] == [
        (1, 1, 0, "ann", "a test"),
        (2, 3, 100, "ann", "a test"),
        (3, 3, 5, "ann", "a test"),
    ]


async def test_what_is_held_or_owed_already_cannot_lose_its_floor(ledger: Ledger) -> None:
    wallet = await ledger.wallet(10, floor=50)
    hold_id = new_id()
    assert await ledger.outcomes(wallet, hold(hold_id, 40)) == ["held"]
    assert await set_floor(ledger, wallet, 29) == "insufficient_funds"
    assert await set_floor(ledger, wallet, 30) == "posted"
    await ledger.one(wallet, settle(hold_id, 15))
    assert await set_floor(ledger, wallet, 4) == "insufficient_funds"
    assert await set_floor(ledger, wallet, 5) == "posted"
    assert await set_floor(ledger, new_id(), 5) == "wallet_unknown"
    with pytest.raises(asyncpg.CheckViolationError):
        await set_floor(ledger, await ledger.wallet(10), -1)
