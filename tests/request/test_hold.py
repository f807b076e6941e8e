"""Step 3. No money, no call: who may hold how much, what a refusal says, and what a lowered hold does to the call."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from gateway.clock import new_id
from gateway.core.money import format_nanos
from gateway.db import keys, wallets
from gateway.errors import Overloaded
from gateway.request.admit import Offer
from gateway.request.authenticate import Principal
from gateway.request.meter import void
from gateway.tasks import spawn
from tests.support.behaviours import Completion
from tests.support.call import Gate
from tests.support.gateway import FREE_MODEL, Farebox, farebox
from tests.support.ledger_proxy import LedgerProxy, ledger_proxy
from tests.support.offers import offer_of
from tests.support.postgres import ScratchPostgres
from tests.support.shop import EXACT, Shop, connected, open_shop, visit
from tests.support.upstream import FakeUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

# The prompt of the default call at its worst: 78 bytes, and 256 tokens of template.
PROMPT_MAX = 78 + 256


async def wallet_of(running: Farebox, nanos: int) -> tuple[str, str]:
    """(wallet id, key) of a wallet with so much."""
    return await running.new_wallet(format_nanos(nanos))


@pytest.mark.parametrize(
    ("funds", "members", "required", "affordable"),
    [
        (0, {}, PROMPT_MAX + 4 * 16, 0),
        (PROMPT_MAX + 4 * 16 - 1, {}, PROMPT_MAX + 4 * 16, 15),
        (PROMPT_MAX - 1, {}, PROMPT_MAX + 4 * 16, 0),
        (1_000, {"max_tokens": 200}, PROMPT_MAX + 17 + 4 * 200, 162),
        (1_000, {"max_tokens": 200, "n": 2}, PROMPT_MAX + 17 + 6 + 8 * 200, 80),
    ],
)
async def test_a_refusal_says_what_is_missing(
    shop: Shop, funds: int, members: dict[str, Any], required: int, affordable: int
) -> None:
    wallet_id, key = await wallet_of(shop.farebox, funds)
    async with shop.farebox.chat(key, **members) as response:
        error = (await response.json())["error"]
    assert (response.status, error["code"], error["type"]) == (402, "insufficient_funds", "insufficient_funds")
    assert error["required"] == format_nanos(required)
    assert error["available"] == format_nanos(funds)
    assert error["affordable_output_tokens"] == affordable
    assert str(affordable) in error["message"]
    # The SDKs must not try again by themselves.
    assert response.headers["x-should-retry"] == "false"
    assert "retry-after" not in response.headers
    assert not shop.upstream.log
    assert await shop.farebox.usage(wallet_id) == []
    assert (await shop.farebox.wallet(wallet_id))["held_nanos"] == 0
    assert shop.count("farebox_hold_decisions_total", outcome="insufficient_funds") == 1


async def test_a_refusal_says_where_to_top_up(scratch: ScratchPostgres) -> None:
    url = "https://pay.example.com/top-up"
    async with open_shop(scratch, "top_up", top_up_url=url) as opened, visit(opened) as shop:
        _, key = await wallet_of(shop.farebox, 1)
        async with shop.farebox.chat(key, stream=True) as response:
            assert response.headers["content-type"] == "application/json"
            error = (await response.json())["error"]
        assert error["top_up_url"] == url
        assert error["message"].endswith(f"top up at {url}.")


@pytest.mark.parametrize("member", ["max_tokens", "max_completion_tokens"])
async def test_a_cap_of_the_client_is_held_whole_or_refused(shop: Shop, member: str) -> None:
    body_extra = len(f',"{member}":100')
    for funds, status in ((PROMPT_MAX + body_extra + 400, 200), (PROMPT_MAX + body_extra + 399, 402)):
        _, key = await wallet_of(shop.farebox, funds)
        async with shop.farebox.chat(key, **{member: 100}) as response:
            assert response.status == status
            assert "x-farebox-output-cap" not in response.headers
    assert orjson.loads(shop.upstream.log[0].body)[member] == 100
    assert len(shop.upstream.log) == 1


@pytest.mark.parametrize(
    ("funds", "members", "cap"),
    [
        (PROMPT_MAX + 4 * 16, {}, 16),
        (PROMPT_MAX + 4 * 16 + 3, {}, 16),
        (PROMPT_MAX + 4 * 17, {}, 17),
        (1_000, {}, 166),
        (1_000, {"n": 2}, 82),
        (1_000, {"max_tokens": None}, 162),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_without_a_cap_the_hold_takes_what_there_is_and_lowers_the_cap(
    shop: Shop, funds: int, members: dict[str, Any], cap: int, stream: bool
) -> None:
    if stream:
        members, funds = {**members, "stream": True}, funds + len(',"stream":true')
    wallet_id, key = await wallet_of(shop.farebox, funds)
    gate = Gate()
    shop.upstream.next(Completion(output_tokens=500, gate=gate))
    call = spawn(shop.farebox.chat(key, **members).__aenter__(), name="a call")
    await gate.arrived()
    assert (await shop.farebox.wallet(wallet_id))["held_nanos"] == funds
    gate.open()
    response = await call
    await response.read()
    assert response.status == 200
    assert response.headers["x-farebox-output-cap"] == str(cap)
    sent = orjson.loads(shop.upstream.log[0].body)
    assert sent["max_completion_tokens"] == cap
    event = (await shop.farebox.usage(wallet_id))[0]
    assert event["charged_nanos"] == 10 + 4 * cap * members.get("n", 1) <= funds
    assert (await shop.farebox.wallet(wallet_id))["balance_nanos"] == funds - event["charged_nanos"]


async def test_a_lowered_cap_takes_the_name_that_the_upstream_reads(scratch: ScratchPostgres) -> None:
    async with open_shop(scratch, "cap_member", upstream={"cap_member": "max_tokens"}) as opened, visit(opened) as shop:
        _, key = await wallet_of(shop.farebox, 1_000)
        async with shop.farebox.chat(key) as response:
            assert response.headers["x-farebox-output-cap"] == "166"
        assert orjson.loads(shop.upstream.log[0].body)["max_tokens"] == 166


async def test_a_free_model_needs_no_money(shop: Shop) -> None:
    wallet_id, key = await wallet_of(shop.farebox, 0)
    async with shop.farebox.chat(key, model=FREE_MODEL) as response:
        assert (response.status, response.headers["x-farebox-cost"]) == (200, "0.00")
        assert "x-farebox-output-cap" not in response.headers
    event = (await shop.farebox.usage(wallet_id))[0]
    assert (event["resolution"], event["basis"], event["charged_nanos"]) == ("settled", "reported", 0)
    async with shop.farebox.chat(key) as response:
        assert response.status == 402


async def test_a_suspended_wallet_is_refused_and_reopened(shop: Shop) -> None:
    database = shop.farebox.app.database
    await wallets.set_status(database, shop.farebox.wallet_id, "suspended")
    for model in (FREE_MODEL, "test-model"):
        async with shop.chat(model=model) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (403, "wallet_suspended")
    await shop.untouched()
    await wallets.set_status(database, shop.farebox.wallet_id, "active")
    async with shop.chat() as response:
        assert response.status == 200


async def test_a_floor_is_credit(shop: Shop) -> None:
    wallet_id, key = new_id(), keys.make_key()
    database = shop.farebox.app.database
    await wallets.create(database, wallet_id, "credit", floor_nanos=1_000)
    await keys.create(database, key, new_id(), wallet_id, name="test")
    async with shop.farebox.chat(key) as response:
        assert (response.status, response.headers["x-farebox-balance"]) == (200, "-0.00000009")
    async with shop.farebox.chat(key, max_tokens=500) as response:
        assert (await response.json())["error"]["available"] == format_nanos(1_000 - EXACT)


async def test_nothing_is_risked_while_the_journal_cannot_be_written(shop: Shop) -> None:
    holds = shop.farebox.app.gateway.holds
    holds.usable = lambda: False
    try:
        async with shop.chat() as response:
            assert (response.status, (await response.json())["error"]["code"]) == (503, "ledger_unavailable")
    finally:
        holds.usable = lambda: True
    await shop.untouched()


# Without an answer ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def slow_ledger(scratch: ScratchPostgres, name: str, **settings: Any) -> AsyncIterator[tuple[LedgerProxy, Shop]]:
    """A shop whose ledger can be paused, and whose key is known already."""
    dsn = await scratch.clone(name)
    async with (
        ledger_proxy(dsn) as proxy,
        FakeUpstream() as upstream,
        farebox(proxy.dsn, [upstream.base_url], key_cache_seconds=3_600, **settings) as running,
    ):
        shop = Shop(running, upstream, dsn, {})
        await connected(running)
        while not running.app.gateway.authenticator.hears():
            await asyncio.sleep(0.01)
        async with running.session.get(f"{running.base_url}/models", headers=running.headers()) as response:
            assert response.status == 200
        yield proxy, shop
    await scratch.drop(name)


async def principal_of(shop: Shop) -> Principal:
    return await shop.farebox.app.gateway.authenticator.authenticate(shop.farebox.headers(), "peer")


async def test_a_hold_whose_caller_is_gone_is_undone(scratch: ScratchPostgres) -> None:
    async with slow_ledger(scratch, "abandoned") as (proxy, shop):
        proxy.mute()
        placing = spawn(shop.farebox.app.gateway.holds.place(await principal_of(shop), _priced(shop)), name="a hold")
        await asyncio.sleep(0.05)
        placing.cancel()
        await asyncio.gather(placing, return_exceptions=True)
        proxy.restore()
        event = await _first_event(shop)
        assert (event["resolution"], event["reason"]) == ("voided", "abandoned")
        assert await shop.farebox.open_holds() == 0


async def test_a_ledger_that_does_not_answer_is_a_503_and_the_hold_is_undone(scratch: ScratchPostgres) -> None:
    settings = {"lane_statement_seconds": 0.2, "lane_wait_seconds": 0.1}
    async with slow_ledger(scratch, "silent_ledger", **settings) as (proxy, shop):
        proxy.mute()
        async with shop.chat() as response:
            assert (response.status, response.headers["retry-after"]) == (503, "2")
        assert not shop.upstream.log
        proxy.restore()
        assert (await _first_event(shop))["reason"] == "abandoned"
        assert await shop.farebox.open_holds() == 0


async def test_a_full_lane_is_a_503(scratch: ScratchPostgres) -> None:
    async with slow_ledger(scratch, "full_lane", lane_queue_operations_max=1) as (proxy, shop):
        principal, offer, gateway = await principal_of(shop), _priced(shop), shop.farebox.app.gateway
        proxy.pause()
        waiting = []
        for _ in range(2):
            waiting.append(spawn(gateway.holds.place(principal, offer), name="a hold"))
            await asyncio.sleep(0.02)
        assert shop.farebox.app.lane.queued == 1
        with pytest.raises(Overloaded):
            await gateway.holds.place(principal, offer)
        proxy.restore()
        for hold in await asyncio.gather(*waiting):
            assert hold.granted_nanos == offer.ceiling.nanos
            await gateway.settler.settle(offer, hold, void("test"), None)


def _priced(shop: Shop) -> Offer:
    return offer_of(shop.farebox.app.shelf)


async def _first_event(shop: Shop) -> dict[str, Any]:
    async with asyncio.timeout(5):
        while not (events := await shop.farebox.usage()):
            await asyncio.sleep(0.02)
    return events[0]
