"""wallet_apply with many operations, many wallets, and operations that no gateway should send."""

import itertools
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from gateway.clock import new_id
from gateway.db.lanes import Outcome
from gateway.db.queries import queries
from tests.support.ledger_operations import (
    MONEY_TABLES,
    Ledger,
    Op,
    checkpoint,
    expire,
    extend,
    hold,
    id_before_now,
    settle,
    void,
)

BATCH = 512  # what a lane sends at most

ABSENT = object()
# (operation, the members that make it malformed). Each would otherwise move money that nobody can account for.
MALFORMED: list[tuple[Callable[[str], Op], dict[str, Any]]] = [
    (lambda i: hold(i, 10), {"ceiling": -1, "minimum": -1}),
    (lambda i: hold(i, 10), {"ceiling": 5, "minimum": 6}),
    (lambda i: hold(i, 10), {"minimum": ABSENT}),
    (lambda i: hold(i, 10), {"minimum": None}),
    (lambda i: hold(i, 10), {"ceiling": ABSENT}),
    (lambda i: hold(i, 10), {"ceiling": "much"}),
    (lambda i: hold(i, 10), {"ceiling": 1.5}),
    (lambda i: hold(i, 10), {"ceiling": 2**63}),
    (lambda i: hold(i, 10), {"seconds": ABSENT}),
    (lambda i: hold(i, 10), {"key": ABSENT}),
    (lambda i: hold(i, 10), {"price": ABSENT}),
    (lambda i: hold(i, 10), {"endpoint": ABSENT}),
    (lambda i: hold(i, 10), {"hold": ABSENT}),
    (lambda i: hold(i, 10), {"hold": "x"}),
    (lambda i: settle(i, 10), {"cost": -1}),
    (lambda i: settle(i, 10), {"cost": ABSENT}),
    (lambda i: settle(i, 10), {"picos": ABSENT}),
    (lambda i: settle(i, 10), {"basis": "guessed"}),
    (lambda i: settle(i, 10), {"basis": ABSENT}),
    (lambda i: settle(i, 10), {"hold": ABSENT}),
    (void, {"hold": ABSENT}),
    (void, {"key": ABSENT}),
]


async def test_operations_are_decided_in_their_order(ledger: Ledger) -> None:
    wallet, (one, two, three, four, five) = await ledger.wallet(100), (new_id() for _ in range(5))
    await ledger.apply(wallet, hold(one, 70), hold(two, 30))
    answers = await ledger.apply(
        wallet,
        hold(three, 1),  # nothing is free yet
        settle(one, 50),  # 20 come back
        hold(four, 20),
        hold(five, 1),
        settle(two, 31),  # nothing is free any more
    )
    assert [(str(a.outcome), a.amount_nanos, a.shortfall_nanos, a.available_nanos) for a in answers] == [
        ("insufficient_funds", 0, 0, 0),
        ("settled", 50, 0, 0),
        ("held", 20, 0, 20),
        ("insufficient_funds", 0, 0, 0),
        ("settled_short", 30, 1, 0),
    ]
    assert {(a.balance_nanos, a.held_nanos) for a in answers} == {(20, 20)}, "of the wallet after the batch"
    entries = await ledger.rows("ledger_entries", wallet)
    assert [(e["seq"], e["amount_nanos"], e["balance_after_nanos"]) for e in entries] == [
        (1, 100, 100),
        (2, -50, 50),
        (3, -30, 20),
    ]


