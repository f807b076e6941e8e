"""Every single change of a sealed ledger is found, counted and named: the wallet, the seq, what was expected.

FAREBOX_AUDIT_ENTRIES=5000000 makes a ledger of that size for the measurement (minutes, and 3 GB of disk).
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import pytest

from gateway.clock import new_id
from gateway.core.audit import Finding
from gateway.core.seal import parse_head
from gateway.db.audit import COSTS_CHECK, Audit, audit
from gateway.db.audit_chain import ENTRIES_CHECK, HEADS_CHECK, KEPT_CHECK
from gateway.db.pool import Database
from gateway.db.queries import queries
from gateway.db.seals import LEAST_ID, Limits, seal_step
from tests.support.big_ledger import make_big_ledger
from tests.support.measured import Measured, run_measured
from tests.support.postgres import ScratchPostgres

ENTRIES = int(os.environ.get("FAREBOX_AUDIT_ENTRIES", "20000"))
WALLETS = 20 if ENTRIES < 1_000_000 else 500
BLOCK = 256
BYTES_MAX = 200 * 2**20
SEQ = 300  # in the second block of a wallet
ONE_HEAD = "every_seal_is_in_one_head"
TABLES = ("ledger_entries", "ledger_seals", "usage_events")
CHARGE, CHARGED = "every_charge_has_one_usage_event", "every_charged_event_has_its_entry"
SUMS = ("balance_is_the_sum_of_entries", "accounts_sum_to_zero")


async def seal_all(dsn: str) -> None:
    database, after = Database(dsn), LEAST_ID
    while (step := await seal_step(database, after, Limits(BLOCK, 0.0))).after is not None:
        after = step.after
    await database.close()


async def make_sealed(scratch: ScratchPostgres, name: str, wallets: int, entries: int) -> str:
    """A ledger with `entries` in each wallet, all sealed; its DSN."""
    dsn = await scratch.clone(name)
    connection = await asyncpg.connect(dsn)
    await make_big_ledger(connection, wallets=wallets, entries=entries)
    await connection.close()
    await seal_all(dsn)
    return dsn


@pytest.fixture(scope="module")
def small_dsn(scratch: ScratchPostgres) -> Iterator[str]:
    """Two wallets with two blocks and a bit each; what a test changes it puts back."""
    yield asyncio.run(make_sealed(scratch, "audit_small", 2, 2 * BLOCK + 88))
    asyncio.run(scratch.drop("audit_small"))


@pytest.fixture
def big_dsn(scratch: ScratchPostgres) -> Iterator[str]:
    yield asyncio.run(make_sealed(scratch, "audit_big", WALLETS, ENTRIES // WALLETS))
    asyncio.run(scratch.drop("audit_big"))


@pytest.fixture
async def own_dsn(scratch: ScratchPostgres) -> AsyncIterator[str]:
    yield await make_sealed(scratch, "audit_own", 2, BLOCK + 10)
    await scratch.drop("audit_own")


@dataclass(frozen=True, slots=True)
class Spoiled:
    """A change of the ledger: $1 is a wallet, its entry SEQ is a charge, $2 is its hold. And who must see it."""

    name: str
    sql: str
    seen_by: tuple[str, ...]
    seq: int = SEQ
    what: str = "entry"


ENTRY = "UPDATE ledger_entries SET {} WHERE wallet_id = $1 AND hold_id = $2"
EVENT = "UPDATE usage_events SET {} WHERE wallet_id = $1 AND hold_id = $2"
SEAL = "{} WHERE wallet_id = $1 AND block = 2 AND $2::uuid IS NOT NULL"
CHANGES = (
    Spoiled(
        "an amount",
        ENTRY.format("amount_nanos = amount_nanos - 1"),
        (*SUMS, "balance_after_is_a_chain", CHARGE, CHARGED, ENTRIES_CHECK),
    ),
    Spoiled(
        "a balance after",
        ENTRY.format("balance_after_nanos = balance_after_nanos + 1"),
        ("balance_after_is_a_chain", ENTRIES_CHECK),
    ),
    Spoiled("a contra account", ENTRY.format("contra = 'other'"), (ENTRIES_CHECK,)),
    Spoiled("an actor", ENTRY.format("actor = 'somebody'"), (ENTRIES_CHECK,)),
    Spoiled("a reason", ENTRY.format("reason = 'an error'"), (ENTRIES_CHECK,)),
    Spoiled("a time", ENTRY.format("created_at = created_at - interval '1 microsecond'"), (ENTRIES_CHECK,)),
    Spoiled("a hold", ENTRY.format("hold_id = gen_random_uuid()"), (CHARGE, CHARGED, ENTRIES_CHECK)),
    Spoiled(
        "a kind",
        ENTRY.format("kind = 'adjust', posting_id = hold_id, actor = 'a', reason = 'b', hold_id = NULL"),
        (CHARGED, ENTRIES_CHECK),
    ),
    Spoiled(
        "an entry removed",
        "DELETE FROM ledger_entries WHERE wallet_id = $1 AND hold_id = $2",
        (*SUMS, "seq_is_dense", "balance_after_is_a_chain", CHARGED, ENTRIES_CHECK),
    ),
    Spoiled(
        "two entries that changed places",
        "UPDATE ledger_entries AS e SET seq = CASE e.seq WHEN o.seq THEN 100000301 ELSE 100000300 END "
        "FROM ledger_entries AS o WHERE e.wallet_id = $1 AND o.wallet_id = $1 AND o.hold_id = $2 "
        "AND e.seq IN (o.seq, o.seq + 1); "
        "UPDATE ledger_entries SET seq = seq - 100000000 WHERE wallet_id = $1 AND seq > 100000000",
        ("balance_after_is_a_chain", CHARGE, CHARGED, ENTRIES_CHECK),
    ),
    Spoiled("a seal removed", SEAL.format("DELETE FROM ledger_seals"), (ONE_HEAD, ENTRIES_CHECK, HEADS_CHECK), 257,
            "the chain"),
    Spoiled("a seal's hash", SEAL.format("UPDATE ledger_seals SET hash = sha256(hash)"), (ENTRIES_CHECK, HEADS_CHECK),
            257, "hash of block 2"),
    Spoiled(
        "a seal's fingerprints",
        SEAL.format("UPDATE ledger_seals SET fingerprints = set_byte(fingerprints, 0, 1)"),
        (ENTRIES_CHECK,),
        257,
        "fingerprints of block 2",
    ),
    Spoiled("the tokens of a call", EVENT.format("usage = usage || '{\"output\": 999}'"), (COSTS_CHECK,), 0),
    Spoiled(
        "the cost of a call",
        EVENT.format("cost_nanos = cost_nanos - 1, charged_nanos = charged_nanos - 1"),
        (CHARGE, CHARGED, "cost_is_rounded_half_to_even", COSTS_CHECK),
        0,
    ),
    Spoiled("the exact cost of a call", EVENT.format("cost_picos = cost_picos + 1"), (COSTS_CHECK,), 0),
    Spoiled(
        "the price of a call", EVENT.format("price_id = 2"), ("every_event_names_a_price_and_a_reason", COSTS_CHECK), 0
    ),
)  # fmt: skip


@asynccontextmanager
async def spoiled(dsn: str, change: Spoiled, wallet: UUID) -> AsyncIterator[None]:
    """The ledger with one thing changed; afterwards every row of the wallet is as it was."""
    connection = await asyncpg.connect(dsn)
    for table in TABLES:
        await connection.execute(
            f"CREATE TEMP TABLE kept_{table} AS SELECT * FROM {table} WHERE wallet_id = '{wallet}'"
        )
    at = "SELECT hold_id FROM ledger_entries WHERE wallet_id = $1 AND seq = $2"
    hold = await connection.fetchval(at, wallet, SEQ)
    for statement in change.sql.split("; "):
        arguments = (wallet, hold)[: 1 + ("$2" in statement)]
        assert not (await connection.execute(statement, *arguments)).endswith(" 0"), "nothing was changed"
    yield
    for table in TABLES:
        await connection.execute(f"DELETE FROM {table} WHERE wallet_id = $1", wallet)
        await connection.execute(f"INSERT INTO {table} SELECT * FROM kept_{table}")
    await connection.close()


def failing(result: Audit) -> dict[str, Finding]:
    return {finding.check: finding for finding in result.findings if finding.differences}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name.replace(" ", "_"))
async def test_a_single_change_is_found_and_named(small_dsn: str, change: Spoiled) -> None:
    wallet = UUID("01900000-0000-7000-8000-000000000002")
    async with spoiled(small_dsn, change, wallet):
        found = failing(await audit(small_dsn))
    assert set(found) == set(change.seen_by)
    for finding in found.values():
        assert finding.first is not None
        assert finding.first.wallet_id in (str(wallet), "")
    if ENTRIES_CHECK in found:
        first = found[ENTRIES_CHECK].first
        assert first is not None
        assert (first.seq, first.what) == (change.seq, change.what)
        assert first.expected != first.found
        # A damaged seal is a difference to its own entries, and to what follows it.
        assert found[ENTRIES_CHECK].differences <= (1 if change.what == "entry" else 2)
    assert (await audit(small_dsn)).is_clean


async def test_a_ledger_made_anew_to_fit_is_shown_by_a_head_that_was_kept(own_dsn: str) -> None:
    kept = parse_head((await audit(own_dsn)).head)
    connection = await asyncpg.connect(own_dsn)
    wallet = await connection.fetchval("SELECT wallet_id FROM wallets LIMIT 1")
    await connection.execute(queries()["wallet_post"], wallet, new_id(), "credit", "credits", 5, "a", "b")
    await seal_all(own_dsn)
    result = await audit(own_dsn, kept=kept)
    assert result.is_clean
    assert [finding.check for finding in result.findings][-2:] == [KEPT_CHECK, COSTS_CHECK]
    assert parse_head(result.head)[0] == kept[0] + 1
    assert result.sealed == result.entries == 2 * (BLOCK + 10) + 1
    # One seal taken away and made anew over the same entries: every hash is the same, but two heads name it.
    await connection.execute("DELETE FROM ledger_seals WHERE wallet_id = $1 AND block = 3", wallet)
    await seal_all(own_dsn)
    assert set(failing(await audit(own_dsn, kept=kept))) == {ONE_HEAD}
    # Everything made anew over a changed entry: the ledger agrees with itself, and not with the head of then.
    await connection.execute("UPDATE ledger_entries SET reason = 'other' WHERE wallet_id = $1 AND seq = 1", wallet)
    await connection.execute("DELETE FROM ledger_seals")
    await connection.execute("DELETE FROM ledger_heads WHERE head > 0")
    await connection.close()
    await seal_all(own_dsn)
    assert (await audit(own_dsn)).is_clean
    finding = failing(await audit(own_dsn, kept=kept))[KEPT_CHECK]
    assert finding.first is not None
    assert (finding.first.what, finding.first.expected) == (f"head {kept[0]}", kept[1].hex())
    missing = failing(await audit(own_dsn, kept=(99, kept[1])))[KEPT_CHECK]
    assert missing.first is not None
    assert missing.first.found == "no such head"


HEADS = {
    "DELETE FROM ledger_heads WHERE head = 1": {HEADS_CHECK, ONE_HEAD},
    "UPDATE ledger_heads SET hash = sha256(hash) WHERE head = 1": {HEADS_CHECK},
    "UPDATE ledger_heads SET hash = sha256(hash) WHERE head = 0": {HEADS_CHECK},
    "UPDATE ledger_heads SET wallets = '{}', blocks = '{}' WHERE head = 2": {HEADS_CHECK, ONE_HEAD},
}


@pytest.mark.parametrize("statement", HEADS)
async def test_a_change_of_a_head_is_found(own_dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(own_dsn)
    wallet = await connection.fetchval("SELECT wallet_id FROM wallets LIMIT 1")
    await connection.execute(queries()["wallet_post"], wallet, new_id(), "credit", "credits", 5, "a", "b")
    await seal_all(own_dsn)
    await connection.execute(statement)
    await connection.close()
    assert set(failing(await audit(own_dsn))) == HEADS[statement]


def run_audit(dsn: str) -> tuple[dict[str, Any], Measured]:
    """What `farebox audit --json` says, and what it took."""
    done = run_measured(dsn, "audit", "--json")
    document = orjson.loads(done.out)
    assert done.exit_code == (0 if document["ok"] else 1)
    return document, done


def test_a_large_ledger_is_read_in_little_memory_and_one_changed_row_is_named(big_dsn: str) -> None:
    document, done = run_audit(big_dsn)
    print(f"audit of {ENTRIES} entries: {done.seconds:.1f} s, {done.rss_bytes / 2**20:.0f} MiB")
    assert document["ok"] is True
    assert document["entries"] == document["sealed_entries"] == ENTRIES
    assert done.rss_bytes < BYTES_MAX
    wallet = f"01900000-0000-7000-8000-{WALLETS * 2 // 3:012x}"
    change = "UPDATE ledger_entries SET contra = 'other' WHERE wallet_id = $1 AND seq = 777"

    async def change_it() -> None:
        connection = await asyncpg.connect(big_dsn)
        assert await connection.execute(change, wallet) == "UPDATE 1"
        await connection.close()

    asyncio.run(change_it())
    document, done = run_audit(big_dsn)
    (failed,) = [check for check in document["checks"] if not check["ok"]]
    assert (failed["check"], failed["differences"]) == (ENTRIES_CHECK, 1)
    assert (failed["first"]["wallet_id"], failed["first"]["seq"]) == (wallet, 777)
    assert done.rss_bytes < BYTES_MAX
