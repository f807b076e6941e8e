from pathlib import Path

import pytest

from gateway.cli.context import EXIT_AWAY, EXIT_USAGE
from tests.support.command import Command
from tests.support.postgres import ScratchPostgres

AWAY = [
    ("postgresql://127.0.0.1:1/farebox", EXIT_AWAY, "the database cannot be reached"),
    ("postgresql://farebox@/farebox?host=/nonexistent", EXIT_AWAY, "the database cannot be reached"),
    ("mysql://127.0.0.1/farebox", EXIT_USAGE, "database_url: not a PostgreSQL URL"),
    ("postgresql://127.0.0.1:port/farebox", EXIT_USAGE, "database_url: not a PostgreSQL URL"),
]


@pytest.mark.parametrize(("dsn", "exit_code", "why"), AWAY)
def test_a_database_that_cannot_be_reached_is_one_line(tmp_path: Path, dsn: str, exit_code: int, why: str) -> None:
    for arguments in (("wallet", "list"), ("migrate",), ("audit",), ("price", "import")):
        said = Command(dsn, tmp_path)(*arguments)
        assert (said.exit_code, said.out, said.err.count("\n")) == (exit_code, "", 1)
        assert said.err.startswith(f"farebox: {why}")


def test_a_wrong_password_or_database_is_configuration(scratch: ScratchPostgres, tmp_path: Path) -> None:
    right = scratch.dsn("absent")
    password = right.split(":")[2].split("@")[0]
    for dsn, why in ((right, '"absent" does not exist'), (right.replace(password, "wrong"), "password")):
        said = Command(dsn, tmp_path)("wallet", "list")
        assert (said.exit_code, said.out, said.err.count("\n")) == (EXIT_USAGE, "", 1)
        assert why in said.err
        assert password not in said.err


def test_a_directory_that_is_not_ours_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "thesis.txt").write_text("mine")
    said = Command(None, tmp_path)("wallet", "list")
    assert (said.exit_code, said.out, said.err.count("\n")) == (EXIT_USAGE, "", 1)
    assert "was not made by Farebox" in said.err
