"""Extensions: a hold grows towards a total, by free funds only, and never shrinks."""

import pytest

from gateway.clock import new_id
from gateway.db.lanes import Outcome
from tests.support.ledger_operations import Ledger, checkpoint, expire, extend, hold, settle, void


async def suspend(ledger: Ledger, wallet: str) -> None:
    await ledger.connection.execute("UPDATE wallets SET status = 'suspended' WHERE wallet_id = $1", wallet)


@pytest.mark.parametrize(
    ("balance", "floor", "others", "ceiling", "minimum", "outcome", "held"),
    [
        (100, 0, 0, 60, 41, "extended", 60),
        (100, 0, 0, 100, 41, "extended", 100),
        (100, 0, 0, 101, 101, "insufficient_funds", 40),
        (100, 0, 0, 150, 100, "extended", 100),  # in part: what there is
        (100, 0, 0, 150, 101, "insufficient_funds", 40),
        (100, 0, 30, 90, 41, "extended", 70),  # another hold's money is never taken
        (100, 0, 60, 90, 41, "insufficient_funds", 40),
        (100, 25, 60, 90, 41, "extended", 65),  # a floor is credit
        (100, 0, 0, 40, 40, "extended", 40),  # it has that already
        (100, 0, 0, 39, 0, "extended", 40),  # never lowered
        (100, 0, 60, 90, 40, "extended", 40),  # nor grown past a minimum that it has
    ],
)
async def test_a_hold_of_40_is_extended_down_to_the_minimum(
    ledger: Ledger, balance: int, floor: int, others: int, ceiling: int, minimum: int, outcome: str, held: int
) -> None:
    wallet, hold_id = await ledger.wallet(balance, floor=floor), new_id()
    await ledger.apply(wallet, hold(hold_id, 40), hold(new_id(), others))
    before = await ledger.rows("holds", wallet)
    answer = await ledger.one(wallet, extend(hold_id, ceiling, minimum, seconds=90))
    assert (str(answer.outcome), answer.amount_nanos, answer.shortfall_nanos) == (outcome, held, 0)
    assert answer.available_nanos == balance + floor - 40 - others, "before it"
    assert (answer.balance_nanos, answer.held_nanos) == (balance, held + others) == await ledger.funds(wallet)
    changed = {"held_nanos": held, "valid_seconds": 90 if outcome == "extended" else 60}
    expected = [row | changed if row["hold_id"] == hold_id else row for row in before]
    assert await ledger.rows("holds", wallet) == expected
    assert len(await ledger.rows("ledger_entries", wallet)) == 1, "an extension moves no money"


async def test_an_extension_asked_again_changes_nothing(ledger: Ledger) -> None:
    """Its target is a total. What was granted in part stays so, whatever money has come since."""
    wallet, hold_id = await ledger.wallet(100), new_id()
    await ledger.one(wallet, hold(hold_id, 40))
    for balance in (100, 1_100, 2_100):
        assert await ledger.told(wallet, extend(hold_id, 150, 60)) == ("extended", 100, 0)
        assert await ledger.funds(wallet) == (balance, 100)
        await ledger.post(wallet, 1_000)
    await suspend(ledger, wallet)
    assert await ledger.told(wallet, extend(hold_id, 150, 60)) == ("extended", 100, 0), "it was granted before"
    assert await ledger.told(wallet, extend(hold_id, 150, 101)) == ("wallet_suspended", 100, 0)


async def test_a_refusal_is_not_sticky(ledger: Ledger) -> None:
    wallet, hold_id, other = await ledger.wallet(100), new_id(), new_id()
    await ledger.apply(wallet, hold(hold_id, 40), hold(other, 60))
    assert await ledger.told(wallet, extend(hold_id, 80, 41)) == ("insufficient_funds", 40, 0)
    await suspend(ledger, wallet)
    assert await ledger.told(wallet, extend(hold_id, 80, 41)) == ("wallet_suspended", 40, 0), "comes before the funds"
    await ledger.connection.execute("UPDATE wallets SET status = 'active' WHERE wallet_id = $1", wallet)
    await ledger.one(wallet, void(other))
    assert await ledger.told(wallet, extend(hold_id, 80, 41)) == ("extended", 80, 0)
    assert await ledger.told(wallet, settle(hold_id, 75)) == ("settled", 75, 0)
    events = {event["hold_id"]: event["held_nanos"] for event in await ledger.rows("usage_events", wallet)}
    assert events == {other: 60, hold_id: 80}


@pytest.mark.parametrize(
    ("resolution", "outcome", "amount"),
    [
        ("settled", "already_settled", 20),
        ("voided", "already_voided", 0),
        ("expired", "already_expired", 12),
        ("late", "already_expired", 12),
    ],
)
async def test_a_resolved_hold_grows_no_more(ledger: Ledger, resolution: str, outcome: str, amount: int) -> None:
    wallet = await ledger.wallet(1_000)
    hold_id = await ledger.resolved(wallet, resolution)
    before = await ledger.fingerprint()
    assert await ledger.told(wallet, extend(hold_id, 90)) == (outcome, amount, 0)
    assert await ledger.fingerprint() == before


async def test_what_is_no_open_hold_is_unknown(ledger: Ledger) -> None:
    wallet, declined = await ledger.wallet(10), new_id()
    await ledger.one(wallet, hold(declined, 11))
    before = await ledger.fingerprint()
    for hold_id in (declined, new_id()):
        assert await ledger.told(wallet, extend(hold_id, 5)) == ("hold_unknown", 0, 0)
    assert await ledger.fingerprint() == before


async def test_a_swept_hold_releases_all_that_it_grew_by(ledger: Ledger) -> None:
    wallet, hold_id = await ledger.wallet(100), new_id()
    await ledger.one(wallet, hold(hold_id, 40, seconds=60))
    await ledger.one(wallet, checkpoint(hold_id, 15))
    await ledger.age(wallet, 119)
    assert await ledger.told(wallet, extend(hold_id, 90, 41)) == ("extended", 90, 0)
    assert await ledger.outcomes(wallet, expire(hold_id)) == ["hold_not_due"], "an extension renews"
    await ledger.age(wallet, 120)
    assert await ledger.told(wallet, expire(hold_id)) == ("expired", 15, 0), "the checkpoint outlives the extension"
    assert await ledger.funds(wallet) == (85, 0)
    assert await ledger.told(wallet, settle(hold_id, 70)) == ("settled_late", 55, 0)


async def test_extensions_are_decided_in_the_order_of_the_batch(ledger: Ledger) -> None:
    wallet, (one, two, three) = await ledger.wallet(100), (new_id(), new_id(), new_id())
    await ledger.apply(wallet, hold(one, 10), hold(two, 10), hold(three, 60))
    # 20 are free: the first takes 15, the second what is left, the third nothing until a void frees 60.
    answers = await ledger.apply(wallet, extend(one, 25, 11), extend(two, 40, 11), hold(new_id(), 1), void(three))
    assert [(str(answer.outcome), answer.amount_nanos, answer.available_nanos) for answer in answers] == [
        ("extended", 25, 20),
        ("extended", 15, 5),
        ("insufficient_funds", 0, 0),
        ("voided", 0, 0),
    ]
    assert await ledger.funds(wallet) == (100, 40)
    answer = await ledger.one(wallet, extend(two, 40, 11))
    assert (answer.outcome, answer.amount_nanos) == (Outcome.EXTENDED, 15), "its minimum was granted"
