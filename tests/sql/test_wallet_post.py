"""Every outcome of wallet_post: money by hand, once per posting id."""

import asyncio

import asyncpg
import pytest

from gateway.clock import new_id
from gateway.db.lanes import Outcome
from gateway.db.queries import queries
from tests.support.ledger_operations import Ledger, hold, open_ledger, settle


async def test_a_posting_writes_one_entry_that_names_both_sides(ledger: Ledger) -> None:
    wallet, credit_id, adjust_id = await ledger.wallet(), new_id(), new_id()
    assert await ledger.post(wallet, 100, posting_id=credit_id) is Outcome.POSTED
    assert await ledger.post(wallet, -30, kind="adjust", posting_id=adjust_id) is Outcome.POSTED
    shared = {"hold_id": None, "actor": "test", "reason": "a test"}
    assert await ledger.rows("ledger_entries", wallet) == [
        {"seq": 1, "kind": "credit", "contra": "credits", "amount_nanos": 100, "balance_after_nanos": 100}
        | shared
        | {"posting_id": credit_id},
        {"seq": 2, "kind": "adjust", "contra": "adjusts", "amount_nanos": -30, "balance_after_nanos": 70}
        | shared
        | {"posting_id": adjust_id},
    ]


async def test_the_answer_has_the_wallets_funds(ledger: Ledger) -> None:
    wallet, posting_id = await ledger.wallet(100), new_id()
    await ledger.one(wallet, hold(new_id(), 60))
    for amount, expected in (
        (25, ("posted", 125, 60)),
        (25, ("already_posted", 125, 60)),
        (-999, ("already_posted", 125, 60)),
    ):
        row = await ledger.connection.fetchrow(
            queries()["wallet_post"], wallet, posting_id, "adjust", "adjustments", amount, "test", "test"
        )
        assert row is not None
        assert tuple(row) == expected
    unknown = (new_id(), new_id(), "credit", "credits", 1, "test", "test")
    row = await ledger.connection.fetchrow(queries()["wallet_post"], *unknown)
    assert row is not None
    assert tuple(row) == ("wallet_unknown", None, None)


async def test_a_posting_id_counts_per_wallet(ledger: Ledger) -> None:
    posting_id, one, two = new_id(), await ledger.wallet(), await ledger.wallet()
    assert await ledger.post(one, 5, posting_id=posting_id) is Outcome.POSTED
    assert await ledger.post(two, 5, posting_id=posting_id) is Outcome.POSTED
    assert await ledger.post(one, 5, posting_id=posting_id) is Outcome.ALREADY_POSTED


@pytest.mark.parametrize(
    ("floor", "amount", "outcome"),
    [(0, -40, "posted"), (0, -41, "insufficient_funds"), (7, -47, "posted"), (7, -48, "insufficient_funds")],
)
async def test_an_adjustment_takes_only_free_funds(ledger: Ledger, floor: int, amount: int, outcome: str) -> None:
    wallet = await ledger.wallet(100, floor=floor)
    await ledger.one(wallet, hold(held := new_id(), 60))
    assert await ledger.post(wallet, amount, kind="adjust") == outcome
    assert await ledger.funds(wallet) == (100 + (amount if outcome == "posted" else 0), 60)
    assert await ledger.outcomes(wallet, settle(held, 60)) == ["settled"]


async def test_a_suspended_wallet_takes_money(ledger: Ledger) -> None:
    wallet = await ledger.wallet()
    await ledger.connection.execute(queries()["wallet_set_status"], wallet, "suspended")
    assert await ledger.post(wallet, 5) is Outcome.POSTED


@pytest.mark.parametrize(
    ("position", "value"), [(1, None), (2, "charge"), (2, None), (3, None), (4, 0), (4, None), (5, None), (6, None)]
)
async def test_a_posting_that_nobody_could_explain_is_refused(ledger: Ledger, position: int, value: object) -> None:
    wallet = await ledger.wallet(100)
    arguments: list[object] = [wallet, new_id(), "credit", "credits", 1, "test", "test"]
    arguments[position] = value
    before = await ledger.fingerprint()
    with pytest.raises(asyncpg.RaiseError):
        await ledger.connection.execute(queries()["wallet_post"], *arguments)
    assert await ledger.fingerprint() == before


async def test_a_balance_beyond_the_ledger_is_refused(ledger: Ledger) -> None:
    wallet = await ledger.wallet(2**62)
    with pytest.raises(asyncpg.NumericValueOutOfRangeError):
        await ledger.post(wallet, 2**62)
    assert await ledger.funds(wallet) == (2**62, 0)
    assert await ledger.post(wallet, -(2**62), kind="adjust") is Outcome.POSTED


async def test_one_payment_seen_by_four_at_once_is_posted_once(shared_url: str, ledger: Ledger) -> None:
    """Whichever of webhook, return page, poller or automatic top-up sees it first."""
    wallet, posting_id = await ledger.wallet(), new_id()

    async def see() -> list[Outcome]:
        async with open_ledger(shared_url) as other:
            return [await other.post(wallet, 10, posting_id=posting_id) for _ in range(5)]

    outcomes = [outcome for seen in await asyncio.gather(*(see() for _ in range(4))) for outcome in seen]
    assert sorted(outcomes) == ["already_posted"] * 19 + ["posted"]
    assert await ledger.funds(wallet) == (10, 0)
