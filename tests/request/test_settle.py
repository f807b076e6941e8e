"""Step 6. One settle or void, durable before anything is said of it, whatever happens to its caller and the ledger."""

import asyncio
from pathlib import Path

import orjson
import pytest

from gateway.core.journal_record import Record
from gateway.db.journal import Journal, JournalUnwritable
from gateway.request.admit import Offer
from gateway.request.authenticate import Principal
from gateway.request.hold import Hold
from gateway.request.meter import Charge, estimate, void
from gateway.request.settle import Settler, document
from gateway.tasks import spawn
from tests.support.gateway import MODEL, Farebox, farebox
from tests.support.ledger_proxy import ledger_proxy
from tests.support.offers import hold_of, offer_of
from tests.support.postgres import ScratchPostgres
from tests.support.shop import CREDIT_NANOS, Shop, connected, until
from tests.support.upstream import FakeUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHARGE = Charge(False, "reported", None, 90_000, 90, {"input": 10, "output": 20})


async def placed(running: Farebox) -> tuple[Offer, Hold]:
    """An offer and its open hold, as a call has them."""
    offer = offer_of(running.app.shelf)
    principal = Principal(running.wallet_id, running.key_id, None)
    return offer, await running.app.gateway.holds.place(principal, offer)


def settles(running: Farebox, outcome: str) -> float:
    value = running.app.metrics.registry.get_sample_value("farebox_settles_total", {"outcome": outcome})
    return value or 0.0


async def test_a_document_is_complete_in_itself() -> None:
    offer = offer_of()
    hold = hold_of(offer)
    shared = {"hold": "hold", "key": "key", "price": 1, "endpoint": "chat.completions", "upstream": "up0"}
    assert orjson.loads(document(offer, hold, CHARGE, "up0")) == {
        "op": "settle", **shared, "reason": None, "cost": 90, "picos": 90_000, "basis": "reported",
        "usage": {"input": 10, "output": 20},
    }  # fmt: skip
    assert orjson.loads(document(offer, hold, void("why"), "up0")) == {"op": "void", **shared, "reason": "why"}


async def test_a_settle_is_done_once_however_often_it_is_asked_for(shop: Shop) -> None:
    offer, hold = await placed(shop.farebox)
    settler = shop.farebox.app.gateway.settler
    receipts = await asyncio.gather(*(settler.settle(offer, hold, CHARGE, "up0") for _ in range(5)))
    assert {receipt.balance_nanos for receipt in receipts} == {CREDIT_NANOS - 90}
    assert {receipt.cost_nanos for receipt in receipts} == {90}
    assert (await settler.settle(offer, hold, void("late"), None)).balance_nanos == CREDIT_NANOS - 90
    event = await shop.event()
    assert (event["charged_nanos"], event["reason"]) == (90, None)
    assert shop.count("farebox_settles_total", outcome="settled") == 1
    assert shop.count("farebox_settles_total", outcome="already_settled") == 5
    assert shop.count("farebox_charged_nanos_total", model=MODEL) == shop.count("farebox_cost_nanos_total", model=MODEL)


async def test_a_void_is_final(shop: Shop) -> None:
    offer, hold = await placed(shop.farebox)
    settler = shop.farebox.app.gateway.settler
    receipt = await settler.settle(offer, hold, void("why"), None)
    assert receipt == (0, CREDIT_NANOS)
    await settler.settle(offer, hold, CHARGE, "up0")
    assert (await shop.event())["resolution"] == "voided"
    assert (await shop.farebox.wallet())["balance_nanos"] == CREDIT_NANOS


async def test_more_than_the_hold_is_charged_from_free_funds_and_counted(shop: Shop) -> None:
    _, key = await shop.farebox.new_wallet("0.000001")
    async with shop.farebox.chat(key) as response:
        assert response.headers["x-farebox-output-cap"] == "166"
    row = await shop.farebox.app.gateway.authenticator.authenticate(shop.farebox.headers(key), "peer")
    offer = offer_of(shop.farebox.app.shelf)
    hold = await shop.farebox.app.gateway.holds.place(row, offer)
    assert hold.granted_nanos == 910
    dear = Charge(False, "reported", None, 2_000_000, 2_000, {"output": 500})
    receipt = await shop.farebox.app.gateway.settler.settle(offer, hold, dear, "up0")
    assert receipt == (2_000, 0)
    event = (await shop.farebox.usage(hold.wallet_id))[0]
    assert (event["cost_nanos"], event["charged_nanos"], event["shortfall_nanos"]) == (2_000, 910, 1_090)
    assert shop.count("farebox_shortfall_nanos_total", model=MODEL) == 1_090
    assert shop.count("farebox_over_ceiling_total", model=MODEL) == 1
    assert shop.count("farebox_settles_total", outcome="settled_short") == 1


async def test_an_estimate_is_counted_by_its_reason(shop: Shop) -> None:
    offer, hold = await placed(shop.farebox)
    await shop.farebox.app.gateway.settler.timed(offer, hold, estimate(offer, hold, 5, "client_gone"), "up0")
    assert shop.count("farebox_estimates_total", reason="client_gone") == 1
    assert shop.count("farebox_settle_seconds_count") == 1


