"""Keys whose gateway died, or slept: taken over only once the first call can charge nothing any more."""

import asyncio
from typing import Any

import pytest

from gateway.clock import new_id
from gateway.db import idempotency
from gateway.db.lanes import Operation, Outcome
from gateway.errors import LedgerUnavailable
from gateway.request.authenticate import Principal
from gateway.request.idempotency import request_key
from gateway.request.meter import Charge
from gateway.request.settle import document
from tests.support.keyed import ask, change, charged
from tests.support.offers import offer_of
from tests.support.shop import EXACT, Shop

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def claim_of_a_dead_gateway(shop: Shop, key: str) -> tuple[str, Any]:
    """(hold id, offer) of a call that was claimed and never went on; it is not yet old."""
    offer, hold_id, app = offer_of(shop.farebox.app.shelf), new_id(), shop.farebox.app
    claimed = request_key(shop.farebox.wallet_id, "/chat/completions", {"Idempotency-Key": key}, offer.body)
    assert await idempotency.claim(app.database, claimed, hold_id, keep_seconds=3_600)
    return hold_id, offer


def principal(shop: Shop) -> Principal:
    return Principal(shop.farebox.wallet_id, shop.farebox.key_id, None)


async def test_a_claim_without_a_hold_is_taken_over_once_it_is_old(shop: Shop) -> None:
    hold_id, offer = await claim_of_a_dead_gateway(shop, "unplaced")
    assert (await ask(shop.farebox, "unplaced")).is_still_running
    await change(shop.farebox, "UPDATE idempotency_keys SET claimed_at = now() - interval '2 min' WHERE wallet_id = $1")
    assert (await ask(shop.farebox, "unplaced")).status == 200
    assert shop.count("farebox_idempotency_total", outcome="taken_over") == 1
    # The first gateway only slept: it can no longer begin.
    with pytest.raises(LedgerUnavailable):
        await shop.farebox.app.gateway.holds.place(principal(shop), offer, hold_id)
    assert len(shop.upstream.log) == 1
    assert await charged(shop.farebox) == [EXACT]


@pytest.mark.parametrize("checkpoint_nanos", [0, 40])
async def test_a_swept_call_is_taken_over_only_if_nothing_was_charged(shop: Shop, checkpoint_nanos: int) -> None:
    gateway, app = shop.farebox, shop.farebox.app
    hold_id, offer = await claim_of_a_dead_gateway(shop, "swept")
    hold = await app.gateway.holds.place(principal(shop), offer, hold_id)
    if checkpoint_nanos:
        usage = {"output": checkpoint_nanos // 4}
        app.gateway.holds.renew(hold, cost_picos=1_000 * checkpoint_nanos, cost_nanos=checkpoint_nanos, usage=usage)
    assert (await ask(gateway, "swept")).is_still_running
    await change(gateway, "UPDATE holds SET renewed_at = now() - interval '1 hour' WHERE wallet_id = $1")
    assert (await app.sweep.run_once()).expired == 1
    # A journaled settle of a gateway that lives may still be on its way.
    assert (await ask(gateway, "swept")).is_still_running
    await change(gateway, "UPDATE usage_events SET created_at = now() - interval '61 s' WHERE wallet_id = $1")
    again = await ask(gateway, "swept")
    # The first gateway only slept, and settles what it served.
    charge = Charge(False, "reported", None, 50_000, 50, {"input": 50})
    late = await app.lane.submit(Operation(gateway.wallet_id, hold_id, document(offer, hold, charge, "up0")))
    if checkpoint_nanos:
        assert (again.status, again.error["code"]) == (409, "idempotent_reply_lost")
        assert (late.outcome, await charged(gateway)) == (Outcome.SETTLED_LATE, [10, 40])
        return
    assert (again.status, late.outcome) == (200, Outcome.ALREADY_SETTLED)
    assert await charged(gateway) == [EXACT]


async def test_a_settle_without_a_kept_reply_is_waited_for_and_then_lost(shop: Shop) -> None:
    gateway, app = shop.farebox, shop.farebox.app
    hold_id, offer = await claim_of_a_dead_gateway(shop, "settled")
    hold = await app.gateway.holds.place(principal(shop), offer, hold_id)
    charge = Charge(False, "reported", None, 50_000, 50, {"input": 50})
    await app.gateway.settler.settle(offer, hold, charge, "up0")
    assert (await ask(gateway, "settled")).is_still_running
    await change(gateway, "UPDATE usage_events SET created_at = now() - interval '61 s' WHERE wallet_id = $1")
    assert (await ask(gateway, "settled")).error["code"] == "idempotent_reply_lost"
    assert await charged(gateway) == [50]
    assert not shop.upstream.log


async def test_takers_at_once_are_one(shop: Shop) -> None:
    await claim_of_a_dead_gateway(shop, "many")
    await change(shop.farebox, "UPDATE idempotency_keys SET claimed_at = now() - interval '2 min' WHERE wallet_id = $1")
    answers = await asyncio.gather(*(ask(shop.farebox, "many") for _ in range(12)))
    assert all(answer.status == 200 or answer.is_still_running for answer in answers)
    assert sum(answer.status == 200 and not answer.is_replayed for answer in answers) == 1
    assert len(shop.upstream.log) == 1
    assert await charged(shop.farebox) == [EXACT]
