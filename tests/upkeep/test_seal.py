"""The seal service brings every entry under a seal, and says where it cannot; the chain service finds what changed."""

import logging
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest

from gateway.core.seal import parse_head
from gateway.db.pool import Database
from gateway.db.queries import queries
from gateway.db.seals import Limits
from gateway.metrics import Metrics
from gateway.upkeep.seal import ChainService, Found, Sealed, SealService
from tests.support.ledger import Books, make_books
from tests.support.postgres import ScratchPostgres

AT_ONCE = Limits(entries_max=2, age_seconds=0.0)


@pytest.fixture
async def dsn(scratch: ScratchPostgres) -> AsyncIterator[str]:
    """A database of one's own to spoil."""
    yield await scratch.clone("upkeep_seal")
    await scratch.drop("upkeep_seal")


@pytest.fixture
async def connection(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    opened = await asyncpg.connect(dsn)
    yield opened
    await opened.close()


@pytest.fixture
async def books(connection: asyncpg.Connection) -> Books:
    return await make_books(connection)


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    opened = Database(dsn)
    yield opened
    await opened.close()


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"farebox_{name}", labels)


async def test_a_run_seals_all_that_is_due_and_says_its_head(
    database: Database, connection: asyncpg.Connection, books: Books
) -> None:
    metrics = Metrics()
    young = SealService(database, metrics, Limits(256, 3_600.0), interval_seconds=1)
    assert not await young.run_once()
    lag = value(metrics, "seal_lag_seconds")
    assert lag is not None
    assert 0 < lag < 60
    service = SealService(database, metrics, AT_ONCE, interval_seconds=1)
    sealed = await service.run_once()
    entries = await connection.fetchval("SELECT count(*) FROM ledger_entries")
    assert (sealed.entries, sealed.blocks, sealed.is_busy) == (entries, 3 + 1, False)
    number, digest = parse_head(sealed.head)
    assert await connection.fetchval("SELECT hash FROM ledger_heads WHERE head = $1", number) == digest
    assert value(metrics, "seal_lag_seconds") == 0
    assert value(metrics, "sealed_entries_total") == entries
    assert value(metrics, "seal_mismatches", kind="unsealable") == 0
    assert await service.run_once() == Sealed(0, 0, "")


async def test_while_another_gateway_seals_it_waits(
    database: Database, connection: asyncpg.Connection, books: Books
) -> None:
    service = SealService(database, Metrics(), AT_ONCE, interval_seconds=1)
    async with connection.transaction():
        await connection.fetch(queries()["head_lock"])
        assert await service.run_once() == Sealed(0, 0, "", is_busy=True)
    assert (await service.run_once()).blocks == 4


async def test_a_missing_entry_is_said_until_it_is_back(
    database: Database, connection: asyncpg.Connection, books: Books, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    service = SealService(database, metrics, AT_ONCE, interval_seconds=1)
    row = await connection.fetchrow(
        "DELETE FROM ledger_entries WHERE wallet_id = $1 AND seq = 2 RETURNING *", books.wallet_id
    )
    assert row is not None
    with caplog.at_level(logging.CRITICAL, "farebox.seal"):
        await service.run_once()
    assert [record.getMessage() for record in caplog.records] == ["entries cannot be sealed"]
    assert service.unsealable == {UUID(books.wallet_id): "seq 1 to 2: 1 entries"}
    assert value(metrics, "seal_mismatches", kind="unsealable") == 1
    await connection.copy_records_to_table("ledger_entries", records=[tuple(row)])
    await service.run_once()
    assert (service.unsealable, value(metrics, "seal_mismatches", kind="unsealable")) == ({}, 0)


async def test_a_changed_entry_is_found_and_said_until_it_is_mended(
    database: Database,
    connection: asyncpg.Connection,
    books: Books,
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = Metrics()
    await SealService(database, metrics, AT_ONCE, interval_seconds=1).run_once()
    service = ChainService(database, metrics, interval_seconds=1, blocks=3)
    assert [await service.run_once() for _ in range(3)] == [Found(3, 0), Found(1, 0), Found(0, 0)]
    change = "UPDATE ledger_entries SET actor = $2 WHERE wallet_id = $1 AND seq = 1"
    await connection.execute(change, books.wallet_id, "somebody else")
    with caplog.at_level(logging.CRITICAL, "farebox.seal"):
        assert [await service.run_once() for _ in range(3)] == [Found(3, 1), Found(1, 0), Found(0, 0)]
    assert [record.getMessage() for record in caplog.records] == ["sealed entries have changed"]
    assert list(service.changed) == [(UUID(books.wallet_id), 1)]
    assert value(metrics, "seal_mismatches", kind="changed") == 1
    await connection.execute(change, books.wallet_id, "test")
    for _ in range(3):
        await service.run_once()
    assert (service.changed, value(metrics, "seal_mismatches", kind="changed")) == ({}, 0)
