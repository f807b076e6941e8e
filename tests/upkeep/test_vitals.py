"""What operators watch: it says what the books say, loudly where they do not balance."""

import logging
from collections.abc import AsyncIterator

import asyncpg
import pytest

from gateway.db.pool import Database
from gateway.db.queries import invariants
from gateway.metrics import Metrics
from gateway.upkeep.vitals import Drift, HeldGauges, Invariants
from tests.support.ledger import make_books, make_price, make_wallet, place_hold

BALANCE, SUM = "balance_is_the_sum_of_entries", "accounts_sum_to_zero"


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    opened = await asyncpg.connect(database_url)
    yield opened
    await opened.close()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = Database(database_url)
    yield opened
    await opened.close()


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"farebox_{name}", labels)


async def test_what_is_held_is_shown(database: Database, connection: asyncpg.Connection) -> None:
    metrics = Metrics()
    gauges = HeldGauges(database, metrics)
    await gauges.run_once()
    assert [value(metrics, name) for name in ("open_holds", "held_nanos", "oldest_open_hold_seconds")] == [0, 0, 0]
    price = await make_price(connection)
    old, _ = [await place_hold(connection, await make_wallet(connection), price, nanos) for nanos in (300, 40)]
    await connection.execute("UPDATE holds SET renewed_at = now() - interval '50 seconds' WHERE hold_id = $1", old)
    await gauges.run_once()
    assert (value(metrics, "open_holds"), value(metrics, "held_nanos")) == (2, 340)
    oldest = value(metrics, "oldest_open_hold_seconds")
    assert oldest is not None
    assert 50 <= oldest < 60


async def test_drift_is_counted_named_and_over_once_it_is_mended(
    database: Database, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    service = Invariants(database, metrics, interval_seconds=1)
    books = await make_books(connection)
    assert not await service.run_once()
    assert {name: value(metrics, "invariant_failures", invariant=name) for name in invariants()} == dict.fromkeys(
        invariants(), 0
    )
    drift = "UPDATE wallets SET balance_nanos = balance_nanos + $2 WHERE wallet_id = $1"
    await connection.execute(drift, books.wallet_id, 7)
    with caplog.at_level(logging.CRITICAL, "farebox.vitals"):
        assert await service.run_once() == Drift({BALANCE: 1, SUM: 1}) == Drift(service.failing)
    assert [record.getMessage() for record in caplog.records] == ["the ledger has drifted"]
    assert value(metrics, "invariant_failures", invariant=BALANCE) == 1
    await connection.execute(drift, books.wallet_id, -7)
    assert not await service.run_once()
    assert (service.failing, value(metrics, "invariant_failures", invariant=BALANCE)) == ({}, 0)
