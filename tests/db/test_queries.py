"""Named statements: found by name, each with its purpose, and each one that PostgreSQL understands."""

import re
from pathlib import Path

import asyncpg
import pytest

from gateway.db.queries import invariants, parse, queries, sql_directory


def test_a_file_is_split_at_its_names() -> None:
    text = (
        "-- About the file; not a statement.\n\n-- name: one\n-- Why.\nSELECT 1;\n\n-- name: two\nSELECT ';' || $1;\n"
    )
    assert parse(text) == {"one": "-- Why.\nSELECT 1", "two": "SELECT ';' || $1"}
    assert parse("") == {}


def test_the_sql_of_this_checkout_is_found() -> None:
    assert (sql_directory() / "schema.sql").is_file()
    assert sql_directory() == Path(__file__).resolve().parents[2] / "sql"


def test_every_statement_says_what_it_is_for() -> None:
    for name, statement in queries().items():
        assert re.match(r"-- [A-Z][^\n]*(\n-- [^\n]*)*[.]\n[^-]", statement), name
    for statements in (queries(), invariants()):
        with pytest.raises(TypeError):
            statements["x"] = ""  # type: ignore[index]


def test_no_name_is_used_twice() -> None:
    files = [sql_directory() / "invariants.sql", *(sql_directory() / "queries").glob("*.sql")]
    names = [name for path in files for name in re.findall(r"^-- name: (.*)$", path.read_text(), re.MULTILINE)]
    assert sorted(names) == sorted({*queries(), *invariants()})


async def test_postgresql_understands_every_statement(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    for name, statement in {**queries(), **invariants()}.items():
        prepared = await connection.prepare(statement)
        if name in invariants():
            columns = [column.name for column in prepared.get_attributes()]
            assert columns in (["wallet_id", "difference"], ["wallet_id", "seq", "difference"]), name
    await connection.close()
