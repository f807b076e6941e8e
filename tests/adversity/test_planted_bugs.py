"""The tests of the ledger are themselves tested: with a money rule taken out of the SQL, they must fail.

Each bug is a replacement of text in a function's file. A rule that is guarded twice is planted with its guards removed
as well, so that it is the campaign that must see it.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, settings

from gateway.clock import new_id
from gateway.db.queries import sql_directory
from tests.support.ledger_life import Database, live
from tests.support.ledger_operations import hold, open_ledger, settle
from tests.support.ledger_races import holds_at_once, open_track
from tests.support.postgres import ScratchPostgres

FLOOR_CHECK = "ALTER TABLE wallets DROP CONSTRAINT wallet_is_never_overdrawn"
COST_CHECK = "ALTER TABLE usage_events DROP CONSTRAINT cost_is_charged_or_short"
ONE_EVENT = "ALTER TABLE usage_events DROP CONSTRAINT usage_events_pkey"
ONE_ENTRY = "ALTER TABLE ledger_entries DROP CONSTRAINT ledger_entries_pkey"
POSTED_ONCE = "DROP INDEX ledger_entries_posted_once"
LOCK = ("WHERE wallets.wallet_id = p_wallet_id FOR UPDATE", "WHERE wallets.wallet_id = p_wallet_id")
SET_COUNT = ("IF v_rows <> cardinality(v_closed) THEN", "IF false THEN")


# The campaign of tests/properties/test_ledger_life.py, always the same lives, without looking for the shortest.
THE_SAME_LIVES = settings(
    max_examples=30,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)


@dataclass(frozen=True, slots=True)
class Bug:
    """A rule removed: pieces of text, each found exactly once in the function's file, and guards dropped."""

    name: str
    changes: tuple[tuple[str, str], ...]
    guards: tuple[str, ...] = ()
    function: str = "wallet_apply"


def bug(name: str, old: str, new: str, *guards: str, function: str = "wallet_apply") -> Bug:
    return Bug(name, ((old, new),), guards, function)


BUGS_IN_A_LIFE = (
    bug(
        "no_floor",
        "WHEN o.minimum > greatest(v_available, 0) THEN 'insufficient_funds'",
        "WHEN false THEN 'insufficient_funds'",
        FLOOR_CHECK,
    ),
    bug("whole_ceiling", "least(o.ceiling, greatest(v_available, o.minimum))", "o.ceiling", FLOOR_CHECK),
    bug(
        "settle_takes_other_holds",
        "least(v_owed, coalesce(o.hold_nanos, 0) + greatest(v_available, 0))",
        "v_owed",
        FLOOR_CHECK,
    ),
    bug(
        "sweep_takes_other_holds",
        "least(o.checkpoint_nanos, o.hold_nanos + greatest(v_available, 0))",
        "o.checkpoint_nanos",
        FLOOR_CHECK,
    ),
    bug("shortfall_forgotten", "v_short := v_owed - v_amount;", "v_short := 0;", COST_CHECK),
    bug(
        "extension_beyond_the_funds",
        "WHEN o.minimum > o.hold_nanos + greatest(v_available, 0) THEN 'insufficient_funds'",
        "WHEN false THEN 'insufficient_funds'",
        FLOOR_CHECK,
    ),
    bug("extension_whole", "least(o.ceiling, o.hold_nanos + v_available)", "o.ceiling", FLOOR_CHECK),
    bug("extension_not_held", "v_held := v_held + v_amount - o.hold_nanos;", ""),
    bug("extension_held_twice", "v_held := v_held + v_amount - o.hold_nanos;", "v_held := v_held + v_amount;"),
    bug("extension_again", "IF o.minimum > o.hold_nanos THEN", "IF o.ceiling > o.hold_nanos THEN"),
    bug("extension_lowers", "IF o.minimum > o.hold_nanos THEN", "IF true THEN"),
    bug("extension_forgotten", "valid_seconds = o.seconds, held_nanos = v_amount", "valid_seconds = o.seconds"),
    bug(
        "suspended_may_extend",
        "                WHEN w.status = 'suspended' THEN 'wallet_suspended'\n",
        "",
    ),
    bug("declined_may_extend", "o.op IN ('checkpoint', 'extend') AND", "o.op = 'checkpoint' AND"),
    bug("nothing_released", "v_held := v_held - o.hold_nanos;", ""),
    bug("nothing_charged", "v_balance := v_balance - v_amount;", ""),
    bug("checkpoint_lost", "checkpoint_nanos = o.cost,", "checkpoint_nanos = 0,"),
    bug("swept_too_soon", "ELSIF NOT o.due THEN", "ELSIF false THEN"),
    bug("late_settle_charges_all", "greatest(o.cost - coalesce(o.already_nanos, 0), 0)", "o.cost", COST_CHECK),
    bug("late_settle_refused", "(o.resolution = 'expired' AND v_late IS NULL)", "false"),
    bug("late_settle_again", "(o.resolution = 'expired' AND v_late IS NULL)", "o.resolution = 'expired'", ONE_EVENT),
    bug("settled_again", "AND (o.resolution IS NULL OR", "AND (true OR", ONE_EVENT),
    bug(
        "no_tombstone",
        "ELSIF o.op = 'void' THEN",
        "ELSIF o.op = 'void' AND o.hold_state IS NULL THEN v_outcome := 'voided'; ELSIF o.op = 'void' THEN",
    ),
    bug(
        "suspended_may_spend",
        "WHEN w.status = 'suspended' THEN 'wallet_suspended'::",
        "WHEN false THEN 'wallet_suspended'::",
    ),
    bug("decline_forgotten", "v_outcome := o.decline;", "v_outcome := 'held';"),
    bug("hold_twice", "ELSIF o.hold_state = 'open' THEN", "ELSIF false THEN"),
    bug("order_lost", "ORDER BY x.n", "ORDER BY x.n DESC"),
    bug(
        "posted_again",
        "e.wallet_id = p_wallet_id AND e.posting_id = p_posting_id",
        "false",
        POSTED_ONCE,
        function="wallet_post",
    ),
    bug(
        "adjusted_below_the_floor",
        "w.balance_nanos - w.held_nanos + w.floor_nanos + p_amount_nanos < 0",
        "false",
        FLOOR_CHECK,
        function="wallet_post",
    ),
    bug(
        "adjusted_from_holds",
        "w.balance_nanos - w.held_nanos + w.floor",
        "w.balance_nanos + w.floor",
        FLOOR_CHECK,
        function="wallet_post",
    ),
)


