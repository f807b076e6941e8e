"""Every outcome of wallet_apply and every rule of its header, one operation at a time."""

import pytest

from gateway.clock import new_id
from gateway.db.lanes import Outcome
from tests.support.ledger_operations import (
    ENDPOINT,
    KEY_ID,
    PRICE_ID,
    Ledger,
    checkpoint,
    expire,
    hold,
    settle,
    void,
)

EVENT = {
    "late": False,
    "resolution": "settled",
    "basis": "reported",
    "reason": None,
    "key_id": KEY_ID,
    "price_id": PRICE_ID,
    "endpoint": ENDPOINT,
    "upstream": "up0",
    "prior_nanos": 0,
    "shortfall_nanos": 0,
}


def charge(hold_id: str, *, seq: int, amount: int, balance: int) -> dict[str, object]:
    """The entry of a charge."""
    return {
        "seq": seq,
        "kind": "charge",
        "contra": "revenue",
        "amount_nanos": -amount,
        "balance_after_nanos": balance,
        "hold_id": hold_id,
        **dict.fromkeys(("posting_id", "actor", "reason")),
    }


async def test_a_hold_sets_its_ceiling_aside(ledger: Ledger) -> None:
    wallet, hold_id = await ledger.wallet(100), new_id()
    answer = await ledger.one(wallet, hold(hold_id, 60, seconds=30))
    assert answer.outcome is Outcome.HELD
    assert (answer.amount_nanos, answer.shortfall_nanos, answer.available_nanos) == (60, 0, 100)
    assert (answer.balance_nanos, answer.held_nanos) == (100, 60) == await ledger.funds(wallet)
    assert await ledger.rows("holds", wallet) == [
        {
            "hold_id": hold_id,
            "state": "open",
            "key_id": KEY_ID,
            "price_id": PRICE_ID,
            "endpoint": ENDPOINT,
            "held_nanos": 60,
            "decline": None,
            "valid_seconds": 30,
            "checkpoint_nanos": 0,
            "checkpoint_picos": 0,
            "checkpoint_usage": None,
        }
    ]
    assert await ledger.rows("usage_events", wallet) == []
    assert len(await ledger.rows("ledger_entries", wallet)) == 1, "a hold moves no money"


@pytest.mark.parametrize(
    ("balance", "floor", "ceiling", "minimum", "granted"),
    [
        (100, 0, 100, 100, 100),
        (100, 0, 101, 101, None),
        (100, 0, 250, 100, 100),
        (100, 0, 250, 80, 100),
        (100, 0, 250, 101, None),
        (100, 0, 90, 10, 90),
        (0, 0, 0, 0, 0),  # a free call needs no money
        (0, 0, 10, 0, 0),
        (0, 0, 1, 1, None),
        (0, 50, 50, 50, 50),
        (0, 50, 51, 51, None),
        (0, 50, 80, 20, 50),
        (10, 5, 15, 15, 15),
    ],
)
async def test_a_hold_is_granted_down_to_its_minimum(
    ledger: Ledger, balance: int, floor: int, ceiling: int, minimum: int, granted: int | None
) -> None:
    wallet = await ledger.wallet(balance, floor=floor)
    expected = ("insufficient_funds", 0, 0) if granted is None else ("held", granted, 0)
    assert await ledger.told(wallet, hold(new_id(), ceiling, minimum)) == expected
    assert await ledger.funds(wallet) == (balance, granted or 0)


async def test_a_decline_is_sticky(ledger: Ledger) -> None:
    wallet, hold_id = await ledger.wallet(10), new_id()
    for available in (10, 1_010):
        answer = await ledger.one(wallet, hold(hold_id, 11))
        assert (answer.outcome, answer.available_nanos) == (Outcome.INSUFFICIENT_FUNDS, available)
        await ledger.post(wallet, 1_000)
    assert [row["decline"] for row in await ledger.rows("holds", wallet)] == ["insufficient_funds"]
    assert await ledger.outcomes(wallet, checkpoint(hold_id, 1)) == ["hold_unknown"]
    assert await ledger.outcomes(wallet, hold(new_id(), 11)) == ["held"]


