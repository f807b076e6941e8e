"""Owners are written down before anybody is told the id: many in a statement, and not for ever."""

import asyncio

import pytest

from gateway.clock import monotonic_seconds, new_id
from gateway.db import responses as store
from gateway.db.pool import Database
from gateway.db.responses import Owner
from gateway.metrics import Metrics
from gateway.request import owned as module
from gateway.request.owned import Owned
from tests.support.gateway import farebox
from tests.support.ledger_proxy import ledger_proxy
from tests.support.postgres import ScratchPostgres
from tests.support.responses_shop import EXACT, Shop, open_all_day, shop
from tests.support.responses_upstream import FakeResponses
from tests.support.shop import CREDIT_NANOS

__all__ = ["open_all_day", "shop"]

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_many_are_written_in_few_statements(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    own = store.own

    async def counted(database: Database, owners: list[Owner]) -> set[tuple[str, str]]:
        sizes.append(len(owners))
        return await own(database, owners)

    monkeypatch.setattr(store, "own", counted)
    ids = [f"resp_many_{number}" for number in range(600)]
    owners = [Owner(shop.wallet_id, name, "up0", new_id(), None) for name in [*ids, *ids[:5]]]
    assert all(await asyncio.gather(*map(shop.app.gateway.kept.owned.write_down, owners)))
    assert len(sizes) <= 5
    assert max(sizes) <= 256
    assert sum(sizes) == 605


async def test_while_the_ledger_is_away_nobody_waits_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_INSIST_SECONDS", 0.5)
    nowhere = Database("postgresql://nobody@127.0.0.1:1/nothing")
    metrics = Metrics()
    owned = Owned(nowhere, metrics, references="refuse")
    began = monotonic_seconds()
    assert not await owned.write_down(Owner(new_id(), "resp_1", "up0", new_id(), None))
    assert not await owned.write_down(Owner(new_id(), "resp_2", "up0", new_id(), {}))
    assert monotonic_seconds() - began < 5
    assert metrics.registry.get_sample_value("farebox_unowned_responses_total") == 2
    await owned.settled(Owner(new_id(), "resp_2", "up0", new_id(), {}))
    await nowhere.close()


async def test_references_may_be_allowed(scratch: ScratchPostgres) -> None:
    """For an upstream that serves one customer."""
    dsn = await scratch.clone("references")
    async with FakeResponses() as upstream, farebox(dsn, [upstream.base_url], unowned_references="allow") as running:
        shop = Shop(running, upstream, running.wallet_id, running.key)
        await shop.made(conversation="conv_1")
        await shop.resolved(EXACT, "reported", None)
    await scratch.drop("references")


async def test_what_cannot_be_written_down_does_not_work_on(
    scratch: ScratchPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger goes away while the upstream is asked: what would work in the background is cancelled, and is free."""
    monkeypatch.setattr(module, "_INSIST_SECONDS", 0.5)
    dsn = await scratch.clone("unwritten")
    async with (
        ledger_proxy(dsn) as proxy,
        FakeResponses() as upstream,
        farebox(proxy.dsn, [upstream.base_url], lane_wait_seconds=0.5) as running,
    ):
        shop = Shop(running, upstream, running.wallet_id, running.key)
        upstream.on_create = proxy.cut
        async with shop.post(background=True) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (503, "ledger_unavailable")
        assert upstream.asked("POST", "/cancel")
        upstream.on_create = None
        proxy.restore()
        async with asyncio.timeout(15):
            while (await shop.running.wallet(shop.wallet_id))["held_nanos"]:
                await asyncio.sleep(0.1)
        assert (await shop.running.wallet(shop.wallet_id))["balance_nanos"] == CREDIT_NANOS
    await scratch.drop("unwritten")
