"""What a migrator knows before it changes anything. What it changes is in tests/sql/test_migrations.py."""

import asyncpg
import pytest

from gateway.db.migrate import migrations, pending, unsafe_settings
from gateway.db.pool import connect
from tests.support.postgres import ScratchPostgres


def test_migrations_are_found_in_order() -> None:
    found = migrations()
    assert [version for version, _, _ in found] == list(range(1, len(found) + 1))
    assert found[0][1] == "first"
    assert all(path.is_file() for _, _, path in found)


async def test_what_is_pending_is_named(database_url: str) -> None:
    connection = await connect(database_url)
    assert await pending(connection) == []
    await connection.execute("DELETE FROM schema_migrations WHERE version = 1")
    assert await pending(connection) == ["0001_first"]
    await connection.execute("DROP TABLE schema_migrations")
    assert await pending(connection) == [f"{version:04d}_{name}" for version, name, _ in migrations()]
    await connection.close()


@pytest.mark.parametrize(
    ("synchronous_commit", "is_safe"),
    [("off", False), ("on", True), ("local", True), ("remote_write", True), ("remote_apply", True)],
)
async def test_unsafe_settings_are_said_line_by_line(
    scratch: ScratchPostgres, database_url: str, synchronous_commit: str, is_safe: bool
) -> None:
    connection = await asyncpg.connect(database_url, server_settings={"synchronous_commit": synchronous_commit})
    problems = await unsafe_settings(connection)
    await connection.close()
    # The test server keeps nothing through a crash, and must be told so.
    assert problems[:2] == [
        "fsync is off: a crash would lose money; set fsync = on",
        "full_page_writes is off: a crash could corrupt the ledger; set full_page_writes = on",
    ]
    assert len(problems) == (2 if is_safe else 3)
