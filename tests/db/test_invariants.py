"""All invariants in one snapshot, counted. What each of them sees is in tests/sql/test_invariants.py."""

import asyncpg

from gateway.clock import new_id
from gateway.db import wallets
from gateway.db.invariants import broken_invariants, failing_invariants
from gateway.db.pool import Database
from gateway.db.queries import invariants
from tests.support.postgres import ScratchPostgres


async def test_damage_is_counted_and_named(scratch: ScratchPostgres) -> None:
    dsn = await scratch.clone("db_invariants")
    database, connection = Database(dsn), await asyncpg.connect(dsn)
    assert await failing_invariants(database) == dict.fromkeys(invariants(), 0)
    for _ in range(3):
        wallet_id = new_id()
        await wallets.create(database, wallet_id, "test")
        await wallets.credit(database, wallet_id, new_id(), 5, actor="test", reason="test")
    assert not any((await failing_invariants(database)).values())
    await connection.execute("UPDATE wallets SET balance_nanos = balance_nanos + 2")
    failing = {name: count for name, count in (await failing_invariants(database)).items() if count}
    assert failing == {"balance_is_the_sum_of_entries": 3, "accounts_sum_to_zero": 1}
    rows = (await broken_invariants(connection))["balance_is_the_sum_of_entries"]
    assert {row["difference"] for row in rows} == {"balance 7, entries sum to 5"}
    await connection.close()
    await database.close()
    await scratch.drop("db_invariants")
