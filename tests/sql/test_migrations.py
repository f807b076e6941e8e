"""schema.sql is the present truth, and the chain of migrations reaches it."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from gateway.db.embedded_programs import find_programs, run
from gateway.db.migrate import UnsuitableServer, migrate, migrations, pending
from gateway.db.pool import Connection, LedgerAway
from gateway.db.queries import queries, sql_directory
from tests.support.postgres import ScratchPostgres

NewDatabase = Callable[[str], Awaitable[str]]
SECONDS_MAX = 30.0


@pytest.fixture
async def new_database(scratch: ScratchPostgres) -> AsyncIterator[NewDatabase]:
    """`await new_database(name)`: the DSN of a database with nothing in it."""
    made: list[str] = []
    server = await asyncpg.connect(scratch.dsn("postgres"))

    async def make(name: str) -> str:
        await server.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        made.append(name)
        return scratch.dsn(name)

    yield make
    for name in made:
        await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await server.close()


def dump(dsn: str) -> str:
    """The whole definition of a database, without what differs from run to run."""
    done = run([find_programs().path("pg_dump"), "--schema-only", dsn], timeout_seconds=SECONDS_MAX)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not re.match(r"\\(un)?restrict |--", line)]
    return "\n".join(lines)


async def execute(dsn: str, *statements: str) -> None:
    connection = await asyncpg.connect(dsn)
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


async def test_the_migrations_reach_schema_sql(new_database: NewDatabase) -> None:
    migrated, direct = await new_database("by_migrations"), await new_database("by_schema")
    await migrate(migrated, is_durable_required=False)
    functions = sorted((sql_directory() / "functions").glob("*.sql"))
    texts = [path.read_text(encoding="utf-8") for path in (sql_directory() / "schema.sql", *functions)]
    await execute(direct, *texts, queries()["usage_partitions_ensure"])
    assert "CREATE TABLE public.wallets" in dump(direct)
    assert dump(migrated).splitlines() == dump(direct).splitlines()


async def test_migrating_again_changes_nothing(new_database: NewDatabase) -> None:
    dsn = await new_database("twice")
    names = [f"{version:04d}_{name}" for version, name, _ in migrations()]
    assert await migrate(dsn, is_durable_required=False) == names
    before = dump(dsn)
    assert await migrate(dsn, is_durable_required=False) == []
    assert dump(dsn) == before
    # A function that somebody changed by hand is put right, every time.
    await execute(
        dsn,
        "CREATE OR REPLACE FUNCTION uuid_floor(p_at timestamptz) RETURNS uuid LANGUAGE sql RETURN NULL::uuid",
    )
    assert dump(dsn) != before
    assert await migrate(dsn, is_durable_required=False) == []
    assert dump(dsn) == before


async def test_migrators_at_once_take_turns(new_database: NewDatabase) -> None:
    dsn = await new_database("at_once")
    results = await asyncio.gather(*(migrate(dsn, is_durable_required=False) for _ in range(4)))
    names = [f"{version:04d}_{name}" for version, name, _ in migrations()]
    assert sorted(results) == [[], [], [], names]


async def test_a_migration_that_fails_leaves_nothing(new_database: NewDatabase) -> None:
    dsn = await new_database("half")
    await execute(dsn, "CREATE TABLE holds (mine text)")
    with pytest.raises(asyncpg.DuplicateTableError):
        await migrate(dsn, is_durable_required=False)
    connection: Connection = await asyncpg.connect(dsn)
    assert [row[0] for row in await connection.fetch("SELECT relname FROM pg_stat_user_tables")] == ["holds"]
    assert len(await pending(connection)) == len(migrations())
    await connection.close()
    await execute(dsn, "DROP TABLE holds")
    assert len(await migrate(dsn, is_durable_required=False)) == len(migrations())


async def test_a_server_that_could_lose_money_is_refused(new_database: NewDatabase) -> None:
    dsn = await new_database("unsafe")
    with pytest.raises(UnsuitableServer) as refusal:
        await migrate(dsn)
    lines = str(refusal.value).splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["fsync", "full_page_writes", "synchronous_commit"]
    assert dump(dsn) == dump(await new_database("untouched"))
    await execute(dsn, "ALTER DATABASE unsafe SET synchronous_commit = on")
    with pytest.raises(UnsuitableServer) as refusal:
        await migrate(dsn)
    assert "synchronous_commit" not in str(refusal.value)


async def test_no_database_is_away(scratch: ScratchPostgres) -> None:
    with pytest.raises(LedgerAway):
        await migrate(scratch.dsn("absent"), is_durable_required=False)
