import asyncio
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from gateway.db.audit import COSTS_CHECK
from gateway.db.audit_chain import ENTRIES_CHECK, HEADS_CHECK
from gateway.db.queries import invariants
from tests.support.command import Command
from tests.support.ledger import Books, make_books
from tests.support.postgres import ScratchPostgres

MORE_CHECKS = (ENTRIES_CHECK, HEADS_CHECK, COSTS_CHECK)


@pytest.fixture
def spoilable(scratch: ScratchPostgres) -> Iterator[str]:
    """A database of one's own to spoil."""
    yield asyncio.run(scratch.clone("spoilable"))
    asyncio.run(scratch.drop("spoilable"))


def books_in(dsn: str, *damage: str) -> Books:
    async def make() -> Books:
        connection = await asyncpg.connect(dsn)
        try:
            books = await make_books(connection)
            for statement in damage:
                await connection.execute(statement)
            return books
        finally:
            await connection.close()

    return asyncio.run(make())


def test_sound_books_exit_0(farebox: Command, database_url: str) -> None:
    books_in(database_url)
    document = farebox.json("audit")
    assert document["ok"] is True
    assert [one["check"] for one in document["checks"]] == [*invariants(), *MORE_CHECKS]
    assert document["checks"][-1] == {"check": COSTS_CHECK, "ok": True, "rows": 8, "differences": 0, "first": None}
    said = farebox("audit")
    assert (said.exit_code, said.err) == (0, "")
    assert f"the books balance: {len(invariants()) + 3} checks, 8 calls worked out anew" in said.out


def test_damaged_books_exit_1_and_name_the_first_difference(spoilable: str, tmp_path: Path) -> None:
    books = books_in(
        spoilable,
        "UPDATE wallets SET balance_nanos = balance_nanos + 1",
        "UPDATE usage_events SET usage = usage || '{\"input\": 101}' WHERE NOT late AND usage ? 'reasoning'",
    )
    farebox = Command(spoilable, tmp_path)
    said = farebox("audit", "--json")
    assert (said.exit_code, said.err, said.document["ok"]) == (1, "", False)
    failed = {one["check"]: one for one in said.document["checks"] if not one["ok"]}
    assert failed.keys() == {"balance_is_the_sum_of_entries", "accounts_sum_to_zero", COSTS_CHECK}
    assert failed["balance_is_the_sum_of_entries"]["differences"] == 2
    assert failed["accounts_sum_to_zero"]["first"]["wallet_id"] is None
    assert failed[COSTS_CHECK]["first"] == {
        "wallet_id": books.wallet_id,
        "seq": None,
        "hold_id": books.settled[0],
        "what": f"cost_nanos at price {books.price.price_id}",
        "expected": "255",
        "found": "253",
    }
    said = farebox("audit")
    assert said.exit_code == 1
    assert f"wallet {books.wallet_id}, hold {books.settled[0]}: cost_nanos" in said.out
    assert "expected 255, found 253" in said.out
    assert f"3 of {len(invariants()) + 3} checks found differences" in said.out