async def test_a_suspended_wallet_opens_no_hold_but_ends_them(ledger: Ledger) -> None:
    wallet, (one, two, three) = await ledger.wallet(30), (new_id(), new_id(), new_id())
    await ledger.apply(wallet, hold(one, 10), hold(two, 10), hold(three, 10))
    await ledger.connection.execute("UPDATE wallets SET status = 'suspended' WHERE wallet_id = $1", wallet)
    assert await ledger.told(wallet, hold(declined := new_id(), 1_000)) == ("wallet_suspended", 0, 0)
    assert await ledger.told(wallet, hold(new_id(), 0)) == ("wallet_suspended", 0, 0)
    assert await ledger.told(wallet, hold(one, 10)) == ("held", 10, 0), "it was open before"
    assert await ledger.outcomes(wallet, checkpoint(one, 5), settle(two, 7), void(three)) == [
        "checkpointed",
        "settled",
        "voided",
    ]
    await ledger.age(wallet, 120)
    assert await ledger.told(wallet, expire(one)) == ("expired", 5, 0)
    await ledger.connection.execute("UPDATE wallets SET status = 'active' WHERE wallet_id = $1", wallet)
    assert await ledger.told(wallet, hold(declined, 1)) == ("wallet_suspended", 0, 0)


async def test_a_settle_writes_one_entry_and_one_event(ledger: Ledger) -> None:
    wallet, hold_id = await ledger.wallet(100), new_id()
    await ledger.one(wallet, hold(hold_id, 60))
    answer = await ledger.one(wallet, settle(hold_id, 42))
    assert answer.outcome is Outcome.SETTLED
    assert (answer.amount_nanos, answer.shortfall_nanos, answer.available_nanos) == (42, 0, 40)
    assert (answer.balance_nanos, answer.held_nanos) == (58, 0) == await ledger.funds(wallet)
    assert await ledger.rows("holds", wallet) == []
    assert (await ledger.rows("ledger_entries", wallet))[1:] == [charge(hold_id, seq=2, amount=42, balance=58)]
    assert await ledger.rows("usage_events", wallet) == [
        EVENT
        | {
            "hold_id": hold_id,
            "usage": '{"input": 42}',
            "held_nanos": 60,
            "cost_picos": 42_000,
            "cost_nanos": 42,
            "charged_nanos": 42,
            "entry_seq": 2,
        }
    ]


async def test_a_free_call_leaves_an_event_and_no_entry(ledger: Ledger) -> None:
    wallet, hold_id = await ledger.wallet(), new_id()
    await ledger.one(wallet, hold(hold_id, 0))
    assert await ledger.told(wallet, settle(hold_id, 0)) == ("settled", 0, 0)
    [event] = await ledger.rows("usage_events", wallet)
    assert (event["charged_nanos"], event["entry_seq"]) == (0, None)
    assert await ledger.rows("ledger_entries", wallet) == []


async def test_a_void_releases_and_charges_nothing(ledger: Ledger) -> None:
    wallet, hold_id = await ledger.wallet(100), new_id()
    await ledger.one(wallet, hold(hold_id, 60))
    assert await ledger.told(wallet, void(hold_id)) == ("voided", 0, 0)
    assert await ledger.funds(wallet) == (100, 0)
    zeros = dict.fromkeys(("cost_picos", "cost_nanos", "charged_nanos"), 0)
    assert await ledger.rows("usage_events", wallet) == [
        EVENT
        | {"hold_id": hold_id, "resolution": "voided", "basis": "none", "reason": "upstream_refused", "upstream": None}
        | {"usage": None, "held_nanos": 60, "entry_seq": None, **zeros}
    ]
    assert len(await ledger.rows("ledger_entries", wallet)) == 1


@pytest.mark.parametrize(
    ("cost", "expected", "balance"),
    [
        (60, ("settled", 60, 0), 40),
        (80, ("settled", 80, 0), 20),  # above its hold, from free funds
        (81, ("settled_short", 80, 1), 20),
        (1_000, ("settled_short", 80, 920), 20),
    ],
)
async def test_a_settle_above_its_hold_takes_only_free_funds(
    ledger: Ledger, cost: int, expected: tuple[str, int, int], balance: int
) -> None:
    wallet, mine, other = await ledger.wallet(100), new_id(), new_id()
    await ledger.apply(wallet, hold(mine, 60), hold(other, 20))
    assert await ledger.told(wallet, settle(mine, cost)) == expected
    assert await ledger.funds(wallet) == (balance, 20), "another hold's money is never taken"
    [event] = await ledger.rows("usage_events", wallet)
    assert (event["cost_nanos"], event["charged_nanos"], event["shortfall_nanos"]) == (cost, *expected[1:])
    assert await ledger.told(wallet, settle(other, 20)) == ("settled", 20, 0)


