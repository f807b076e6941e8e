"""Seals are made behind the calls: whole blocks, old ones, one chain per wallet however many gateways seal."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from gateway.clock import new_id
from gateway.core.seal import FIRST_HASH, Entry, first_previous, head_hash, seal_block
from gateway.db.pool import Database, LedgerAway
from gateway.db.queries import queries
from gateway.db.seals import ENTRIES_PER_STEP, LEAST_ID, Limits, Step, look_again, seal_step
from tests.support.ledger_operations import Ledger, open_ledger, settle
from tests.support.postgres import ScratchPostgres

AT_ONCE = Limits(entries_max=4, age_seconds=0.0)
WHOLE_ONLY = Limits(entries_max=4, age_seconds=3_600.0)


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[Ledger]:
    async with open_ledger(database_url) as opened:
        yield opened


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = Database(database_url)
    yield opened
    await opened.close()


async def wallet_with(ledger: Ledger, entries: int) -> UUID:
    wallet = await ledger.wallet(10_000)
    for start in range(1, entries, 400):
        await ledger.apply(wallet, *(settle(new_id(), 3) for _ in range(start, min(start + 400, entries))))
    return UUID(wallet)


async def seal_all(database: Database, limits: Limits) -> list[Step]:
    """A round over all wallets."""
    steps = [await seal_step(database, LEAST_ID, limits)]
    while (after := steps[-1].after) is not None:
        steps.append(await seal_step(database, after, limits))
    return steps


async def seals(ledger: Ledger, wallet: UUID) -> list[tuple[int, int, int]]:
    rows = await ledger.connection.fetch(
        "SELECT block, first_seq, last_seq FROM ledger_seals WHERE wallet_id = $1 ORDER BY block", wallet
    )
    return [tuple(row) for row in rows]


async def test_blocks_close_when_they_are_full_or_old(database: Database, ledger: Ledger) -> None:
    full, young, empty = await wallet_with(ledger, 10), await wallet_with(ledger, 3), await wallet_with(ledger, 0)
    (first, last) = await seal_all(database, WHOLE_ONLY)
    assert (first.entries, first.head, last.seals, last.after) == (8, 1, [], None)
    assert await seals(ledger, full) == [(1, 1, 4), (2, 5, 8)]
    assert await seals(ledger, young) == []
    # Left unsealed: the young wallet's first entry, and what follows the last whole block.
    assert 0 < first.oldest_seconds < 60
    await ledger.connection.execute(
        "UPDATE ledger_entries SET created_at = created_at - interval '2 hours' WHERE seq IN (1, 9)"
    )
    (first, _) = await seal_all(database, WHOLE_ONLY)
    assert (first.entries, first.head, first.oldest_seconds) == (6, 2, 0)
    assert await seals(ledger, full) == [(1, 1, 4), (2, 5, 8), (3, 9, 10)]
    assert await seals(ledger, young) == [(1, 1, 3)]
    assert await seals(ledger, empty) == [(1, 1, 1)]
    assert not any(step.seals for step in await seal_all(database, AT_ONCE))


async def test_hashes_are_those_of_the_rule_and_follow_one_another(database: Database, ledger: Ledger) -> None:
    wallets = sorted([await wallet_with(ledger, 6), await wallet_with(ledger, 2)])
    await seal_all(database, AT_ONCE)
    previous_head, made = FIRST_HASH, []
    for wallet in wallets:
        previous = first_previous(wallet)
        for block, first, last in await seals(ledger, wallet):
            rows = await ledger.connection.fetch(queries()["seal_entries"], [wallet], [first], [last])
            seal = seal_block(block, previous, [Entry(*row.values()) for row in rows])
            row = await ledger.connection.fetchrow(
                "SELECT fingerprints, hash FROM ledger_seals WHERE wallet_id = $1 AND block = $2", wallet, block
            )
            assert row is not None
            assert tuple(row) == (seal.fingerprints, seal.hash)
            previous = seal.hash
            made.append((wallet, block, first, last, seal.hash))
    head = await ledger.connection.fetchrow("SELECT * FROM ledger_heads ORDER BY head DESC LIMIT 1")
    assert head is not None
    assert (head["head"], head["hash"]) == (1, head_hash(previous_head, made))
    assert list(zip(head["wallets"], head["blocks"], strict=True)) == [seal[:2] for seal in made]


async def test_a_step_is_bounded_and_the_next_goes_on_there(database: Database, ledger: Ledger) -> None:
    many, few = sorted([UUID(new_id()), UUID(new_id())])
    for wallet, credit in ((many, 10**9), (few, 5)):
        await ledger.connection.execute(queries()["wallet_create"], wallet, "test", 0)
        await ledger.post(str(wallet), credit)
    for _ in range(ENTRIES_PER_STEP // 512 + 1):
        await ledger.apply(str(many), *(settle(new_id(), 1) for _ in range(512)))
    steps = await seal_all(database, Limits(entries_max=1_000, age_seconds=0.0))
    assert [step.entries for step in steps] == [8_000, ENTRIES_PER_STEP + 512 + 1 - 8_000 + 1, 0]
    assert len(await seals(ledger, many)) == 9
    assert await seals(ledger, few) == [(1, 1, 1)]


async def test_gateways_at_once_make_one_chain(database_url: str, ledger: Ledger) -> None:
    wallets = [await wallet_with(ledger, 50) for _ in range(6)]
    databases = [Database(database_url) for _ in range(4)]
    for _ in range(4):
        await asyncio.gather(*(seal_step(one, LEAST_ID, AT_ONCE) for one in databases))
        await asyncio.gather(*(ledger.apply(str(wallets[0]), settle(new_id(), 1)) for _ in range(1)))
    for one in databases:
        await one.close()
    for wallet in wallets:
        rows = await seals(ledger, wallet)
        assert [block for block, _, _ in rows] == list(range(1, len(rows) + 1))
        assert [first for _, first, _ in rows] == [1, *(last + 1 for _, _, last in rows[:-1])]
    found = await look_again(databases[0], (LEAST_ID, 0), 1_000)
    assert (found.changed, found.blocks > 6 * 12) == ([], True)
    await databases[0].close()


async def test_who_finds_another_at_work_leaves_it(database_url: str, database: Database, ledger: Ledger) -> None:
    wallet = await wallet_with(ledger, 5)
    async with open_ledger(database_url) as other, other.connection.transaction():
        assert await other.connection.fetchrow(queries()["head_lock"]) is not None
        assert (await seal_step(database, LEAST_ID, AT_ONCE)).is_busy
        assert await seals(ledger, wallet) == []
    # And one that slipped in between the look and the lock costs this step, and nothing else.
    change = ledger.connection.transaction()
    await change.start()
    await ledger.connection.execute(queries()["head_add"], 1, [], [], bytes(32))
    slipped = asyncio.gather(seal_step(database, LEAST_ID, AT_ONCE))
    await asyncio.sleep(0.2)
    await change.commit()
    assert [step.is_busy for step in await slipped] == [True]
    assert await seals(ledger, wallet) == []
    await seal_all(database, AT_ONCE)
    assert await seals(ledger, wallet) == [(1, 1, 4), (2, 5, 5)]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("DELETE FROM ledger_entries WHERE wallet_id = $1 AND seq = 3", "seq 1 to 4: 3 entries"),
        ("DELETE FROM ledger_entries WHERE wallet_id = $1 AND seq = 1", "seq 1: no such entry"),
    ],
)
async def test_a_wallet_that_lacks_an_entry_is_named_and_not_sealed(
    scratch: ScratchPostgres, damage: str, said: str
) -> None:
    dsn = await scratch.clone("seals_damaged")
    database = Database(dsn)
    async with open_ledger(dsn) as ledger:
        spoilt, sound = await wallet_with(ledger, 6), await wallet_with(ledger, 2)
        await ledger.connection.execute(damage, spoilt)
        steps = await seal_all(database, AT_ONCE)
        assert steps[0].unsealable == [(spoilt, said)]
        assert await seals(ledger, spoilt) == []
        assert await seals(ledger, sound) == [(1, 1, 2)]
    await database.close()
    await scratch.drop("seals_damaged")


async def test_a_look_again_names_what_changed(scratch: ScratchPostgres) -> None:
    dsn = await scratch.clone("seals_again")
    database = Database(dsn)
    async with open_ledger(dsn) as ledger:
        first, second = sorted([await wallet_with(ledger, 10), await wallet_with(ledger, 10)])
        await seal_all(database, AT_ONCE)
        looked = await look_again(database, (LEAST_ID, 0), 4)
        assert (looked.blocks, looked.changed, looked.after) == (4, [], (second, 1))
        await ledger.connection.execute(
            "UPDATE ledger_entries SET reason = 'other' WHERE wallet_id = $1 AND seq = 1", first
        )
        await ledger.connection.execute("DELETE FROM ledger_seals WHERE wallet_id = $1 AND block = 2", second)
        looked = await look_again(database, (LEAST_ID, 0), 4)
        assert [(wallet, change.seq, change.what) for wallet, change in looked.changed] == [(first, 1, "entry")]
        looked = await look_again(database, (second, 1), 4)
        assert [(wallet, change.seq, change.what) for wallet, change in looked.changed] == [(second, 9, "block 2")]
        assert (await look_again(database, (second, 3), 4)).after is None
    await database.close()
    await scratch.drop("seals_again")


async def test_a_seal_made_by_hand_is_found(scratch: ScratchPostgres) -> None:
    dsn = await scratch.clone("seals_by_hand")
    database = Database(dsn)
    async with open_ledger(dsn) as ledger:
        wallet = await wallet_with(ledger, 6)
        by_hand = "INSERT INTO ledger_seals VALUES ($1, 2, 5, 5, '\\x00000000', $2)"
        await ledger.connection.execute(by_hand, wallet, bytes(32))
        # The last seal is that row: what follows it is sealed after it, and the look finds the gap before it.
        await seal_all(database, AT_ONCE)
        assert [block for block, _, _ in await seals(ledger, wallet)] == [2, 3]
        assert (await look_again(database, (LEAST_ID, 0), 9)).changed[0][1].seq == 5
        assert set(await ledger.broken()) == {"every_seal_is_in_one_head"}
    await database.close()
    await scratch.drop("seals_by_hand")


async def test_without_a_ledger_it_says_so() -> None:
    database = Database("postgresql://127.0.0.1:1/none")
    with pytest.raises(LedgerAway):
        await seal_step(database, LEAST_ID, AT_ONCE)
    await database.close()