async def test_a_full_batch(ledger: Ledger) -> None:
    wallet, hold_ids = await ledger.wallet(BATCH * 10), [new_id() for _ in range(BATCH)]
    answers = await ledger.apply(wallet, *[hold(hold_id, 10) for hold_id in hold_ids])
    assert [answer.available_nanos for answer in answers] == [BATCH * 10 - 10 * n for n in range(BATCH)]
    # All the operations there are, in one call, each on its own hold.
    operations = [
        (settle(i, n % 10), void(i), checkpoint(i, n % 7), expire(i), hold(i, 99), extend(i, 12, 11))[n % 6]
        for n, i in enumerate(hold_ids)
    ]
    answers = await ledger.apply(wallet, *operations)
    assert [str(a.outcome) for a in answers] == (
        ["settled", "voided", "checkpointed", "hold_not_due", "held", "extended"] * (BATCH // 6 + 1)
    )[:BATCH]
    spent = sum(n % 10 for n in range(0, BATCH, 6))
    held = sum(12 if n % 6 == 5 else 10 for n in range(BATCH) if n % 6 > 1)
    assert (answers[0].balance_nanos, answers[0].held_nanos) == (BATCH * 10 - spent, held)
    charged = [row["hold_id"] for row in await ledger.rows("ledger_entries", wallet) if row["kind"] == "charge"]
    assert charged == [i for n, i in enumerate(hold_ids) if n % 6 == 0 and n % 10], "in the order of the batch"
    await ledger.age(wallet, 120)
    answers = await ledger.apply(wallet, *[expire(hold_id) for hold_id in hold_ids])
    assert {answer.held_nanos for answer in answers} == {0}


async def test_wallets_of_one_statement_are_decided_each_alone(ledger: Ledger) -> None:
    rich, poor, unknown = sorted([await ledger.wallet(100), await ledger.wallet(0), new_id()])
    hold_id = new_id()  # the same id under two wallets is two holds
    batches = [(wallet, [hold(hold_id, 60), hold(new_id(), 60)]) for wallet in (rich, poor, unknown)]
    outcomes = [sorted(str(answer.outcome) for answer in answers) for answers in await ledger.apply_all(batches)]
    assert sorted(outcomes) == [
        ["held", "insufficient_funds"],
        ["insufficient_funds", "insufficient_funds"],
        ["wallet_unknown", "wallet_unknown"],
    ]


async def test_one_malformed_operation_fails_the_whole_statement(ledger: Ledger) -> None:
    one, two = sorted([await ledger.wallet(100), await ledger.wallet(100)])
    open_id = new_id()
    await ledger.one(two, hold(open_id, 10))
    before = await ledger.fingerprint()
    cases = [
        *MALFORMED,
        (lambda i: checkpoint(open_id, 10), {"cost": -1}),
        (lambda i: checkpoint(open_id, 1), {"seconds": ABSENT}),
        (lambda i: extend(open_id, 20), {"seconds": ABSENT}),
        (lambda i: extend(open_id, 20), {"seconds": 0}),
        (lambda i: extend(open_id, 20), {"minimum": ABSENT}),
        (lambda i: extend(open_id, 20), {"minimum": 21}),
        (lambda i: extend(open_id, 20), {"minimum": -1}),
        (lambda i: extend(open_id, 20), {"ceiling": ABSENT}),
        (lambda i: extend(open_id, 20), {"ceiling": "much"}),
    ]
    for make, members in cases:
        changed = make(new_id()) | members
        operation = {name: value for name, value in changed.items() if value is not ABSENT}
        with pytest.raises(asyncpg.PostgresError):
            await ledger.apply_all([(one, [hold(new_id(), 10)]), (two, [hold(new_id(), 10), operation])])
        assert await ledger.fingerprint() == before, operation


OPERATIONS: dict[str, Callable[[str], Op]] = {
    "hold": lambda i: hold(i, 10),
    "settle": lambda i: settle(i, 7),
    "void": void,
    "checkpoint": lambda i: checkpoint(i, 3),
    "extend": lambda i: extend(i, 15, 12),
    "expire": expire,
}


@pytest.mark.parametrize("state", ["fresh", "open", "due", "declined", "expired"])
async def test_a_hold_id_twice_in_a_call_fails_it_whole_or_harms_nothing(ledger: Ledger, state: str) -> None:
    """The lane never sends it. If it did, no hold may stay open behind its resolution, and none be charged twice."""
    refused = set()
    for first, second in itertools.product(OPERATIONS, repeat=2):
        wallet, hold_id = await ledger.wallet(0 if state == "declined" else 20), new_id()
        if state != "fresh":
            await ledger.apply(wallet, hold(hold_id, 10))
            await ledger.age(wallet, 120 if state in ("due", "expired") else 0)
        if state == "expired":
            await ledger.apply(wallet, expire(hold_id))
        before = await ledger.fingerprint()
        try:
            await ledger.apply(wallet, OPERATIONS[first](hold_id), OPERATIONS[second](hold_id))
        except asyncpg.PostgresError:
            refused.add((first, second))
            assert await ledger.fingerprint() == before
        await ledger.age(wallet, 1e-3)
        await ledger.age(wallet, -150)
        assert not await ledger.broken(), (first, second)
    writers: dict[str, tuple[str, ...]] = {"fresh": ("hold", "settle", "void"), "open": ("settle", "void", "extend")}
    writers |= {"due": (*writers["open"], "expire"), "declined": ("settle", "void"), "expired": ("settle",)}
    assert refused == set(itertools.product(writers[state], repeat=2))


async def test_an_answer_given_again_is_confirmed_by_a_write(ledger: Ledger) -> None:
    """Only a commit that wrote waits for the log, and for the standby: an answer read back proves nothing."""
    wallet, hold_id = await ledger.wallet(100), new_id()
    await ledger.apply(wallet, hold(hold_id, 10))
    refused, again = extend(hold_id, 101), extend(hold_id, 20)
    resolving = (expire(hold_id), void(hold_id), void(hold_id), settle(hold_id, 1), extend(hold_id, 30))
    for operation in (hold(hold_id, 10), refused, again, again, *resolving):
        before = await ledger.connection.fetchval("SELECT xmin FROM wallets WHERE wallet_id = $1", wallet)
        await ledger.apply(wallet, operation)
        after = await ledger.connection.fetchval("SELECT xmin FROM wallets WHERE wallet_id = $1", wallet)
        assert before != after, operation["op"]


async def test_every_look_up_is_by_a_key(ledger: Ledger) -> None:
    """Whatever the statistics say: on a fresh database every table is empty when the plan is made for good."""
    wallet, hold_ids = await ledger.wallet(10_000), [new_id() for _ in range(100)]
    async with ledger.connection.transaction():
        for make in (
            *(OPERATIONS[name] for name in ("hold", "checkpoint", "extend")),
            expire,
            OPERATIONS["settle"],
            void,
        ):
            await ledger.apply(wallet, *[make(hold_id) for hold_id in hold_ids])
        scanned = await ledger.connection.fetch(
            "SELECT relname, seq_scan, idx_scan FROM pg_stat_xact_user_tables "
            "WHERE relname = ANY($1) OR relname LIKE 'usage_events_%'",
            list(MONEY_TABLES),
        )
    assert {row["relname"] for row in scanned if row["seq_scan"]} == set()
    assert sum(row["idx_scan"] or 0 for row in scanned) > 0


async def test_the_enum_is_the_one_that_the_gateway_knows(ledger: Ledger) -> None:
    labels = await ledger.connection.fetchval("SELECT enum_range(NULL::wallet_outcome)::text[]")
    assert labels == [str(outcome) for outcome in Outcome]
    assert "lane_apply" in queries()


@pytest.mark.parametrize("ago", [{"days": 45, "minutes": 1}, {"days": 4_000}, {"days": -1, "minutes": -1}])
async def test_an_id_out_of_range_does_nothing(ledger: Ledger, ago: dict[str, float]) -> None:
    wallet, hold_id = await ledger.wallet(100), id_before_now(**ago)
    before = await ledger.fingerprint()
    for make in OPERATIONS.values():
        operation = make(hold_id)
        assert await ledger.told(wallet, operation) == ("hold_out_of_range", 0, 0)
    assert await ledger.fingerprint() == before


@pytest.mark.parametrize("ago", [{"days": 44, "hours": 23}, {"hours": -23}])
async def test_an_id_in_range_lives(ledger: Ledger, ago: dict[str, float]) -> None:
    wallet, hold_id = await ledger.wallet(100), id_before_now(**ago)
    assert await ledger.outcomes(wallet, hold(hold_id, 60)) == ["held"]
    assert await ledger.outcomes(wallet, settle(hold_id, 60)) == ["settled"]
    assert await ledger.outcomes(wallet, settle(hold_id, 60)) == ["already_settled"]


@pytest.mark.parametrize(
    ("operation", "outcome"), [(expire, "expired"), (void, "voided"), (lambda i: settle(i, 7), "settled")]
)
async def test_an_open_hold_older_than_the_range_can_be_resolved(ledger: Ledger, operation: Any, outcome: str) -> None:
    """A gateway and its journal may have been away for longer than the range."""
    wallet, hold_id, old = await ledger.wallet(100), new_id(), id_before_now(days=45, hours=1)
    await ledger.one(wallet, hold(hold_id, 60))
    await ledger.one(wallet, checkpoint(hold_id, 7))
    await ledger.connection.execute("UPDATE holds SET hold_id = $2 WHERE hold_id = $1", hold_id, old)
    await ledger.age(wallet, 45 * 86_400)
    assert await ledger.outcomes(wallet, operation(old)) == [outcome]
    assert await ledger.funds(wallet) == (100 if outcome == "voided" else 93, 0)
    assert await ledger.outcomes(wallet, operation(old)) == ["hold_out_of_range"]


async def test_an_unknown_wallet_is_said_per_operation(ledger: Ledger) -> None:
    operations = [make(new_id()) for make in OPERATIONS.values()]
    answers = await ledger.apply(new_id(), *operations)
    assert [answer.outcome for answer in answers] == [Outcome.WALLET_UNKNOWN] * 6
    assert {(answer.amount_nanos, answer.shortfall_nanos, answer.balance_nanos) for answer in answers} == {(0, 0, 0)}


@pytest.mark.parametrize("state", ["fresh", "open", "settled", "expired"])
@pytest.mark.parametrize("name", ["grow", "", "HOLD", None])
async def test_an_unknown_operation_fails_the_call(ledger: Ledger, state: str, name: str | None) -> None:
    wallet, hold_id = await ledger.wallet(100), new_id()
    if state == "open":
        await ledger.one(wallet, hold(hold_id, 10))
    elif state != "fresh":
        hold_id = await ledger.resolved(wallet, state)
    before = await ledger.fingerprint()
    with pytest.raises(asyncpg.RaiseError):
        await ledger.apply(wallet, hold(new_id(), 10), settle(hold_id, 1) | {"op": name})
    assert await ledger.fingerprint() == before