@pytest.mark.parametrize(
    ("resolution", "again", "amount"),
    [("settled", "already_settled", 20), ("voided", "already_voided", 0), ("expired", "already_expired", 12)],
)
async def test_a_resolved_hold_answers_what_it_was(ledger: Ledger, resolution: str, again: str, amount: int) -> None:
    wallet = await ledger.wallet(100)
    hold_id = await ledger.resolved(wallet, resolution)
    before = await ledger.fingerprint()
    assert await ledger.told(wallet, hold(hold_id, 60)) == (again, 0, 0)
    operations = [void(hold_id), checkpoint(hold_id, 50), expire(hold_id)]
    operations += [settle(hold_id, 50)] if resolution != "expired" else []
    for operation in operations:
        assert await ledger.told(wallet, operation) == (again, amount, 0), operation["op"]
    assert await ledger.fingerprint() == before


async def test_a_late_settle_charges_the_difference_once(ledger: Ledger) -> None:
    wallet = await ledger.wallet(100)
    hold_id = await ledger.resolved(wallet, "late")
    before = await ledger.fingerprint()
    assert await ledger.funds(wallet) == (80, 0)
    late = (await ledger.rows("usage_events", wallet))[1]
    wanted = {"late": True, "resolution": "settled", "held_nanos": 0, "cost_nanos": 20, "prior_nanos": 12}
    assert {name: late[name] for name in wanted} == wanted
    assert (late["charged_nanos"], late["shortfall_nanos"], late["entry_seq"]) == (8, 0, 3)
    # Asked again, it answers with both charges; the rest of its life is the sweep's.
    assert await ledger.told(wallet, settle(hold_id, 500)) == ("already_settled", 20, 0)
    for operation in (void(hold_id), expire(hold_id), checkpoint(hold_id, 1)):
        assert await ledger.told(wallet, operation) == ("already_expired", 12, 0)
    assert await ledger.told(wallet, hold(hold_id, 1)) == ("already_expired", 0, 0)
    assert await ledger.fingerprint() == before


@pytest.mark.parametrize(
    ("cost", "free", "expected"),
    [
        (12, 40, ("settled_late", 0, 0)),
        (5, 40, ("settled_late", 0, 0)),  # the sweep charged more than it turned out to be: nothing is given back
        (52, 40, ("settled_late", 40, 0)),
        (53, 40, ("settled_late", 40, 1)),
        (53, 0, ("settled_late", 0, 41)),
    ],
)
async def test_a_late_settle_takes_only_free_funds(
    ledger: Ledger, cost: int, free: int, expected: tuple[str, int, int]
) -> None:
    wallet = await ledger.wallet(100)
    hold_id = await ledger.resolved(wallet, "expired")
    await ledger.one(wallet, hold(new_id(), 88 - free))
    assert await ledger.told(wallet, settle(hold_id, cost)) == expected
    assert await ledger.funds(wallet) == (88 - expected[1], 88 - free)


async def test_a_void_of_an_unknown_id_is_a_tombstone(ledger: Ledger) -> None:
    wallet, hold_id = await ledger.wallet(100), new_id()
    assert await ledger.told(wallet, void(hold_id)) == ("voided", 0, 0)
    assert await ledger.told(wallet, hold(hold_id, 60)) == ("already_voided", 0, 0)
    assert await ledger.told(wallet, settle(hold_id, 60)) == ("already_voided", 0, 0)
    assert await ledger.funds(wallet) == (100, 0)


