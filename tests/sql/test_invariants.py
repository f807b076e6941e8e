"""Each invariant sees the damage that it is there for. An alarm that cannot ring is worse than none."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest

from gateway.clock import new_id
from gateway.db.queries import invariants
from tests.support.ledger_operations import Ledger, checkpoint, expire, hold, open_ledger, settle, void
from tests.support.postgres import ScratchPostgres

EVENT = "usage_events SET"
SETTLED = "WHERE resolution = 'settled' AND NOT late AND charged_nanos > 0"
UNGUARD = "ALTER TABLE wallets DROP CONSTRAINT wallet_is_never_overdrawn; "
UNCHECK = "ALTER TABLE usage_events DROP CONSTRAINT cost_is_charged_or_short; "
UNSIGN = "ALTER TABLE ledger_entries DROP CONSTRAINT charge_takes_from_the_wallet; "
UNKEY = "ALTER TABLE usage_events DROP CONSTRAINT usage_events_pkey; "
HASH = "sha256('')"
STRANGER = "'01900000-0000-7000-8000-0000000000ff'"


@dataclass(frozen=True, slots=True)
class Damage:
    """What was done to the books, and which invariants must say so: these and no others."""

    name: str
    sql: str
    seen_by: tuple[str, ...]


DAMAGES = (
    Damage(
        "a balance was raised",
        "UPDATE wallets SET balance_nanos = balance_nanos + 1 WHERE floor_nanos = 0",
        ("balance_is_the_sum_of_entries", "accounts_sum_to_zero"),
    ),
    Damage(
        "money moved from one wallet to another",
        "UPDATE wallets SET balance_nanos = balance_nanos + CASE floor_nanos WHEN 0 THEN 1 ELSE -1 END",
        ("balance_is_the_sum_of_entries",),
    ),
    Damage(
        "a hold leaked: its row went and its money stayed",
        "DELETE FROM holds WHERE state = 'open'",
        ("held_is_the_sum_of_open_holds",),
    ),
    Damage(
        "held was released twice",
        "UPDATE wallets SET held_nanos = held_nanos - 1 WHERE held_nanos > 0",
        ("held_is_the_sum_of_open_holds",),
    ),
    Damage(
        "a wallet was deleted",
        "DELETE FROM wallets WHERE floor_nanos = 5",
        ("nothing_belongs_to_no_wallet", "accounts_sum_to_zero"),
    ),
    Damage(
        "a hold was opened for nobody",
        f"UPDATE holds SET wallet_id = {STRANGER} WHERE state = 'declined'",
        ("nothing_belongs_to_no_wallet",),
    ),
    Damage(
        "more was held than there was",
        UNGUARD + "UPDATE holds SET held_nanos = held_nanos + 10000 WHERE state = 'open';"
        "UPDATE wallets SET held_nanos = held_nanos + 10000 WHERE held_nanos > 0",
        ("floor_is_respected_now",),
    ),
    Damage(
        "a charge overdrew, and a credit came after it",
        "WITH c AS (SELECT wallet_id, seq FROM ledger_entries WHERE kind = 'charge' ORDER BY wallet_id, seq LIMIT 1) "
        "UPDATE ledger_entries AS e SET balance_after_nanos = -1000 FROM c "
        "WHERE e.wallet_id = c.wallet_id AND e.seq = c.seq",
        ("charges_respect_the_floor_at_every_seq", "balance_after_is_a_chain"),
    ),
    Damage(
        "an entry was removed and the balance made to fit",
        UNGUARD + "WITH gone AS (DELETE FROM ledger_entries WHERE reason = 'a second credit' RETURNING *) "
        "UPDATE wallets AS w SET balance_nanos = w.balance_nanos - gone.amount_nanos FROM gone "
        "WHERE w.wallet_id = gone.wallet_id",
        ("floor_is_respected_now", "seq_is_dense", "balance_after_is_a_chain"),
    ),
    Damage(
        "the last seq was forgotten",
        "UPDATE wallets SET entry_seq = entry_seq - 1 WHERE floor_nanos = 5",
        ("seq_is_dense",),
    ),
    Damage(
        "two entries exchanged their amounts",
        "UPDATE ledger_entries SET amount_nanos = CASE reason WHEN 'a test' THEN 200 ELSE 1000 END "
        "WHERE kind = 'credit' AND wallet_id = (SELECT wallet_id FROM wallets WHERE floor_nanos = 0)",
        ("balance_after_is_a_chain",),
    ),
    Damage(
        "a settled hold was opened again, of nothing",
        "INSERT INTO holds SELECT wallet_id, hold_id, 'open', key_id, price_id, endpoint, 0, NULL, 60, now() "
        "FROM usage_events WHERE resolution = 'voided'",
        ("a_resolved_hold_is_not_open",),
    ),
    Damage(
        "a call was charged twice",
        UNKEY + f"INSERT INTO usage_events SELECT * FROM usage_events {SETTLED}",
        ("at_most_one_resolution_and_one_late_settle", "every_charge_has_one_usage_event"),
    ),
    Damage(
        "a late settle follows nothing that was swept",
        f"UPDATE {EVENT} late = true WHERE resolution = 'voided'",
        ("at_most_one_resolution_and_one_late_settle",),
    ),
    Damage(
        "a late settle follows a void",
        f"UPDATE {EVENT} resolution = 'settled' WHERE resolution = 'expired'",
        ("at_most_one_resolution_and_one_late_settle",),
    ),
    Damage(
        "a late settle charged all of the cost again",
        f"UPDATE {EVENT} prior_nanos = 0, shortfall_nanos = cost_nanos - charged_nanos WHERE late",
        ("a_late_settle_charges_the_rest",),
    ),
    Damage(
        "a settle left out what was never swept",
        f"UPDATE {EVENT} prior_nanos = shortfall_nanos, shortfall_nanos = 0 WHERE shortfall_nanos > 0 AND NOT late",
        ("a_late_settle_charges_the_rest",),
    ),
    Damage(
        "a charge lost its call",
        f"DELETE FROM usage_events {SETTLED}",
        ("every_charge_has_one_usage_event",),
    ),
    Damage(
        "a charge is of another amount than its call",
        f"UPDATE {EVENT} charged_nanos = charged_nanos - 1, shortfall_nanos = shortfall_nanos + 1 {SETTLED}",
        ("every_charge_has_one_usage_event", "every_charged_event_has_its_entry"),
    ),
    Damage(
        "a call says that it was charged, and nothing was",
        f"UPDATE {EVENT} charged_nanos = shortfall_nanos, shortfall_nanos = 0 "
        "WHERE shortfall_nanos > 0 AND entry_seq IS NULL",
        ("every_charged_event_has_its_entry",),
    ),
    Damage(
        "a call cost more than was charged and short",
        UNCHECK + f"UPDATE {EVENT} cost_nanos = cost_nanos + 1, cost_picos = cost_picos + 1000 {SETTLED}",
        ("cost_is_charged_prior_or_short",),
    ),
    Damage(
        "a cost was negative",
        f"UPDATE {EVENT} cost_nanos = -1, cost_picos = -1000 WHERE resolution = 'settled' AND cost_nanos = 0",
        ("cost_is_charged_prior_or_short",),
    ),
    Damage(
        "a void had a cost",
        f"UPDATE {EVENT} cost_nanos = 1, cost_picos = 1000, shortfall_nanos = 1 WHERE resolution = 'voided'",
        ("cost_is_charged_prior_or_short",),
    ),
    *(
        Damage(
            name,
            f"UPDATE {EVENT} cost_picos = {picos} {SETTLED} AND cost_nanos = 40",
            ("cost_is_rounded_half_to_even",),
        )
        for name, picos in (("rounded up", 39_499), ("rounded down", 40_501), ("a half rounded to odd", 41_500))
    ),
    Damage(
        "a seal was removed",
        f"INSERT INTO ledger_heads (head, wallets, blocks, hash) VALUES (1, ARRAY[{STRANGER}::uuid], '{{7}}', {HASH})",
        ("every_seal_is_in_one_head",),
    ),
    Damage(
        "a seal was made that no head names",
        f"INSERT INTO ledger_seals VALUES ({STRANGER}, 1, 1, 1, '\\x00000000', {HASH})",
        ("every_seal_is_in_one_head",),
    ),
    Damage(
        "a seal was made anew under a second head",
        f"INSERT INTO ledger_seals VALUES ({STRANGER}, 1, 1, 1, '\\x00000000', {HASH}); "
        "INSERT INTO ledger_heads (head, wallets, blocks, hash) "
        f"SELECT n, ARRAY[{STRANGER}::uuid], '{{1}}', {HASH} FROM generate_series(1, 2) AS n",
        ("every_seal_is_in_one_head",),
    ),
    Damage(
        "a month was dropped whose charges were more",
        f"INSERT INTO usage_dropped VALUES ('usage_events_2020_01', {STRANGER}, {STRANGER}, 1, 1)",
        ("dropped_usage_is_what_was_charged",),
    ),
    Damage("a price was deleted", "DELETE FROM prices", ("every_event_names_a_price_and_a_reason",)),
    Damage(
        "an estimate does not say why",
        f"UPDATE {EVENT} reason = NULL WHERE basis = 'estimated'",
        ("every_event_names_a_price_and_a_reason",),
    ),
    Damage(
        "a credit does not say who",
        "UPDATE ledger_entries SET actor = NULL WHERE kind = 'credit'",
        ("every_posting_is_explained",),
    ),
    Damage(
        "a credit does not say why",
        "UPDATE ledger_entries SET reason = NULL WHERE kind = 'credit'",
        ("every_posting_is_explained",),
    ),
    Damage(
        "a credit could be posted again",
        "UPDATE ledger_entries SET posting_id = NULL WHERE kind = 'credit'",
        ("every_posting_is_explained",),
    ),
    Damage(
        "a credit names a call",
        "UPDATE ledger_entries SET hold_id = posting_id WHERE kind = 'credit'",
        ("every_posting_is_explained",),
    ),
    Damage(
        "an entry moves nothing",
        "WITH w AS (UPDATE wallets SET entry_seq = entry_seq + 1 WHERE floor_nanos = 0 RETURNING *) "
        "INSERT INTO ledger_entries "
        "SELECT wallet_id, entry_seq, 'adjust', 'adjustments', 0, balance_nanos, NULL, wallet_id, 'a', 'b' FROM w",
        ("every_posting_is_explained",),
    ),
    Damage(
        "a hold was forgotten by the sweep",
        "UPDATE holds SET renewed_at = now() - interval '20002 seconds' - interval '121 seconds' WHERE state = 'open'",
        ("no_hold_outlives_twice_its_validity",),
    ),
    Damage(
        "a decline has no reason",
        "UPDATE holds SET decline = NULL WHERE state = 'declined'",
        ("a_declined_hold_holds_nothing",),
    ),
    Damage(
        "a decline holds money",
        "UPDATE holds SET held_nanos = 1 WHERE state = 'declined'",
        ("a_declined_hold_holds_nothing",),
    ),
    Damage(
        "an open hold has a decline",
        "UPDATE holds SET decline = 'insufficient_funds' WHERE state = 'open'",
        ("a_declined_hold_holds_nothing",),
    ),
    Damage(
        "a checkpoint would give money back",
        "UPDATE holds SET checkpoint_nanos = -1 WHERE state = 'open'",
        ("a_declined_hold_holds_nothing",),
    ),
)


@pytest.fixture(scope="module")
def lived_url(scratch: ScratchPostgres) -> Iterator[str]:
    """A ledger in which everything has happened: two wallets, every resolution, a decline, an open hold."""

    async def live() -> str:
        dsn = await scratch.clone("invariants_lived")
        async with open_ledger(dsn) as ledger:
            for floor in (0, 5):
                await _live(ledger, floor)
            assert not await ledger.broken()
        return dsn

    yield asyncio.run(live())
    asyncio.run(scratch.drop("invariants_lived"))


async def _live(ledger: Ledger, floor: int) -> None:
    wallet = await ledger.wallet(1_000, floor=floor)
    await ledger.post(wallet, 200)
    await ledger.connection.execute(
        "UPDATE ledger_entries SET reason = 'a second credit' WHERE wallet_id = $1 AND seq = 2", wallet
    )
    settled, free, voided, short, swept = [new_id() for _ in range(5)]
    await ledger.apply(wallet, *[hold(hold_id, 100) for hold_id in (settled, voided, short, swept)], hold(free, 0))
    await ledger.apply(wallet, settle(settled, 40), void(voided), settle(free, 0), checkpoint(swept, 30))
    await ledger.age(wallet, 120)
    await ledger.one(wallet, expire(swept))
    await ledger.one(wallet, settle(swept, 35))
    free_nanos = (await ledger.one(wallet, settle(short, 5_000))).balance_nanos + floor
    assert free_nanos == 0
    await ledger.one(wallet, settle(new_id(), 3, basis="estimated", reason="usage_missing"))
    await ledger.post(wallet, 70, kind="adjust")
    await ledger.apply(wallet, hold(new_id(), 10, seconds=10_001), hold(new_id(), 9_999, seconds=10_001))


@pytest.fixture
async def lived(lived_url: str) -> AsyncIterator[Ledger]:
    async with open_ledger(lived_url) as ledger:
        yield ledger


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name.replace(" ", "_"))
async def test_damage_is_seen(lived: Ledger, damage: Damage) -> None:
    change = lived.connection.transaction()
    await change.start()
    try:
        before = await lived.fingerprint(), await lived.connection.fetchval("SELECT count(*) FROM prices")
        await lived.connection.execute(damage.sql)
        after = await lived.fingerprint(), await lived.connection.fetchval("SELECT count(*) FROM prices")
        assert before != after, "nothing was damaged"
        assert tuple(await lived.broken()) == tuple(name for name in invariants() if name in damage.seen_by)
    finally:
        await change.rollback()


def test_every_invariant_can_fail() -> None:
    seen = {name for damage in DAMAGES for name in damage.seen_by}
    assert seen == set(invariants())


async def test_a_healthy_ledger_breaks_none(lived: Ledger) -> None:
    assert not await lived.broken()