@pytest.fixture
def planted_url(scratch: ScratchPostgres) -> Iterator[str]:
    """A database for one bug. Its books need not balance."""
    yield asyncio.run(scratch.clone("planted"))
    asyncio.run(scratch.drop("planted"))


async def plant(dsn: str, planted: Bug) -> None:
    """Put the function with the bug in place of the real one."""
    text = (sql_directory() / "functions" / f"{planted.function}.sql").read_text(encoding="utf-8")
    for old, new in planted.changes:
        assert text.count(old) == 1, f"{planted.name}: {text.count(old)} times in {planted.function}: {old}"
        text = text.replace(old, new)
    async with open_ledger(dsn) as ledger:
        await ledger.connection.execute(text)
        for statement in planted.guards:
            await ledger.connection.execute(statement)


@pytest.mark.parametrize("planted", BUGS_IN_A_LIFE, ids=lambda planted: planted.name)
def test_a_random_life_finds(planted_url: str, planted: Bug) -> None:
    asyncio.run(plant(planted_url, planted))
    with Database(planted_url) as database, pytest.raises((AssertionError, asyncpg.PostgresError)):
        live(database, THE_SAME_LIVES)


def test_the_same_lives_find_nothing_in_the_real_functions(scratch: ScratchPostgres) -> None:
    planted_url = asyncio.run(scratch.clone("unplanted"))
    asyncio.run(plant(planted_url, Bug("none", (), (FLOOR_CHECK, COST_CHECK, ONE_EVENT, POSTED_ONCE))))
    with Database(planted_url) as database:
        live(database, THE_SAME_LIVES)
    asyncio.run(scratch.drop("unplanted"))


# The guards of charged once, one behind the other: with those before it removed, each still stops a settle that raced
# another. `stopped_by` is the error's SQLSTATE; without any, only the invariants are left to see it.
RAISED, DUPLICATE = "P0001", "23505"
RACES = (
    (Bug("lock", (LOCK,)), RAISED),
    (Bug("set_count", (LOCK, SET_COUNT)), DUPLICATE),
    (Bug("one_entry", (LOCK, SET_COUNT), (ONE_ENTRY,)), DUPLICATE),
    (Bug("one_event", (LOCK, SET_COUNT), (ONE_EVENT,)), DUPLICATE),
    (Bug("all", (LOCK, SET_COUNT), (ONE_ENTRY, ONE_EVENT)), None),
)


@pytest.fixture
async def planted_dsn(scratch: ScratchPostgres) -> AsyncIterator[str]:
    yield await scratch.clone("planted")
    await scratch.drop("planted")


@pytest.mark.parametrize(("planted", "stopped_by"), RACES, ids=lambda value: getattr(value, "name", value))
async def test_a_settle_that_races_another_is_stopped_by_the_next_guard(
    planted_dsn: str, planted: Bug, stopped_by: str | None
) -> None:
    await plant(planted_dsn, planted)
    async with open_track(planted_dsn) as track:
        wallet_id, hold_id = await track.first.wallet(10), new_id()
        await track.first.one(wallet_id, hold(hold_id, 4))
        state = None
        try:
            await track.race(wallet_id, settle(hold_id, 4), settle(hold_id, 4), is_committed=True)
        except asyncpg.PostgresError as error:
            state = error.sqlstate
        assert state == stopped_by
        broken = set(await track.watcher.broken())
        twice = {"balance_is_the_sum_of_entries", "at_most_one_resolution_and_one_late_settle", "seq_is_dense"}
        assert broken >= twice if stopped_by is None else not broken


async def test_holds_at_once_find_that_nobody_locks(planted_dsn: str) -> None:
    await plant(planted_dsn, Bug("lock", (LOCK,)))
    async with open_ledger(planted_dsn) as ledger:
        wallet_id = await ledger.wallet(50)
        held = await holds_at_once(planted_dsn, wallet_id, connections=8, count=200, nanos=1)
        assert held > 50
        assert "held_is_the_sum_of_open_holds" in await ledger.broken()


async def test_a_race_finds_that_a_posting_is_not_locked(planted_dsn: str) -> None:
    await plant(planted_dsn, Bug("lock", (LOCK,), (), "wallet_post"))
    async with open_track(planted_dsn) as track:
        wallet_id = await track.first.wallet(10)
        change = track.first.connection.transaction()
        await change.start()
        await track.first.post(wallet_id, 5)
        other = asyncio.create_task(track.second.post(wallet_id, 5))
        await track.wait_until_blocked(track.second, other)
        await change.commit()
        with pytest.raises(asyncpg.UniqueViolationError):  # two entries with one seq
            await other
