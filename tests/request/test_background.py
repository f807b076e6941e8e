"""A response that works on when its call is over is settled once, by what it comes to, whoever sees that first."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from gateway.core.catalogue import Meter
from gateway.db import prices
from gateway.db import responses as store
from gateway.db.responses import Owner
from tests.support.gateway import MODEL, RATES, farebox
from tests.support.ledger_check import check_invariants
from tests.support.postgres import ScratchPostgres
from tests.support.responses import usage_json
from tests.support.responses_shop import BODY, EXACT, Shop, open_all_day, shop
from tests.support.responses_upstream import FakeResponses, Honest
from tests.support.shop import CREDIT_NANOS

__all__ = ["open_all_day", "shop"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = -(-len(orjson.dumps({**BODY, "background": True})) // 4)
# The body, 256 for the template, and all that the model may write.
CEILING = len(orjson.dumps({**BODY, "background": True, "max_output_tokens": 100})) + 256 + 4 * 100


async def begun(shop: Shop, **members: Any) -> str:
    made = await shop.made(background=True, **members)
    assert (made["status"], made["usage"]) == ("queued", None)
    wallet = await shop.running.wallet(shop.wallet_id)
    assert wallet["held_nanos"] > 0
    assert wallet["balance_nanos"] == CREDIT_NANOS
    return str(made["id"])


async def owner_of(shop: Shop, response_id: str) -> Owner:
    found = await store.owner(shop.app.database, shop.wallet_id, response_id)
    assert found is not None
    return found


async def look(shop: Shop, response_id: str) -> bool:
    """What the service does with one that is due."""
    return await shop.app.gateway.kept.background.look(await owner_of(shop, response_id))


async def execute(shop: Shop, statement: str) -> None:
    async with shop.app.database.connection() as connection:
        await connection.execute(statement, shop.wallet_id)


async def settled_by_itself(shop: Shop) -> None:
    async with asyncio.timeout(15):
        while not await shop.running.usage(shop.wallet_id):
            await asyncio.sleep(0.05)


async def test_it_is_settled_though_nobody_asks(shop: Shop) -> None:
    response_id = await begun(shop)
    shop.upstream.finish()
    await settled_by_itself(shop)
    await shop.resolved(EXACT, "reported", None)
    async with asyncio.timeout(5):
        while (await owner_of(shop, response_id)).unsettled is not None:
            await asyncio.sleep(0.05)


async def test_a_client_that_polls_sees_what_the_upstream_says(shop: Shop) -> None:
    response_id = await begun(shop)
    async with shop.get(response_id) as response:
        assert (await response.json())["status"] == "queued"
    assert await shop.running.usage(shop.wallet_id) == []
    shop.upstream.finish()
    async with shop.get(response_id) as response:
        assert (await response.json())["usage"] == usage_json(10, 20)
        # Settled before it was told, and not again.
        await shop.resolved(EXACT, "reported", None)
    async with shop.get(response_id) as response:
        assert response.status == 200
    assert not await look(shop, response_id) or (await owner_of(shop, response_id)).unsettled is None
    await shop.resolved(EXACT, "reported", None)


@pytest.mark.parametrize(
    ("end", "charge", "basis", "reason"),
    [
        ({"status": "incomplete"}, EXACT, "reported", None),
        ({"status": "failed"}, EXACT, "reported", None),
        ({"status": "cancelled"}, EXACT, "reported", None),
        ({"status": "failed", "usage": None, "output": []}, 0, "none", "background_failed"),
        ({"status": "cancelled", "usage": None, "output": []}, 0, "none", "background_cancelled"),
        # "Say something kind." are 19 bytes.
        ({"status": "failed", "usage": None}, PROMPT + 4 * 5, "estimated", "background_failed"),
        ({"status": "cancelled", "usage": None}, PROMPT + 4 * 5, "estimated", "background_cancelled"),
        ({"status": "completed", "usage": None}, PROMPT + 4 * 5, "estimated", "usage_missing"),
        ({"status": "completed", "usage": usage_json(10, -1)}, PROMPT + 4 * 5, "estimated", "usage_invalid"),
    ],
)
async def test_every_end_is_settled(
    shop: Shop, end: dict[str, Any], charge: int, basis: str, reason: str | None
) -> None:
    response_id = await begun(shop)
    assert not await look(shop, response_id), "it has not ended"
    shop.upstream.finish(**end)
    assert await look(shop, response_id)
    await shop.resolved(charge, basis, reason)


async def test_what_is_cancelled_is_charged_by_what_it_says_of_itself(shop: Shop) -> None:
    response_id = await begun(shop)
    async with shop.ask("POST", f"{response_id}/cancel") as response:
        assert (await response.json())["status"] == "cancelled"
    # Nothing is said of its usage yet: it is asked once more, and then it is free.
    assert await shop.running.usage(shop.wallet_id) == []
    assert await look(shop, response_id)
    await shop.resolved(0, "none", "background_cancelled")


async def test_what_was_streamed_before_it_is_cancelled_is_not_free(shop: Shop) -> None:
    shop.upstream.next(Honest(after_events=8, stall=True))
    seen = b""
    async with shop.post(background=True, stream=True) as response:
        while b"output_text.done" not in seen:
            seen += await response.content.readany()
        response_id = next(reversed(shop.upstream.kept))
        async with shop.ask("POST", f"{response_id}/cancel") as cancelled:
            assert cancelled.status == 200
    await settled_by_itself(shop)
    prompt = -(-len(orjson.dumps({**BODY, "background": True, "stream": True})) // 4)
    await shop.resolved(prompt + 4 * 5, "estimated", "background_cancelled")


@pytest.mark.parametrize("stream", [False, True])
async def test_what_was_read_before_it_is_cancelled_is_not_free(shop: Shop, stream: bool) -> None:
    response_id = await begun(shop)
    kept, end = shop.upstream.kept[response_id], shop.upstream.ends[response_id]
    shop.upstream.kept[response_id] = {**kept, "status": "in_progress", "output": [] if stream else end["output"]}
    async with shop.get(response_id, **({"stream": "true"} if stream else {})) as response:
        assert b"kind" in await response.read()
    shop.upstream.kept[response_id] = {**kept, "status": "cancelled", "output": []}
    assert await look(shop, response_id)
    await shop.resolved(PROMPT + 4 * 5, "estimated", "background_cancelled")


async def test_what_was_seen_of_a_cancelled_one_costs_what_its_upstream_costs(shop: Shop) -> None:
    response_id = await begun(shop)
    uplift = """UPDATE response_owners SET unsettled = jsonb_set(unsettled, '{bp}', '20000') WHERE wallet_id = $1"""
    await execute(shop, uplift)
    shop.upstream.finish(status="cancelled", usage=None)
    assert await look(shop, response_id)
    await shop.resolved(2 * (PROMPT + 4 * 5), "estimated", "background_cancelled")


async def test_nobody_may_delete_what_is_not_settled(shop: Shop) -> None:
    response_id = await begun(shop)
    async with shop.ask("DELETE", response_id) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (409, "response_unfinished")
    assert not shop.upstream.asked("DELETE")
    shop.upstream.finish()
    async with shop.ask("DELETE", response_id) as response:
        assert (await response.json())["deleted"] is True
    await shop.resolved(EXACT, "reported", None)


async def test_a_stream_that_sees_the_end_settles_it(shop: Shop) -> None:
    async with shop.post(background=True, stream=True) as response:
        assert b"response.completed" in await response.read()
    await shop.resolved(EXACT, "reported", None)
    assert (await owner_of(shop, next(reversed(shop.upstream.kept)))).unsettled is None


async def test_a_stream_that_breaks_leaves_it_working(shop: Shop) -> None:
    shop.upstream.next(Honest(after_events=4))
    async with shop.post(background=True, stream=True) as response:
        assert b"upstream_broke" in await response.read()
    assert await shop.running.usage(shop.wallet_id) == []
    assert (await shop.running.wallet(shop.wallet_id))["held_nanos"] > 0
    response_id = next(reversed(shop.upstream.kept))
    shop.upstream.finish()
    assert await look(shop, response_id)
    await shop.resolved(EXACT, "reported", None)


async def test_a_stream_that_runs_is_left_to_itself(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at meanwhile, it would be settled twice over: once in the ledger, but twice in what is counted."""
    monkeypatch.setattr(shop.app.gateway.holds, "_valid_seconds", 2)
    shop.upstream.next(Honest(pause_seconds=0.4))
    async with shop.post(background=True, stream=True) as response:
        await response.read()
    await shop.resolved(EXACT, "reported", None)
    assert not shop.upstream.asked("GET")


