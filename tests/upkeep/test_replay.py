"""Replay: what was journaled is given to the ledger once, whoever wrote it and however often it is read."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from gateway.core.journal_record import Record, encode
from gateway.db.journal import Journal
from gateway.db.lanes import Lane
from gateway.db.pool import Connection, LedgerAway
from gateway.request.authenticate import Principal
from gateway.request.hold import Hold
from gateway.request.meter import Charge
from gateway.request.settle import document
from gateway.tasks import spawn
from gateway.upkeep.replay import Replay, Replayed
from tests.support.offers import offer_of
from tests.support.shop import CREDIT_NANOS, Shop, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHARGE = Charge(False, "reported", None, 90_000, 90, {"input": 10, "output": 20})
NOTHING = Replayed(0, 0, 0)


@pytest_asyncio.fixture(loop_scope="module")
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    opened = Journal(tmp_path / "journal", bytes_max=2**20)
    opened.open("mine")
    yield opened
    opened.close()


def replay_of(shop: Shop, journal: Journal, lane: Lane | None = None) -> Replay:
    return Replay(journal, lane or shop.farebox.app.lane, shop.farebox.app.metrics)


async def settle_record(shop: Shop, charge: Charge = CHARGE) -> Record:
    """The settle of a hold that was just placed."""
    offer = offer_of(shop.farebox.app.shelf)
    principal = Principal(shop.farebox.wallet_id, shop.farebox.key_id, None)
    hold: Hold = await shop.farebox.app.gateway.holds.place(principal, offer)
    return Record(hold.wallet_id, hold.hold_id, document(offer, hold, charge, "up0"))


async def charged(shop: Shop) -> int:
    wallet = await shop.farebox.wallet()
    assert wallet["held_nanos"] == 0
    return CREDIT_NANOS - int(wallet["balance_nanos"])


def files(journal: Journal) -> set[str]:
    return {path.name for path in journal._directory.iterdir()}


async def test_own_records_are_given_once(shop: Shop, journal: Journal) -> None:
    records = [await settle_record(shop) for _ in range(3)]
    for record in [*records, records[0]]:
        await journal.append(record)
    replay = replay_of(shop, journal)
    assert await replay.run_once() == Replayed(4, 0, 0)
    assert await charged(shop) == 3 * 90
    assert journal.records == 0
    assert not await replay.run_once()
    for record in records:
        await journal.append(record)
    assert await replay.run_once() == Replayed(3, 0, 0)
    assert await charged(shop) == 3 * 90


async def test_a_dead_process_is_taken_over_and_its_file_may_come_back(shop: Shop, journal: Journal) -> None:
    records = [await settle_record(shop) for _ in range(2)]
    # Torn in its last record, as a crash leaves it.
    content = b"".join(map(encode, records)) + encode(records[0])[:-9]
    replay = replay_of(shop, journal)
    for _ in range(2):
        (journal._directory / "dead.journal").write_bytes(content)
        assert await replay.run_once() == Replayed(2, 0, 0)
        assert files(journal) == {"mine.journal"}
        assert await charged(shop) == 2 * 90


async def test_a_living_process_is_left_alone(shop: Shop, journal: Journal) -> None:
    other = Journal(journal._directory, bytes_max=2**20)
    other.open("other")
    await other.append(await settle_record(shop))
    assert await replay_of(shop, journal).run_once() == NOTHING
    assert files(journal) == {"mine.journal", "other.journal"}
    assert await replay_of(shop, other).run_once() == Replayed(1, 0, 0)
    other.close()


async def test_a_damaged_file_is_set_aside_and_the_rest_of_it_given(shop: Shop, journal: Journal) -> None:
    first, last = await settle_record(shop), await settle_record(shop)
    damaged = encode(first) + b"?\n" + encode(last)
    (journal._directory / "dead.journal").write_bytes(damaged)
    assert await replay_of(shop, journal).run_once() == Replayed(2, 1, 0)
    assert await charged(shop) == 2 * 90
    assert files(journal) == {"mine.journal", "dead.damaged"}
    assert (journal._directory / "dead.damaged").read_bytes() == damaged
    assert not await replay_of(shop, journal).run_once()


async def test_what_the_ledger_refuses_is_set_aside(shop: Shop, journal: Journal) -> None:
    good = await settle_record(shop)
    bad = Record(good.wallet_id, good.hold_id.replace(good.hold_id[:4], "ffff", 1), b'{"op":"no such"}')
    for record in (bad, good):
        await journal.append(record)
    (journal._directory / "dead.journal").write_bytes(encode(bad))
    assert await replay_of(shop, journal).run_once() == Replayed(1, 0, 2)
    assert await charged(shop) == 90
    assert {Path(name).suffix for name in files(journal)} == {".journal", ".damaged"}
    assert len(files(journal)) == 3
    assert not await replay_of(shop, journal).run_once()


async def test_what_is_appended_meanwhile_stays(shop: Shop, journal: Journal) -> None:
    first, second = await settle_record(shop), await settle_record(shop)
    await journal.append(first)
    replay = replay_of(shop, journal)
    running = spawn(replay.run_once(), name="replay")
    await asyncio.sleep(0)
    await journal.append(second)
    await running
    assert journal.records == 2
    assert await replay.run_once() == Replayed(2, 0, 0)
    assert (journal.records, await charged(shop)) == (0, 2 * 90)


async def test_without_a_ledger_every_file_stays(shop: Shop, journal: Journal) -> None:
    record = await settle_record(shop)
    await journal.append(record)
    (journal._directory / "dead.journal").write_bytes(encode(record))

    async def nobody() -> Connection:
        raise LedgerAway("away")

    class Deaf:
        def batch_sent(self, operations: int) -> None: ...
        def statement_failed(self, kind: str) -> None: ...

    lane = Lane(
        nobody, Deaf(), batch_operations_max=9, queue_operations_max=9, statement_seconds=1.0, wait_seconds=0.05
    )
    running = spawn(lane.run(), name="lane")
    replay = replay_of(shop, journal, lane)
    with pytest.raises(LedgerAway):
        await replay.run_once()
    await until(lambda: lane.away)
    assert await replay.run_once() == NOTHING
    assert files(journal) == {"mine.journal", "dead.journal"}
    assert journal.read_own() == ([record], 0)
    lane.close()
    await running
    assert await replay_of(shop, journal).run_once() == Replayed(2, 0, 0)
    assert await charged(shop) == 90


async def test_a_full_lane_leaves_the_rest_for_later(
    shop: Shop, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        await journal.append(await settle_record(shop))
    with monkeypatch.context() as patched:
        patched.setattr(shop.farebox.app.lane, "_queue_operations_max", 2)
        with pytest.raises(LedgerAway):
            await replay_of(shop, journal).run_once()
    assert journal.records == 3
    assert await replay_of(shop, journal).run_once() == Replayed(3, 0, 0)
    assert await charged(shop) == 3 * 90
