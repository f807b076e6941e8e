"""What is due is looked at, each by itself: one that fails keeps no other waiting."""

import asyncio

import pytest

from gateway.db import responses as store
from gateway.metrics import Metrics
from gateway.upkeep.background import ForgetResponses, LookAtBackground
from tests.support.responses_shop import EXACT, Shop, open_all_day, shop

__all__ = ["open_all_day", "shop"]

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def due_now(shop: Shop) -> None:
    async with shop.app.database.connection() as connection:
        await connection.execute("UPDATE response_owners SET look_at = now() WHERE look_at IS NOT NULL")


async def test_a_run_looks_at_all_that_is_due(shop: Shop) -> None:
    await shop.app.lead.leave()
    metrics = Metrics()
    service = LookAtBackground(shop.app.database, shop.app.gateway.kept.background, metrics, 1.0)
    made = [(await shop.made(background=True))["id"] for _ in range(3)]
    await due_now(shop)
    assert await service.run_once() == 0
    assert metrics.registry.get_sample_value("farebox_background_responses") == 3
    # One whose terms cannot be read is a bug, counted, and the others are settled.
    async with shop.app.database.connection() as connection:
        await connection.execute("UPDATE response_owners SET unsettled = '{}' WHERE response_id = $1", made[0])
    shop.upstream.finish()
    await due_now(shop)
    assert await service.run_once() == 2
    assert metrics.registry.get_sample_value("farebox_crashes_total") == 1
    assert metrics.registry.get_sample_value("farebox_background_responses") == 1
    assert [event["charged_nanos"] for event in await shop.running.usage(shop.wallet_id)] == [EXACT, EXACT]
    await asyncio.gather(*(service.run_once() for _ in range(3)))
    assert len(await shop.running.usage(shop.wallet_id)) == 2
    async with shop.app.database.connection() as connection:
        await connection.execute("UPDATE response_owners SET unsettled = NULL, look_at = NULL")


async def test_what_is_over_is_forgotten(shop: Shop) -> None:
    made = (await shop.made())["id"]
    assert await ForgetResponses(shop.app.database).run_once() == 0
    async with shop.app.database.connection() as connection:
        await connection.execute("UPDATE response_owners SET created_at = now() - interval '31 days'")
    assert await ForgetResponses(shop.app.database).run_once() >= 1
    assert await store.owner(shop.app.database, shop.wallet_id, made) is None
