"""The export: every call once, amounts exact, harmless to a spreadsheet, and in little memory."""

import asyncio
import csv
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import orjson
import pytest

from gateway.cli.usage import COLUMNS, harmless
from gateway.core.catalogue import METERS
from tests.cli.conftest import BadUsage
from tests.support.big_ledger import make_big_ledger
from tests.support.command import Command
from tests.support.ledger import Books, make_books
from tests.support.measured import run_measured
from tests.support.postgres import ScratchPostgres

UNKNOWN = "00000000-0000-7000-8000-000000000000"
CALLS = int(os.environ.get("FAREBOX_AUDIT_ENTRIES", "20000"))
MEMBERS = {
    *("wallet_id", "hold_id", "began_at", "resolved_at", "late", "key_id", "model", "endpoint", "upstream"),
    *("resolution", "basis", "reason", "price_id", "usage", "cost_picos", "entry_seq"),
    *(name + unit for name in ("cost", "prior", "charged", "shortfall") for unit in ("", "_nanos")),
}


def books_in(dsn: str) -> Books:
    async def make() -> Books:
        connection = await asyncpg.connect(dsn)
        try:
            return await make_books(connection)
        finally:
            await connection.close()

    return asyncio.run(make())


def execute(dsn: str, statement: str, *arguments: object) -> None:
    async def work() -> None:
        connection = await asyncpg.connect(dsn)
        await connection.execute(statement, *arguments)
        await connection.close()

    asyncio.run(work())


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_both_forms_say_the_same_and_exactly(farebox: Command, database_url: str) -> None:
    books = books_in(database_url)
    said = farebox("usage", "export", "--wallet", books.wallet_id)
    assert (said.exit_code, said.err) == (0, "")
    assert tuple(said.out.partition("\n")[0].split(",")) == COLUMNS
    cells = table(said.out)
    lines = farebox("usage", "export", "--wallet", books.wallet_id, "--format", "jsonl").out.splitlines()
    documents = [orjson.loads(line) for line in lines]
    assert len(cells) == len(documents) == 7
    assert all(document.keys() == MEMBERS for document in documents)
    # 100 times 1,250 + 7 times 625 + 31 times 4,001 picos.
    first = cells[0]
    assert first["hold_id"] == books.settled[0]
    assert (first["cost"], first["cost_picos"], first["input"], first["output"]) == (
        "0.000000253",
        "253406",
        "100",
        "31",
    )
    assert documents[0]["usage"] == {"input": 100, "cached_input": 7, "output": 31, "reasoning": 12}
    for cell, document in zip(cells, documents, strict=True):
        for name in ("hold_id", "began_at", "resolved_at", "cost", "charged", "shortfall", "prior", "model", "key_id"):
            assert cell[name] == document[name]
        assert int(cell["cost_picos"]) == document["cost_picos"]
        assert cell["late"] == ("true" if document["late"] else "false")
    late = [cell for cell in cells if cell["hold_id"] == books.late]
    assert [(cell["late"], cell["resolution"]) for cell in late] == [("false", "expired"), ("true", "settled")]
    assert len(table(farebox("usage", "export").out)) == 8
    began = cells[1]["began_at"]
    assert len(table(farebox("usage", "export", "--wallet", books.wallet_id, "--from", began).out)) <= 6
    assert table(farebox("usage", "export", "--to", "2020-01-01").out) == []


def test_every_meter_variant_and_term_has_a_column(farebox: Command, database_url: str) -> None:
    books_in(database_url)
    used = {"images/high/1024x1024": 2, "images": 3, "containers/4g": 1, "audio_milliseconds": 5, "requests": 1}
    terms = {"service_tier": "priority", "upstream_bp": 11_000}
    execute(database_url, "UPDATE usage_events SET usage = $1::jsonb", orjson.dumps(used | terms).decode())
    cell = table(farebox("usage", "export").out)[0]
    names = ("images", "containers", "audio_milliseconds", "requests", "input", "service_tier", "upstream_bp")
    assert [cell[name] for name in names] == ["5", "1", "5", "1", "", "priority", "11000"]
    assert cell["variants"] == "containers/4g=1 images/high/1024x1024=2"
    assert set(METERS) <= cell.keys()
    document = orjson.loads(farebox("usage", "export", "--format", "jsonl").out.splitlines()[0])
    assert document["usage"] == used | terms


