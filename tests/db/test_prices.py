"""Models and prices: versions that are added and never changed."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import asyncpg
import pytest

from gateway.core.catalogue import InvalidPrice, Meter, Model, Rates, Tier
from gateway.db import prices
from gateway.db.pool import Database
from gateway.db.prices import PriceVersion

CHEAP: Rates = {Meter.INPUT: 1_000, Meter.OUTPUT: 4_000}
DEAR: Rates = {Meter.INPUT: 2_500_000, Meter.CACHED_INPUT: 0, Meter.CACHE_WRITE: 3_125_000, Meter.OUTPUT: 10**12}
TIERS = (Tier(200_000, {Meter.INPUT: 5_000_000}), Tier(272_000, CHEAP))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = Database(database_url)
    yield opened
    await opened.close()


@pytest.fixture
async def now(database: Database) -> datetime:
    """By the database's clock, which decides."""
    return await prices.database_now(database)


async def test_a_price_comes_back_as_it_was_given(database: Database, now: datetime) -> None:
    await prices.add_prices(
        database,
        [PriceVersion("b", now, DEAR, TIERS, "one", {"flex": 5_000}), PriceVersion("a", now, CHEAP, (), "two")],
    )
    cheap, dear = await prices.current(database)
    assert (cheap.model, cheap.rates, cheap.tiers, cheap.source) == ("a", CHEAP, (), "two")
    assert (dear.model, dear.rates, dear.tiers, dear.effective_from) == ("b", DEAR, TIERS, now)
    assert (dear.multipliers, cheap.multipliers) == ({"flex": 5_000}, {})
    assert dear.price_id != cheap.price_id


async def test_the_version_in_force_is_the_newest_that_has_begun(database: Database, now: datetime) -> None:
    hour = timedelta(hours=1)
    sources = {"old": now - 2 * hour, "older": now - 3 * hour, "next": now + hour}
    await prices.add_prices(
        database, [PriceVersion("m", since, CHEAP, (), source) for source, since in sources.items()]
    )
    assert [price.source for price in await prices.current(database)] == ["old"]
    # The same hour again: what was said last counts.
    await prices.add_prices(database, [PriceVersion("m", now - 2 * hour, DEAR, (), "corrected")])
    assert [price.source for price in await prices.current(database)] == ["corrected"]
    assert [price.source for price in await prices.history(database, "m", 9)] == ["next", "corrected", "old", "older"]
    assert [price.source for price in await prices.history(database, "m", 1)] == ["next"]
    assert await prices.history(database, "unknown", 9) == []


async def test_a_damaged_price_is_not_used(database: Database, database_url: str, now: datetime) -> None:
    await prices.add_prices(database, [PriceVersion("m", now, CHEAP, (), "test")])
    connection = await asyncpg.connect(database_url)
    for rates, tiers in (('{"input": -1}', "[]"), ('{"input": 1.5}', "[]"), ("{}", "[]"), ('{"input": 1}', "[{}]")):
        await connection.execute("UPDATE prices SET rates = $1, tiers = $2", rates, tiers)
        with pytest.raises(InvalidPrice):
            await prices.current(database)
    await connection.close()


async def test_models_are_updated_by_name(database: Database) -> None:
    first = [Model("b", 128_000, 16_384), Model("a", 1_000, 100, hidden_reasoning=True, owned_by="someone")]
    await prices.save_models(database, first)
    assert await prices.load_models(database) == [first[1], first[0]]
    born = (await prices.load_models(database))[0].created_at
    await prices.save_models(database, [Model("a", 2_000, 200)])
    changed = await prices.get_model(database, "a")
    assert changed == Model("a", 2_000, 200)
    assert changed is not None
    assert changed.created_at == born
    assert await prices.get_model(database, "c") is None
    with pytest.raises(asyncpg.CheckViolationError):
        await prices.save_models(database, [Model("c", 0, 1)])
