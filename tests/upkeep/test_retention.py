"""Months of usage events come and go: nothing that could still be charged loses its place, and the books stay true."""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from gateway.clock import new_id
from gateway.db.audit import audit
from gateway.db.pool import Database
from gateway.tasks import spawn
from gateway.upkeep.retention import MONTHS_MAX, Partitions, Retained
from tests.support.ledger_operations import Ledger, hold, id_at, open_ledger, settle

NAMES = "SELECT relname FROM pg_class WHERE relname LIKE 'usage_events_2%' AND relkind = 'r' ORDER BY relname"
DAYS = 100


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[Ledger]:
    async with open_ledger(database_url) as opened:
        yield opened


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = Database(database_url)
    yield opened
    await opened.close()


async def partitions(ledger: Ledger) -> list[str]:
    return [row["relname"] for row in await ledger.connection.fetch(NAMES)]


async def make_month(ledger: Ledger, days_ago: int) -> tuple[str, datetime]:
    """The partition of the month that was `days_ago`, made as it was then; its name and its first moment."""
    first = (datetime.now(UTC) - timedelta(days=days_ago)).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    end = (first + timedelta(days=32)).replace(day=1)
    name = f"usage_events_{first:%Y_%m}"
    bounds = [await ledger.connection.fetchval("SELECT uuid_floor($1)::text", moment) for moment in (first, end)]
    await ledger.connection.execute(
        f"CREATE TABLE {name} PARTITION OF usage_events FOR VALUES FROM ('{bounds[0]}') TO ('{bounds[1]}')"
    )
    return name, first


async def call_of(ledger: Ledger, wallet: str, moment: datetime, cost: int) -> str:
    """A call that was charged `cost` at `moment`; its id."""
    now_id, then_id = new_id(), id_at(moment)
    await ledger.one(wallet, settle(now_id, cost))
    for table in ("ledger_entries", "usage_events"):
        await ledger.connection.execute(f"UPDATE {table} SET hold_id = $2 WHERE hold_id = $1", now_id, then_id)
    return then_id


async def test_months_past_retention_are_dropped_and_the_books_stay_true(
    database_url: str, database: Database, ledger: Ledger
) -> None:
    before, wallet = await partitions(ledger), await ledger.wallet(1_000)
    old = [await make_month(ledger, days) for days in (300, 200)]
    young, first = await make_month(ledger, 90)
    for number, (_, moment) in enumerate(old):
        await call_of(ledger, wallet, moment, 10 + number)
        await call_of(ledger, wallet, moment + timedelta(days=27), 20)
    await call_of(ledger, wallet, first, 5)
    assert not await Partitions(database).run_once()
    assert await Partitions(database, retention_days=DAYS).run_once() == Retained(tuple(name for name, _ in old))
    assert await partitions(ledger) == sorted([*before, young])
    dropped = await ledger.connection.fetch("SELECT * FROM usage_dropped ORDER BY partition")
    assert [(row["partition"], row["events"], int(row["charged_nanos"])) for row in dropped] == [
        (old[0][0], 2, 30),
        (old[1][0], 2, 31),
    ]
    result = await audit(database_url)
    assert result.is_clean
    assert not await Partitions(database, retention_days=DAYS).run_once()
    # An entry of a dropped month is still bound by the month's sum.
    change = ledger.connection.transaction()
    await change.start()
    await ledger.connection.execute("UPDATE ledger_entries SET hold_id = $1 WHERE amount_nanos = -5", id_at(old[0][1]))
    assert set(await ledger.broken()) == {"dropped_usage_is_what_was_charged", "every_charged_event_has_its_entry"}
    await change.rollback()


