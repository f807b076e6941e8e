"""Models and versioned prices, stored and read whole."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import NamedTuple

import orjson

from gateway.core.catalogue import (
    Model,
    Price,
    Rates,
    Tier,
    multipliers_from_json,
    rates_from_json,
    rates_to_json,
    tiers_from_json,
    tiers_to_json,
)
from gateway.db.pool import Database, Row

NO_MULTIPLIERS: Mapping[str, int] = MappingProxyType({})


def price_from_row(row: Row) -> Price:
    """A stored price. Raises InvalidPrice if it was damaged."""
    return Price(
        price_id=row["price_id"],
        model=row["model"],
        effective_from=row["effective_from"],
        source=row["source"],
        rates=rates_from_json(orjson.loads(row["rates"])),
        tiers=tiers_from_json(orjson.loads(row["tiers"])),
        multipliers=multipliers_from_json(orjson.loads(row["multipliers"])),
    )


async def save_models(database: Database, models: Sequence[Model]) -> None:
    """Insert or update models by name."""
    await database.fetch(
        "model_upsert",
        [model.name for model in models],
        [model.context_tokens_max for model in models],
        [model.output_tokens_max for model in models],
        [model.hidden_reasoning for model in models],
        [model.owned_by for model in models],
    )


def _model_from_row(row: Row) -> Model:
    return Model(
        name=row["model"],
        context_tokens_max=row["context_tokens_max"],
        output_tokens_max=row["output_tokens_max"],
        hidden_reasoning=row["hidden_reasoning"],
        owned_by=row["owned_by"],
        created_at=row["created_at"],
    )


async def load_models(database: Database) -> list[Model]:
    """Every model, by name."""
    return [_model_from_row(row) for row in await database.fetch("model_list")]


async def get_model(database: Database, name: str) -> Model | None:
    """One model, or None."""
    row = await database.fetch_one("model_get", name)
    return _model_from_row(row) if row is not None else None


class PriceVersion(NamedTuple):
    """A version that has no id yet."""

    model: str
    effective_from: datetime
    rates: Rates
    tiers: tuple[Tier, ...]
    source: str
    multipliers: Mapping[str, int] = NO_MULTIPLIERS


async def add_prices(database: Database, prices: Sequence[PriceVersion]) -> None:
    """Add versions, and tell every process."""
    await database.fetch(
        "price_add",
        [one.model for one in prices],
        [one.effective_from for one in prices],
        [orjson.dumps(rates_to_json(one.rates)).decode() for one in prices],
        [orjson.dumps(tiers_to_json(one.tiers)).decode() for one in prices],
        [orjson.dumps(dict(one.multipliers)).decode() for one in prices],
        [one.source for one in prices],
    )
    await tell_changed(database)


async def tell_changed(database: Database) -> None:
    """Tell every process that prices or models changed."""
    await database.fetch("prices_changed")


async def database_now(database: Database) -> datetime:
    """The clock that decides which price is in force."""
    row = await database.fetch_one("database_now")
    assert row is not None
    now: datetime = row["now"]
    return now


async def current(database: Database) -> list[Price]:
    """The version of each model's price in force now, by the database's clock."""
    return [price_from_row(row) for row in await database.fetch("price_current")]


async def history(database: Database, model: str, count: int) -> list[Price]:
    """A model's versions, newest first."""
    return [price_from_row(row) for row in await database.fetch("price_history", model, count)]


async def by_ids(database: Database, price_ids: Sequence[int]) -> list[Price]:
    """These versions, in no order."""
    return [price_from_row(row) for row in await database.fetch("prices_by_ids", list(price_ids))]
