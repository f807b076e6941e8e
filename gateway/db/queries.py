"""SQL by name. Statements live in sql/, one sentence of purpose each; there is no SQL in Python."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def sql_directory() -> Path:
    """sql/ of a checkout, or its copy inside an installed wheel."""
    installed = Path(__file__).resolve().parents[1] / "_sql"
    return installed if installed.is_dir() else Path(__file__).resolve().parents[2] / "sql"


def parse(text: str) -> dict[str, str]:
    """The named statements of one file, comments kept."""
    parts = _NAME.split(text)
    return {name: statement.strip().rstrip(";") for name, statement in zip(parts[1::2], parts[2::2], strict=True)}


@cache
def queries() -> Mapping[str, str]:
    """Every statement of sql/queries/ by its name, which is unique over all files."""
    found: dict[str, str] = {}
    for path in sorted((sql_directory() / "queries").glob("*.sql")):
        for name, statement in parse(path.read_text(encoding="utf-8")).items():
            assert name not in found, f"two statements are named {name}"
            found[name] = statement
    return MappingProxyType(found)


@cache
def invariants() -> Mapping[str, str]:
    """The named queries that return no row on a healthy database."""
    return MappingProxyType(parse((sql_directory() / "invariants.sql").read_text(encoding="utf-8")))
