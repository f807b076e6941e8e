"""Bring a database to this release: forward only, one migrator at a time, functions replaced every time."""

from pathlib import Path

from gateway.db.pool import Connection, connect
from gateway.db.queries import queries, sql_directory

SERVER_VERSION_MIN = 140_000


class UnsuitableServer(Exception):
    """The server cannot be trusted with money, or is too old; one line each says what to change."""


def migrations() -> list[tuple[int, str, Path]]:
    """(version, name, file) of every migration of this release, in order."""
    found = []
    for path in sorted((sql_directory() / "migrations").glob("*.sql")):
        version, _, name = path.stem.partition("_")
        found.append((int(version), name, path))
    assert [version for version, _, _ in found] == list(range(1, len(found) + 1)), "migrations are numbered densely"
    return found


async def migrate(dsn: str, *, is_durable_required: bool = True) -> list[str]:
    """Apply what is missing; returns the names applied. Raises LedgerAway, UnsuitableServer."""
    connection = await connect(dsn)
    try:
        problems = await unsafe_settings(connection)
        if problems and is_durable_required:
            raise UnsuitableServer("\n".join(problems))
        async with connection.transaction():
            await connection.execute(queries()["migrations_table"])
            await connection.execute(queries()["migrations_lock"])
            applied = {row["version"] for row in await connection.fetch(queries()["migrations_applied"])}
            names = []
            for version, name, path in migrations():
                if version not in applied:
                    await connection.execute(path.read_text(encoding="utf-8"))
                    await connection.execute(queries()["migration_record"], version, name)
                    names.append(f"{version:04d}_{name}")
            for path in sorted((sql_directory() / "functions").glob("*.sql")):
                await connection.execute(path.read_text(encoding="utf-8"))
            await connection.execute(queries()["usage_partitions_ensure"])
        return names
    finally:
        await connection.close()


async def pending(connection: Connection) -> list[str]:
    """Migrations of this release that the database has not had."""
    known = await connection.fetchval(queries()["migrations_known"])
    rows = await connection.fetch(queries()["migrations_applied"]) if known else []
    applied = {row["version"] for row in rows}
    return [f"{version:04d}_{name}" for version, name, _ in migrations() if version not in applied]


async def unsafe_settings(connection: Connection) -> list[str]:
    """What makes this server unfit to hold money, one line each."""
    settings = {row["name"]: row["setting"] for row in await connection.fetch(queries()["database_settings"])}
    problems = []
    if int(settings["server_version_num"]) < SERVER_VERSION_MIN:
        problems.append(f"PostgreSQL {settings['server_version']} is too old: 14 or newer is needed")
    if settings["fsync"] != "on":
        problems.append("fsync is off: a crash would lose money; set fsync = on")
    if settings["full_page_writes"] != "on":
        problems.append("full_page_writes is off: a crash could corrupt the ledger; set full_page_writes = on")
    if settings["synchronous_commit"] == "off":
        problems.append("synchronous_commit is off: a crash would lose charges; set synchronous_commit = on")
    if settings["client_min_messages"] == "error":
        problems.append("client_min_messages is error: a commit that the standby lacks looks like any; reset it")
    return problems