async def test_a_retry_is_answered_with_the_same_response(shop: Shop) -> None:
    bodies = []
    for _ in range(2):
        headers = {**shop.running.headers(shop.key), "Idempotency-Key": "again"}
        url, data = f"{shop.running.base_url}/responses", orjson.dumps({**BODY, "background": True})
        async with shop.running.session.post(url, data=data, headers=headers) as response:
            bodies.append(await response.read())
    assert bodies[0] == bodies[1]
    assert len(shop.upstream.asked("POST")) == 1
    shop.upstream.finish()
    assert await look(shop, orjson.loads(bodies[0])["id"])
    await shop.resolved(EXACT, "reported", None)


async def test_many_who_see_its_end_settle_it_once(shop: Shop) -> None:
    response_id = await begun(shop)
    shop.upstream.finish()
    owner = await owner_of(shop, response_id)

    async def asked() -> bool:
        async with shop.get(response_id) as response:
            return response.status == 200

    background = shop.app.gateway.kept.background
    results = await asyncio.gather(*(background.look(owner) for _ in range(5)), *(asked() for _ in range(5)))
    assert all(results)
    await shop.resolved(EXACT, "reported", None)


async def test_a_hold_that_was_swept_is_settled_late(shop: Shop) -> None:
    response_id = await begun(shop)
    await execute(shop, "UPDATE holds SET renewed_at = now() - interval '1 hour' WHERE wallet_id = $1")
    await shop.app.sweep.run_once()
    assert [event["reason"] for event in await shop.running.usage(shop.wallet_id)] == ["swept"]
    shop.upstream.finish()
    assert await look(shop, response_id)
    charged = [event["charged_nanos"] for event in await shop.running.usage(shop.wallet_id)]
    assert sorted(charged) == [0, EXACT]
    assert (await shop.running.wallet(shop.wallet_id))["balance_nanos"] == CREDIT_NANOS - EXACT