def test_text_that_a_spreadsheet_would_run_is_defused(farebox: Command, database_url: str) -> None:
    books_in(database_url)
    for text in ("=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\n=x"):
        execute(database_url, "UPDATE usage_events SET upstream = $1, endpoint = 'a,\"b\"'", text)
        cells = table(farebox("usage", "export").out)
        assert {cell["upstream"] for cell in cells} == {harmless(text)} == {f"'{text}"}
        assert {cell["endpoint"] for cell in cells} == {'a,"b"'}
        document = orjson.loads(farebox("usage", "export", "--format", "jsonl").out.splitlines()[0])
        assert document["upstream"] == text


def test_plain_text_is_left_as_it_is() -> None:
    assert [harmless(text) for text in ("a=b", "", None, "1")] == ["a=b", "", None, "1"]


def test_a_file_is_whole_or_as_it_was(farebox: Command, database_url: str, tmp_path: Path) -> None:
    books_in(database_url)
    target = tmp_path / "calls.csv"
    target.write_text("of yesterday")
    said = farebox("usage", "export", "--wallet", UNKNOWN, "--output", str(target), "--json")
    assert (said.exit_code, said.document["error"]["code"]) == (1, "wallet_unknown")
    assert target.read_text() == "of yesterday"
    written = farebox.json("usage", "export", "--output", str(target))
    assert written == {"file": str(target), "format": "csv", "rows": 8}
    assert len(table(target.read_text())) == 8
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["calls.csv"]
    assert farebox("usage", "export", "--output", str(target)).out == f"8 calls written to {target}\n"


def test_a_target_that_cannot_be_written_is_one_line(farebox: Command, database_url: str, tmp_path: Path) -> None:
    said = farebox("usage", "export", "--output", str(tmp_path / "no" / "where"))
    assert (said.exit_code, said.out, said.err.count("\n")) == (2, "", 1)
    assert "cannot be written (No such file or directory)" in said.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_not_taken_for_a_ledger_that_is_away(farebox: Command, database_url: str) -> None:
    books_in(database_url)
    done = run_measured(database_url, "usage", "export", stdout="/dev/full")
    assert done.exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["export", "--from", "soon"], "'soon' is not a time"),
        (["export", "--from", "2026-01-02", "--to", "2026-01-02"], "--from must be before --to"),
        (["export", "--format", "xls"], "'xls' is not one of"),
        (["export", "--wallet", "w"], "'w' is not an id"),
        (["export", "--json"], "--json needs --output FILE"),
    ],
)
def test_bad_usage_is_one_clear_line(bad_usage: BadUsage, arguments: list[str], why: str) -> None:
    assert why in bad_usage("usage", *arguments)


@pytest.fixture
def large_dsn(scratch: ScratchPostgres) -> Iterator[str]:
    async def make() -> str:
        dsn = await scratch.clone("usage_large")
        connection = await asyncpg.connect(dsn)
        await make_big_ledger(connection, wallets=20, entries=CALLS // 20 + 1)
        await connection.close()
        return dsn

    yield asyncio.run(make())
    asyncio.run(scratch.drop("usage_large"))


def test_many_calls_take_little_memory(large_dsn: str, tmp_path: Path) -> None:
    target = tmp_path / "calls.jsonl"
    done = run_measured(large_dsn, "usage", "export", "--format", "jsonl", "--output", str(target), "--json")
    print(f"export of {CALLS} calls: {done.seconds:.1f} s, {done.rss_bytes / 2**20:.0f} MiB")
    assert done.exit_code == 0
    assert orjson.loads(done.out)["rows"] == CALLS
    assert done.rss_bytes < 200 * 2**20
    with target.open("rb") as lines:
        assert sum(1 for _ in lines) == CALLS
