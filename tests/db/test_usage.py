"""Usage events in bulk: each once, in order, whatever is written meanwhile."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from gateway.clock import new_id
from gateway.db.pool import Database, LedgerAway, Row
from gateway.db.streams import BATCH_ROWS
from gateway.db.usage import Wanted, began_at, export, least_id
from tests.support.ledger_operations import Ledger, id_at, open_ledger, settle, void


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[Ledger]:
    async with open_ledger(database_url) as opened:
        yield opened


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = Database(database_url)
    yield opened
    await opened.close()


async def exported(database: Database, wanted: Wanted) -> list[Row]:
    rows: list[Row] = []
    totals: list[int] = []
    done = await export(database, wanted, rows.extend, on_total=totals.append)
    assert [done] == totals == [len(rows)]
    return rows


async def test_calls_are_given_by_wallet_and_time_within_bounds(database: Database, ledger: Ledger) -> None:
    wallets = sorted([await ledger.wallet(1_000), await ledger.wallet(1_000)])
    noon = datetime.now(UTC).replace(microsecond=0) - timedelta(days=3)
    moments = [noon + timedelta(hours=hour) for hour in (-1, 0, 1, 2)]
    calls = {wallet: [id_at(moment) for moment in moments] for wallet in wallets}
    for wallet in wallets:
        await ledger.apply(wallet, *(settle(call, 3) for call in reversed(calls[wallet])))
    all_calls = [(wallet, call) for wallet in wallets for call in calls[wallet]]

    async def found(wanted: Wanted) -> list[tuple[str, str]]:
        return [(str(row["wallet_id"]), str(row["hold_id"])) for row in await exported(database, wanted)]

    assert await found(Wanted()) == all_calls
    assert await found(Wanted(wallets[1])) == all_calls[4:]
    assert await found(Wanted(wallets[0], since=moments[1])) == all_calls[1:4]
    assert await found(Wanted(wallets[0], moments[1], moments[3])) == all_calls[1:3]
    assert await found(Wanted(until=moments[0])) == []
    assert await found(Wanted(new_id())) == []
    assert [began_at(UUID(call)) for call in calls[wallets[0]]] == moments
    assert least_id(datetime(1900, 1, 1, tzinfo=UTC)).int == 0


async def test_an_export_is_one_snapshot(database: Database, database_url: str, ledger: Ledger) -> None:
    wallet = await ledger.wallet(100_000)
    count = BATCH_ROWS + 10
    for start in range(0, count, 500):
        await ledger.apply(wallet, *(void(new_id()) for _ in range(start, min(start + 500, count))))
    sizes: list[int] = []

    def write(rows: Sequence[Row]) -> None:
        sizes.append(len(rows))

    async def busy() -> None:
        other = await asyncpg.connect(database_url)
        await other.execute("UPDATE usage_events SET reason = 'other' WHERE wallet_id = $1", wallet)
        await other.close()

    def first_then_change(rows: Sequence[Row]) -> None:
        write(rows)
        assert {row["reason"] for row in rows} == {"upstream_refused"}

    await export(database, Wanted(wallet), first_then_change)
    await busy()
    assert sizes == [BATCH_ROWS, 10]
    assert {row["reason"] for row in await exported(database, Wanted(wallet))} == {"other"}


async def test_without_a_ledger_it_says_so() -> None:
    database = Database("postgresql://127.0.0.1:1/none")
    with pytest.raises(LedgerAway):
        await exported(database, Wanted())
    await database.close()
