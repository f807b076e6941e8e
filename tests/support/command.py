"""The farebox command as a test calls it: in this process, with an environment of its own."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from click.testing import CliRunner

from gateway.cli.main import cli


@dataclass(frozen=True, slots=True)
class Said:
    """What a command answered."""

    exit_code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output as the one JSON document that it must be."""
        return orjson.loads(self.out)


class Command:
    """`farebox(*arguments)` against one database and one data directory."""

    def __init__(self, database_url: str | None, data_directory: Path) -> None:
        # Settings of the surroundings must not reach a test.
        self.environment: dict[str, str | None] = {name: None for name in os.environ if name.startswith("FAREBOX_")}
        self.environment |= {"FAREBOX_DATABASE_URL": database_url, "FAREBOX_DATA_DIRECTORY": str(data_directory)}

    def __call__(self, *arguments: str, **environment: str) -> Said:
        """Run it. A crash is raised, not reported."""
        result = CliRunner().invoke(
            cli, arguments, env={**self.environment, **environment}, catch_exceptions=False, prog_name="farebox"
        )
        return Said(result.exit_code, result.stdout, result.stderr)

    def json(self, *arguments: str) -> Any:
        """The document of a command that must succeed."""
        said = self(*arguments, "--json")
        assert said.exit_code == 0, said.err
        assert said.err == ""
        return said.document
