"""The sweep resolves holds whose gateway died, and no others: charged what was checkpointed, the rest released."""

import orjson
import pytest

from gateway.db.lanes import LaneFull, Operation, Outcome
from gateway.db.pool import Database, LedgerAway
from gateway.request.authenticate import Principal
from gateway.request.hold import Hold
from gateway.request.meter import void
from gateway.upkeep.sweep import BATCH, Sweep, Swept
from tests.support.offers import offer_of
from tests.support.shop import CREDIT_NANOS, Shop

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def placed(shop: Shop, *, checkpoint_nanos: int = 0) -> Hold:
    gateway = shop.farebox.app.gateway
    hold = await gateway.holds.place(
        Principal(shop.farebox.wallet_id, shop.farebox.key_id, None), offer_of(shop.farebox.app.shelf)
    )
    if checkpoint_nanos:
        usage = {"output": checkpoint_nanos // 4}
        gateway.holds.renew(hold, cost_picos=checkpoint_nanos * 1_000, cost_nanos=checkpoint_nanos, usage=usage)
        # The same hold once more comes after its checkpoint, and is not due.
        expire = Operation(hold.wallet_id, hold.hold_id, orjson.dumps({"op": "expire", "hold": hold.hold_id}))
        assert (await shop.farebox.app.lane.submit(expire)).outcome is Outcome.HOLD_NOT_DUE
    return hold


async def age(shop: Shop, hold: Hold, seconds: float) -> None:
    """As if the hold had been renewed so long ago."""
    async with shop.farebox.app.database.connection() as connection:
        changed = await connection.execute(
            "UPDATE holds SET renewed_at = now() - make_interval(secs => $2) WHERE hold_id = $1", hold.hold_id, seconds
        )
        assert changed == "UPDATE 1"


@pytest.mark.parametrize("checkpoint_nanos", [0, 40])
async def test_a_due_hold_is_charged_its_checkpoint_and_released(shop: Shop, checkpoint_nanos: int) -> None:
    valid_seconds = shop.farebox.app.settings.hold_valid_seconds
    hold = await placed(shop, checkpoint_nanos=checkpoint_nanos)
    sweep = shop.farebox.app.sweep
    await age(shop, hold, 2 * valid_seconds - 5)
    assert await sweep.run_once() == Swept(0, 0)
    assert (await shop.farebox.wallet())["held_nanos"] == hold.granted_nanos
    await age(shop, hold, 2 * valid_seconds)
    assert await sweep.run_once() == Swept(1, 1)
    event = await shop.event()
    assert (event["resolution"], event["charged_nanos"]) == ("expired", checkpoint_nanos)
    wallet = await shop.farebox.wallet()
    assert (wallet["balance_nanos"], wallet["held_nanos"]) == (CREDIT_NANOS - checkpoint_nanos, 0)
    assert await sweep.run_once() == Swept(0, 0)
    assert shop.count("farebox_swept_holds_total") == 1


async def test_a_batch_is_bounded_and_only_the_due_are_in_it(shop: Shop) -> None:
    due = [await placed(shop) for _ in range(3)]
    running = await placed(shop)
    for hold in due:
        await age(shop, hold, 1_000)
    found = await shop.farebox.app.database.fetch("holds_due", 2)
    assert len(found) == 2 < BATCH
    assert await shop.farebox.app.sweep.run_once() == Swept(3, 3)
    assert (await shop.farebox.wallet())["held_nanos"] == running.granted_nanos
    await shop.farebox.app.gateway.settler.settle(offer_of(shop.farebox.app.shelf), running, void("test"), None)


async def test_a_declined_hold_is_cleared_away_and_is_no_call_that_died(shop: Shop) -> None:
    """An operator who sees swept holds looks for a gateway that was killed; a wallet without funds is none."""
    _, key = await shop.farebox.new_wallet("0")
    async with shop.farebox.chat(key) as response:
        assert response.status == 402
    async with shop.farebox.app.database.connection() as connection:
        changed = await connection.execute("UPDATE holds SET renewed_at = now() - interval '1 hour'")
        assert changed == "UPDATE 1"
        assert await connection.fetchval("SELECT state FROM holds") == "declined"
    assert await shop.farebox.app.sweep.run_once() == Swept(1, 0)
    assert await shop.farebox.app.sweep.run_once() == Swept(0, 0)
    assert shop.count("farebox_swept_holds_total") == 0


async def test_calls_come_first_in_a_full_lane(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = await placed(shop)
    await age(shop, hold, 1_000)
    with monkeypatch.context() as patched:
        patched.setattr(shop.farebox.app.lane, "_queue_operations_max", 0)
        with pytest.raises(LaneFull):
            shop.farebox.app.lane.submit(Operation(hold.wallet_id, hold.hold_id, b"{}"))
        assert await shop.farebox.app.sweep.run_once() == Swept(1, 0)
    assert await shop.farebox.app.sweep.run_once() == Swept(1, 1)


async def test_without_a_ledger_it_says_so(shop: Shop) -> None:
    database = Database("postgresql://127.0.0.1:1/none")
    sweep = Sweep(database, shop.farebox.app.lane, shop.farebox.app.metrics, interval_seconds=1)
    with pytest.raises(LedgerAway):
        await sweep.run_once()
    await database.close()
