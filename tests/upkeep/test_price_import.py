from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest

from gateway.core.catalogue import InvalidPrice, Meter
from gateway.db import prices
from gateway.db.pool import Database
from gateway.settings import Settings
from gateway.upkeep.price_import import SET_BY_HAND, import_prices

OVERLAY = """
[model."a"]
context_tokens_max = 8192
rates = { input = "1", output = "2" }
[model."b"]
context_tokens_max = 8192
rates = { input = "3", output = "4" }
[model."c"]
unpriced = "not yet"
"""


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    await database.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings whose overlay has models a and b, and an unpriced c."""
    overlay = tmp_path / "overlay.toml"
    overlay.write_text(OVERLAY)
    return Settings(catalogue_overlay=overlay)


async def versions(database: Database, model: str) -> list[tuple[int, str]]:
    return [(price.rates[Meter.INPUT], price.source) for price in await prices.history(database, model, 10)]


async def test_an_import_adds_what_is_new_and_then_nothing(database: Database, settings: Settings) -> None:
    first = await import_prices(database, settings, providers=())
    added = {change.entry.model.name for change in first.added}
    assert {"a", "b"} <= added
    assert all(change.before is None for change in first.added)
    assert "c" in {skipped.name for skipped in first.skipped}
    second = await import_prices(database, settings, providers=())
    assert (second.added, second.unchanged, second.limits_changed) == ((), len(first.added), 0)
    assert len(await versions(database, "a")) == 1


async def test_an_import_adds_a_version_where_a_price_differs(database: Database, settings: Settings) -> None:
    await import_prices(database, settings, providers=())
    assert settings.catalogue_overlay is not None
    settings.catalogue_overlay.write_text(OVERLAY.replace('input = "1"', 'input = "1.5"'))
    result = await import_prices(database, settings, providers=())
    (change,) = result.added
    assert change.before is not None
    assert change.before.rates[Meter.INPUT] == 1_000_000
    assert [input_picos for input_picos, _ in await versions(database, "a")] == [1_500_000, 1_000_000]
    assert [price.rates[Meter.INPUT] for price in await prices.current(database) if price.model == "a"] == [1_500_000]


async def test_an_import_keeps_prices_set_by_hand(database: Database, settings: Settings) -> None:
    await import_prices(database, settings, providers=())
    by_hand = prices.PriceVersion("a", datetime.now(UTC), {Meter.INPUT: 9, Meter.OUTPUT: 9}, (), f"{SET_BY_HAND}me")
    await prices.add_prices(database, [by_hand])
    model = await prices.get_model(database, "a")
    assert model is not None
    await prices.save_models(database, [replace(model, context_tokens_max=77)])
    result = await import_prices(database, settings, providers=())
    assert (result.added, result.kept, result.limits_changed) == ((), ("a",), 0)
    assert (await versions(database, "a"))[0] == (9, f"{SET_BY_HAND}me")
    result = await import_prices(database, settings, providers=(), over_set_prices=True)
    assert ([change.entry.model.name for change in result.added], result.limits_changed) == (["a"], 1)
    assert (await versions(database, "a"))[0][0] == 1_000_000


async def test_a_dry_run_writes_nothing(database: Database, settings: Settings) -> None:
    result = await import_prices(database, settings, providers=(), dry_run=True)
    assert result.added
    assert await prices.current(database) == []
    assert await prices.load_models(database) == []


async def test_every_process_hears_of_changed_limits(database: Database, settings: Settings, database_url: str) -> None:
    await import_prices(database, settings, providers=())
    heard: list[object] = []
    listener = await asyncpg.connect(database_url)
    try:
        await listener.add_listener("farebox_prices", lambda *message: heard.append(message[3]))
        assert settings.catalogue_overlay is not None
        settings.catalogue_overlay.write_text(OVERLAY.replace("8192", "4096"))
        result = await import_prices(database, settings, providers=())
        assert (result.added, result.limits_changed) == ((), 2)
        await listener.fetchval("SELECT 1")
        assert heard == [""]
    finally:
        await listener.close()


async def test_a_bad_overlay_changes_nothing(database: Database, settings: Settings) -> None:
    assert settings.catalogue_overlay is not None
    settings.catalogue_overlay.write_text('[model."a"]\nrates = { input = "x" }\n')
    with pytest.raises(InvalidPrice):
        await import_prices(database, settings, providers=())
    assert await prices.current(database) == []
