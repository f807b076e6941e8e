import asyncio
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import orjson
import pytest

from gateway.core.audit import recompute_picos
from gateway.core.journal_record import Record, encode, placed_at_seconds
from gateway.core.money import format_nanos, round_nanos
from tests.support import ledger
from tests.support.command import Command

# A process that keeps a journal until it is told to end.
OWNER = """
import sys
from pathlib import Path
from gateway.db.journal import Journal
journal = Journal(Path(sys.argv[1]), bytes_max=2**20)
journal.open("living")
print("open", flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True, slots=True)
class Shelf:
    """Open holds, and the settles of them that a gateway journaled before it died."""

    directory: Path
    dsn: str
    wallet_id: str
    records: list[Record]
    cost_nanos: int

    def write(self, name: str, content: bytes) -> None:
        (self.directory / name).write_bytes(content)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir())

    def charged(self) -> int:
        """Nanos charged so far."""

        async def ask() -> int:
            connection = await asyncpg.connect(self.dsn)
            try:
                statement = "SELECT coalesce(sum(charged_nanos), 0) FROM usage_events WHERE wallet_id = $1"
                return int(await connection.fetchval(statement, self.wallet_id))
            finally:
                await connection.close()

        return asyncio.run(ask())


@pytest.fixture
def shelf(database_url: str, tmp_path: Path) -> Shelf:
    async def make() -> tuple[str, list[Record], int]:
        connection = await asyncpg.connect(database_url)
        try:
            price = await ledger.make_price(connection)
            wallet_id = await ledger.make_wallet(connection)
            holds = [await ledger.place_hold(connection, wallet_id, price) for _ in range(3)]
        finally:
            await connection.close()
        documents = [orjson.dumps(ledger.settle_operation(hold_id, price)) for hold_id in holds]
        records = [Record(wallet_id, hold_id, one) for hold_id, one in zip(holds, documents, strict=True)]
        return wallet_id, records, round_nanos(recompute_picos(price, ledger.USAGE))

    directory = tmp_path / "data" / "journal"
    directory.mkdir(parents=True)
    return Shelf(directory, database_url, *asyncio.run(make()))


def test_nothing_there_is_nothing_to_do(farebox: Command) -> None:
    assert farebox.json("journal", "list") == {"files": []}
    done = farebox.json("journal", "replay")
    assert (done["ok"], done["records"], done["kept"]) == (True, 0, [])


def test_files_are_listed_with_their_owners_and_what_can_be_read(farebox: Command, shelf: Shelf) -> None:
    lines = [encode(record) for record in shelf.records]
    shelf.write("dead.journal", lines[0] + lines[1] + lines[2][:-20])  # torn in its last record
    shelf.write("old.damaged", lines[2] + b"?" + lines[0])
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(shelf.directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"open\n"
        files = farebox.json("journal", "list", "--records")["files"]
        said = farebox("journal", "list", "--records").out
        left = farebox.json("journal", "replay")["left_to_their_gateways"]
        owner.kill()
    seen = {Path(one["file"]).name: (one["owner"], one["records"], one["damaged"]) for one in files}
    assert seen == {"dead.journal": ("dead", 2, 0), "living.journal": ("alive", 0, 0), "old.damaged": ("none", 1, 1)}
    assert left == 1
    (dead, _, _) = files
    assert dead["bytes"] == os.path.getsize(dead["file"]) if os.path.exists(dead["file"]) else True
    assert dead["oldest_at"].startswith("20")
    assert [one["hold_id"] for one in dead["contents"]] == [record.hold_id for record in shelf.records[:2]]
    assert dead["contents"][0]["cost_nanos"] == shelf.cost_nanos
    for word in ("alive", "dead", shelf.records[0].hold_id, format_nanos(shelf.cost_nanos), "FareboxJournalDamaged"):
        assert word in said
    assert placed_at_seconds(shelf.records[0]) > 1.7e9


def test_records_of_the_dead_are_charged_once_however_often_they_are_given(farebox: Command, shelf: Shelf) -> None:
    content = b"".join(map(encode, shelf.records))
    for _ in range(2):
        shelf.write("dead.journal", content)
        done = farebox.json("journal", "replay")
        assert (done["ok"], done["records"], done["kept"]) == (True, 3, [])
        assert (shelf.names(), shelf.charged()) == ([], 3 * shelf.cost_nanos)


def test_what_cannot_be_given_is_kept_and_exits_1(farebox: Command, shelf: Shelf) -> None:
    bad = Record(shelf.wallet_id, shelf.records[2].hold_id, b'{"op":"no such"}')
    shelf.write("dead.journal", encode(shelf.records[0]) + b"?\n" + encode(bad) + encode(shelf.records[1]))
    said = farebox("journal", "replay", "--json")
    assert said.exit_code == 1
    expected = {"ok": False, "records": 2, "refused": 1, "damaged": 1, "kept": ["dead.damaged"]}
    assert said.document == {**expected, "left_to_their_gateways": 0}
    assert (shelf.names(), shelf.charged()) == (["dead.damaged"], 2 * shelf.cost_nanos)
    # Nothing is left to try, unless it is asked for; then what was charged is not charged again.
    assert farebox("journal", "replay").exit_code == 0
    assert farebox("journal", "replay", "--damaged").exit_code == 1
    shelf.write("dead.damaged", b"".join(map(encode, shelf.records)))
    assert farebox.json("journal", "replay", "--damaged")["ok"]
    assert (shelf.names(), shelf.charged()) == ([], 3 * shelf.cost_nanos)


def test_without_a_ledger_nothing_is_touched_and_it_exits_3(farebox: Command, shelf: Shelf) -> None:
    content = b"".join(map(encode, shelf.records))
    shelf.write("dead.journal", content)
    said = farebox("journal", "replay", FAREBOX_DATABASE_URL="postgresql://127.0.0.1:1/none")
    assert said.exit_code == 3
    assert (shelf.directory / "dead.journal").read_bytes() == content
    farebox.json("journal", "replay")
