from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command import Command

BadUsage = Callable[..., str]


@pytest.fixture
def farebox(database_url: str, tmp_path: Path) -> Command:
    """The command on a fresh migrated database, whose books are checked after the test."""
    return Command(database_url, tmp_path / "data")


@pytest.fixture
def bad_usage(tmp_path: Path) -> BadUsage:
    """Runs a command that must be refused, exit 2, before any database is asked; gives the one line it says."""

    def run(*arguments: str) -> str:
        said = Command("postgresql://127.0.0.1:1/nowhere", tmp_path / "data")(*arguments)
        assert (said.exit_code, said.out) == (2, "")
        assert said.err.startswith("farebox: ")
        assert said.err.count("\n") == 1
        return said.err

    return run