async def test_the_price_of_the_call_is_what_counts(shop: Shop) -> None:
    response_id = await begun(shop)
    dearer = prices.PriceVersion(MODEL, datetime.now(UTC), {Meter.INPUT: 9_000, Meter.OUTPUT: 9_000}, (), "test")
    await prices.add_prices(shop.app.database, [dearer])
    try:
        shop.upstream.finish()
        assert await look(shop, response_id)
        await shop.resolved(EXACT, "reported", None)
    finally:
        await prices.add_prices(shop.app.database, [dearer._replace(rates=RATES, effective_from=datetime.now(UTC))])
        await shop.app.catalogue.run_once()


OLD = "UPDATE response_owners SET created_at = now() - interval '2 days' WHERE wallet_id = $1"
LOST = "UPDATE response_owners SET created_at = now() - interval '2 minutes' WHERE wallet_id = $1"


async def test_what_never_ends_is_cancelled_and_charged_its_ceiling(shop: Shop) -> None:
    response_id = await begun(shop, max_output_tokens=100)
    await execute(shop, OLD)
    assert await look(shop, response_id)
    assert shop.upstream.asked("POST", "/cancel")
    await shop.resolved(CEILING, "estimated", "never_ended")


async def test_what_ends_as_it_is_cancelled_is_charged_by_its_usage(shop: Shop) -> None:
    response_id = await begun(shop)
    await execute(shop, OLD)
    shop.upstream.kept[response_id]["usage"] = usage_json(10, 20)
    assert await look(shop, response_id)
    await shop.resolved(EXACT, "reported", None)


async def test_what_its_upstream_lost_is_charged_its_ceiling(shop: Shop) -> None:
    response_id = await begun(shop, max_output_tokens=100)
    del shop.upstream.kept[response_id]
    assert not await look(shop, response_id), "it may only have begun"
    await execute(shop, LOST)
    assert await look(shop, response_id)
    await shop.resolved(CEILING, "estimated", "never_ended")


async def test_an_upstream_that_is_away_is_waited_for(shop: Shop) -> None:
    response_id = await begun(shop)
    await execute(shop, LOST)
    shop.upstream.finish()
    shop.upstream.is_down = True
    try:
        assert not await look(shop, response_id)
    finally:
        shop.upstream.is_down = False
    assert await look(shop, response_id)
    await shop.resolved(EXACT, "reported", None)


async def test_it_must_be_stored(shop: Shop) -> None:
    async with shop.post(background=True, store=False) as response:
        assert (await response.json())["error"]["param"] == "store"
    assert not shop.upstream.log


async def test_another_gateway_settles_what_one_began(scratch: ScratchPostgres) -> None:
    dsn = await scratch.clone("background_restart")
    try:
        async with FakeResponses() as upstream:
            # The first never looks, as if it had been killed.
            async with farebox(dsn, [upstream.base_url], background_look_seconds=3_600) as running:
                shop = Shop(running, upstream, running.wallet_id, running.key)
                response_id = await begun(shop)
            upstream.finish()
            async with farebox(dsn, [upstream.base_url], background_look_seconds=0.1) as running:
                shop = Shop(running, upstream, shop.wallet_id, shop.key)
                await settled_by_itself(shop)
                await shop.resolved(EXACT, "reported", None)
                async with shop.get(response_id) as response:
                    assert (await response.json())["status"] == "completed"
        await check_invariants(dsn)
    finally:
        await scratch.drop("background_restart")


async def test_a_response_that_says_it_is_not_done_is_in_the_background(shop: Shop) -> None:
    """Whether that was asked for or not."""
    shop.upstream.next(Honest({"status": "in_progress", "usage": None}))
    response_id = (await shop.made())["id"]
    assert await shop.running.usage(shop.wallet_id) == []
    shop.upstream.kept[response_id] |= {"status": "completed", "usage": usage_json(10, 20)}
    assert await look(shop, response_id)
    await shop.resolved(EXACT, "reported", None)
