"""The shelf follows the database: what is stored and in force by the clock, and nothing new while it is away."""

import asyncio
from datetime import timedelta

import pytest

from gateway.core.catalogue import Meter, Model
from gateway.db import prices
from gateway.db.pool import Database, LedgerAway
from gateway.request.admit import Shelf
from gateway.upkeep.catalogue import CatalogueRefresh
from tests.support.gateway import FREE_MODEL, MODEL, RATES, price_models
from tests.support.offers import ANYONE, upstream_of

DEARER = {**RATES, Meter.OUTPUT: 8_000}
LATER_SECONDS = 0.3


async def test_a_shelf_is_what_is_stored_and_in_force(database_url: str) -> None:
    database, shelves = Database(database_url), list[Shelf]()
    refresh = CatalogueRefresh(database, [upstream_of()], {"best": MODEL}, shelves.append)
    await refresh.run_once()
    assert shelves[-1].count == 0
    await price_models(database)
    later = await prices.database_now(database) + timedelta(seconds=LATER_SECONDS)
    await prices.save_models(database, [Model("unpriced", 100, 10)])
    await prices.add_prices(database, [prices.PriceVersion(MODEL, later, DEARER, (), "test")])
    await refresh.run_once()
    assert [name for name, _ in shelves[-1].names(ANYONE)] == ["best", FREE_MODEL, MODEL]
    found = shelves[-1].find(MODEL)
    assert found is not None
    assert found == shelves[-1].find("best")
    assert found[1].rates == RATES
    await asyncio.sleep(LATER_SECONDS + 0.05)
    await refresh.run_once()
    found = shelves[-1].find(MODEL)
    assert found is not None
    assert found[1].rates == DEARER
    await database.close()


async def test_other_upstreams_and_aliases_are_a_new_shelf(database_url: str) -> None:
    database, shelves = Database(database_url), list[Shelf]()
    await price_models(database)
    refresh = CatalogueRefresh(database, [upstream_of()], {"best": MODEL}, shelves.append)
    await refresh.serve([upstream_of(models=(MODEL,))], {"better": MODEL})
    assert [name for name, _ in shelves[-1].names(ANYONE)] == ["better", MODEL]
    await refresh.run_once()
    assert [name for name, _ in shelves[-1].names(ANYONE)] == ["better", MODEL]
    await database.close()


async def test_without_a_database_the_shelf_stays() -> None:
    database, shelves = Database("postgresql://127.0.0.1:1/none"), list[Shelf]()
    refresh = CatalogueRefresh(database, [upstream_of()], {}, shelves.append)
    with pytest.raises(LedgerAway):
        await refresh.run_once()
    with pytest.raises(LedgerAway):
        await refresh.serve([], {"new": MODEL})
    assert shelves == []
    assert (len(refresh.upstreams), refresh._aliases) == (1, {})
    await database.close()
