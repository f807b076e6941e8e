import asyncio
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from gateway.db.embedded import EmbeddedPostgres
from gateway.db.migrate import migrations
from tests.support.command import Command
from tests.support.embedded import new_home
from tests.support.postgres import ScratchPostgres


@pytest.fixture
def data_directory() -> Iterator[Path]:
    """A data directory for an embedded PostgreSQL, not made yet."""
    with new_home() as home:
        yield home.parent


@pytest.fixture
def empty(scratch: ScratchPostgres) -> Iterator[str]:
    """A database that has never been migrated."""

    async def command(statement: str) -> None:
        connection = await asyncpg.connect(scratch.dsn("postgres"))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(command("CREATE DATABASE empty"))
    yield scratch.dsn("empty")
    asyncio.run(command("DROP DATABASE empty WITH (FORCE)"))


def test_a_newcomer_may_begin_with_any_command(data_directory: Path) -> None:
    farebox = Command(None, data_directory)
    wallet = farebox.json("wallet", "create", "--credit", "5")
    # The server was started for the command, and stopped after it.
    assert not EmbeddedPostgres(data_directory / "postgres").is_running()
    with EmbeddedPostgres(data_directory / "postgres"):
        # One that runs is shared, and left running.
        assert farebox.json("wallet", "show", wallet["wallet_id"])["balance"] == "5.00"
        assert EmbeddedPostgres(data_directory / "postgres").is_running()
        assert farebox.json("migrate") == {"applied": []}
        assert farebox("migrate").out == "nothing to apply: the database is current\n"
        assert farebox.json("doctor")["ok"] is True


def test_migrations_are_named_when_applied(data_directory: Path) -> None:
    farebox = Command(None, data_directory)
    assert farebox.json("migrate") == {"applied": [f"{version:04d}_{name}" for version, name, _ in migrations()]}


def test_an_unsafe_server_is_refused(empty: str, tmp_path: Path) -> None:
    said = Command(empty, tmp_path)("migrate")
    assert (said.exit_code, said.out) == (2, "")
    lines = said.err.splitlines()
    assert [line.split(":")[1].split()[0] for line in lines] == ["fsync", "full_page_writes", "synchronous_commit"]


def test_other_commands_ask_for_a_migration(empty: str, tmp_path: Path) -> None:
    for arguments in (("wallet", "list"), ("key", "list"), ("price", "list"), ("audit",)):
        said = Command(empty, tmp_path)(*arguments)
        assert (said.exit_code, said.out) == (2, "")
        assert said.err.startswith("farebox: the database lacks 0001_")
        assert said.err.endswith("run `farebox migrate`\n")