async def test_a_settle_whose_caller_is_cancelled_is_done(shop: Shop) -> None:
    """Before it was sent, on its way, and after."""
    settler = shop.farebox.app.gateway.settler
    for turns in range(1, 7):
        offer, hold = await placed(shop.farebox)
        settling = spawn(settler.settle(offer, hold, CHARGE, "up0"), name="a settle")
        for _ in range(turns):
            await asyncio.sleep(0)
        settling.cancel()
        await asyncio.gather(settling, return_exceptions=True)
        await settler.finished()
    assert [event["charged_nanos"] for event in await shop.farebox.usage()] == [90] * 6


# Without the ledger --------------------------------------------------------------------------------------------------


async def test_what_the_ledger_does_not_take_is_journaled(scratch: ScratchPostgres) -> None:
    dsn = await scratch.clone("settle_journal")
    async with (
        ledger_proxy(dsn) as proxy,
        FakeUpstream() as upstream,
        farebox(proxy.dsn, [upstream.base_url], lane_wait_seconds=0.1) as running,
    ):
        await connected(running)
        offer, hold = await placed(running)
        proxy.cut()
        settler, journal = running.app.gateway.settler, running.app.journal
        assert await settler.settle(offer, hold, CHARGE, "up0") == (90, None)
        assert (journal.records, settles(running, "journaled")) == (1, 1)
        # Known to be away: nobody waits for it now, and a settle that is cancelled is written down as well.
        assert running.app.lane.away
        again = spawn(settler.settle(offer, hold, CHARGE, "up0"), name="a settle")
        await asyncio.sleep(0)
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)
        await settler.finished()
        assert journal.records == 2
        records, damaged = journal.read_own()
        assert damaged == 0
        assert {record.document for record in records} == {document(offer, hold, CHARGE, "up0")}
        proxy.restore()
        await until(lambda: journal.records == 0)
        assert (await running.wallet())["balance_nanos"] == CREDIT_NANOS - 90
    await scratch.drop("settle_journal")


async def test_a_settle_whose_caller_leaves_while_the_ledger_goes_away_is_journaled(scratch: ScratchPostgres) -> None:
    """The lane gives up on what nobody waits for: somebody must."""
    dsn = await scratch.clone("settle_left")
    async with (
        ledger_proxy(dsn) as proxy,
        FakeUpstream() as upstream,
        farebox(proxy.dsn, [upstream.base_url], lane_wait_seconds=0.1) as running,
    ):
        offer, hold = await placed(running)
        proxy.cut()
        assert not running.app.lane.away
        settling = spawn(running.app.gateway.settler.settle(offer, hold, CHARGE, "up0"), name="a settle")
        await asyncio.sleep(0.01)
        settling.cancel()
        await asyncio.gather(settling, return_exceptions=True)
        assert settling.cancelled()
        await until(lambda: running.app.journal.records == 1)
        proxy.restore()
        await until(lambda: running.app.journal.records == 0)
        assert (await running.wallet())["balance_nanos"] == CREDIT_NANOS - 90
    await scratch.drop("settle_left")


async def test_without_ledger_and_journal_it_waits_for_the_ledger(scratch: ScratchPostgres) -> None:
    dsn = await scratch.clone("settle_patient")
    async with (
        ledger_proxy(dsn) as proxy,
        FakeUpstream() as upstream,
        farebox(proxy.dsn, [upstream.base_url], lane_wait_seconds=0.1) as running,
    ):
        await connected(running)
        offer, hold = await placed(running)
        full = Journal(Path(running.directory) / "full", bytes_max=10)
        full.open("full")
        settler = Settler(running.app.lane, full, running.app.metrics)
        proxy.cut()
        settling = spawn(settler.settle(offer, hold, CHARGE, "up0"), name="a settle")
        value = running.app.metrics.registry.get_sample_value
        await until(lambda: value("farebox_journal_failures_total") == 1)
        with pytest.raises(JournalUnwritable):
            await full.append(Record("wallet", "hold", b"{}"))
        await asyncio.sleep(0.2)
        assert not settling.done()
        proxy.restore()
        assert await settling == (90, None)
        assert (await running.wallet())["balance_nanos"] == CREDIT_NANOS - 90
        full.close()
    await scratch.drop("settle_patient")


async def test_a_settle_that_the_ledger_refuses_is_kept_for_a_person(shop: Shop) -> None:
    """A bug in what is asked: nothing is lost, and it is counted."""
    offer, hold = await placed(shop.farebox)
    settler = shop.farebox.app.gateway.settler
    bad = Charge(False, "no such basis", None, 90_000, 90, {})
    assert await settler.settle(offer, hold, bad, "up0") == (90, None)
    assert shop.count("farebox_crashes_total") == 1
    assert shop.farebox.app.journal.records == 1
    await settler.settle(offer, hold, CHARGE, "up0")
    assert (await shop.event())["charged_nanos"] == 90
    await until(lambda: shop.farebox.app.journal.records == 0)
    assert list((shop.farebox.directory / "journal").glob("*.damaged"))