async def test_a_month_with_a_hold_is_kept_until_it_is_resolved(database: Database, ledger: Ledger) -> None:
    name, first = await make_month(ledger, 200)
    wallet, old_id, now_id = await ledger.wallet(100), id_at(first), new_id()
    await ledger.one(wallet, hold(now_id, 30))
    await ledger.connection.execute("UPDATE holds SET hold_id = $2 WHERE hold_id = $1", now_id, old_id)
    service = Partitions(database, retention_days=DAYS)
    assert await service.run_once() == Retained((), "held")
    assert await ledger.told(wallet, settle(old_id, 7)) == ("settled", 7, 0)
    assert await service.run_once() == Retained((name,))


async def test_a_reader_is_not_disturbed_and_calls_wait_only_for_a_moment(
    database_url: str, database: Database, ledger: Ledger
) -> None:
    name, _ = await make_month(ledger, 200)
    wallet = await ledger.wallet(1_000)
    service = Partitions(database, retention_days=DAYS)
    waits = []
    async with open_ledger(database_url) as reader, reader.connection.transaction():
        await reader.connection.fetch("SELECT count(*) FROM usage_events")
        dropping = spawn(service.run_once(), name="dropping")
        while not dropping.done():
            began = time.monotonic()
            assert await ledger.outcomes(wallet, settle(new_id(), 1)) == ["settled_unheld"]
            waits.append(time.monotonic() - began)
        assert await dropping == Retained((), "busy")
    # The limit is 0.2 s; the rest is for a slow machine.
    assert max(waits) < 2.0
    assert await service.run_once() == Retained((name,))
    assert await ledger.outcomes(wallet, settle(new_id(), 1)) == ["settled_unheld"]


async def test_no_month_vanishes_from_under_an_audit(database_url: str, ledger: Ledger) -> None:
    """A dropped table is gone for older snapshots too, but the record of it is not there yet for them."""
    name, first = await make_month(ledger, 200)
    await call_of(ledger, await ledger.wallet(100), first, 3)
    results: list[Retained] = []

    async def drop() -> Retained:
        database = Database(database_url)
        try:
            return await Partitions(database, retention_days=DAYS).run_once()
        finally:
            await database.close()

    def drop_at_the_first_check(_check: str, _done: int, _total: int) -> None:
        if not results:
            with ThreadPoolExecutor(1) as thread:
                results.append(thread.submit(asyncio.run, drop()).result())

    assert (await audit(database_url, on_progress=drop_at_the_first_check)).is_clean
    assert results == [Retained((), "busy")]
    assert await drop() == Retained((name,))


async def test_gateways_that_drop_at_once_drop_once(database_url: str, ledger: Ledger) -> None:
    name, first = await make_month(ledger, 200)
    await call_of(ledger, await ledger.wallet(100), first, 3)
    databases = [Database(database_url) for _ in range(4)]
    results = await asyncio.gather(*(Partitions(one, retention_days=DAYS).run_once() for one in databases))
    for one in databases:
        await one.close()
    assert sorted(month for result in results for month in result.dropped) == [name]


async def test_a_run_is_bounded(database: Database, ledger: Ledger) -> None:
    for number in range(MONTHS_MAX + 1):
        await make_month(ledger, 200 + 31 * number)
    service = Partitions(database, retention_days=DAYS)
    assert [len((await service.run_once()).dropped) for _ in range(3)] == [MONTHS_MAX, 1, 0]


async def test_what_may_still_be_charged_is_never_dropped(ledger: Ledger) -> None:
    for days in ("61", "NULL"):
        with pytest.raises(asyncpg.RaiseError, match="may still be charged"):
            await ledger.connection.fetch(f"SELECT usage_partition_drop({days})")
    assert await ledger.connection.fetchval("SELECT outcome FROM usage_partition_drop(62)") == "nothing"


async def test_partitions_of_coming_months_are_made(database: Database, ledger: Ledger) -> None:
    before = await partitions(ledger)
    await ledger.connection.execute(f"DROP TABLE {before[-1]}")
    for _ in range(2):
        await Partitions(database, retention_days=62).run_once()
        assert await partitions(ledger) == before