@pytest.mark.parametrize(("cost", "charged"), [(40, 40), (41, 40), (0, 0)])
@pytest.mark.parametrize("was_declined", [False, True])
async def test_a_settle_without_a_hold_takes_only_free_funds(
    ledger: Ledger, cost: int, charged: int, was_declined: bool
) -> None:
    wallet, hold_id = await ledger.wallet(100), new_id()
    await ledger.one(wallet, hold(new_id(), 60))
    if was_declined:
        assert await ledger.outcomes(wallet, hold(hold_id, 41)) == ["insufficient_funds"]
    assert await ledger.told(wallet, settle(hold_id, cost)) == ("settled_unheld", charged, cost - charged)
    assert await ledger.funds(wallet) == (100 - charged, 60)
    assert [row["state"] for row in await ledger.rows("holds", wallet)] == ["open"]
    assert await ledger.told(wallet, hold(hold_id, 1)) == ("already_settled", 0, 0)


async def test_a_void_of_a_declined_hold_clears_it(ledger: Ledger) -> None:
    wallet, hold_id = await ledger.wallet(), new_id()
    assert await ledger.outcomes(wallet, hold(hold_id, 1)) == ["insufficient_funds"]
    assert await ledger.outcomes(wallet, void(hold_id)) == ["voided"]
    assert await ledger.rows("holds", wallet) == []
    assert await ledger.outcomes(wallet, hold(hold_id, 0)) == ["already_voided"]


@pytest.mark.parametrize(
    ("age", "outcome"), [(0, "hold_not_due"), (119.999, "hold_not_due"), (120, "expired"), (9_999, "expired")]
)
@pytest.mark.parametrize("is_declined", [False, True])
async def test_a_hold_expires_at_twice_its_validity(
    ledger: Ledger, age: float, outcome: str, is_declined: bool
) -> None:
    wallet, hold_id = await ledger.wallet(), new_id()
    async with ledger.connection.transaction():  # one instant: now() stands still
        await ledger.one(wallet, hold(hold_id, 1 if is_declined else 0))
        await ledger.age(wallet, age)
        assert await ledger.told(wallet, expire(hold_id)) == (outcome, 0, 0)
    states = [row["state"] for row in await ledger.rows("holds", wallet)]
    assert states == ([] if outcome == "expired" else ["declined" if is_declined else "open"])
    # A decline was never a call: it leaves no event, and its id is free again.
    events = [row["resolution"] for row in await ledger.rows("usage_events", wallet)]
    assert events == (["expired"] if outcome == "expired" and not is_declined else [])


async def test_a_checkpoint_renews_and_the_sweep_charges_it(ledger: Ledger) -> None:
    wallet, hold_id = await ledger.wallet(100), new_id()
    await ledger.one(wallet, hold(hold_id, 60, seconds=60))
    await ledger.age(wallet, 119)
    for cost in (10, 25):
        assert await ledger.told(wallet, checkpoint(hold_id, cost, seconds=30)) == ("checkpointed", 0, 0)
    assert await ledger.funds(wallet) == (100, 60)
    assert await ledger.outcomes(wallet, expire(hold_id)) == ["hold_not_due"]
    await ledger.age(wallet, 60)
    answer = await ledger.one(wallet, expire(hold_id))
    assert (answer.outcome, answer.amount_nanos, answer.balance_nanos) == (Outcome.EXPIRED, 25, 75)
    assert await ledger.rows("usage_events", wallet) == [
        EVENT
        | {"hold_id": hold_id, "resolution": "expired", "basis": "estimated", "reason": "swept", "upstream": None}
        | {"usage": '{"input": 25}', "held_nanos": 60, "cost_picos": 25_000, "cost_nanos": 25}
        | {"charged_nanos": 25, "entry_seq": 2}
    ]
    assert (await ledger.rows("ledger_entries", wallet))[1:] == [charge(hold_id, seq=2, amount=25, balance=75)]


async def test_the_sweep_takes_only_free_funds_and_the_late_settle_the_rest(ledger: Ledger) -> None:
    wallet, hold_id, other = await ledger.wallet(100), new_id(), new_id()
    await ledger.apply(wallet, hold(hold_id, 60), hold(other, 30, seconds=9_999))
    await ledger.one(wallet, checkpoint(hold_id, 90))
    await ledger.age(wallet, 120)
    assert await ledger.told(wallet, expire(hold_id)) == ("expired", 70, 20)
    assert await ledger.funds(wallet) == (30, 30)
    await ledger.post(wallet, 25)
    assert await ledger.told(wallet, settle(hold_id, 90)) == ("settled_late", 20, 0)
    assert await ledger.funds(wallet) == (35, 30)
