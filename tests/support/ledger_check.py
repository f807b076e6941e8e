"""The books must balance after every test."""

import asyncpg

from gateway.db.queries import invariants


async def check_invariants(dsn: str) -> None:
    """Fail with the first differences if any invariant is broken."""
    connection = await asyncpg.connect(dsn)
    try:
        broken = {}
        for name, statement in invariants().items():
            rows = await connection.fetch(statement)
            if rows:
                broken[name] = [dict(row) for row in rows[:3]]
        assert not broken, f"the books do not balance: {broken}"
    finally:
        await connection.close()
