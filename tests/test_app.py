"""The whole, wired: it starts, says how it is, and leaves nothing behind, whatever fails on the way."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from gateway import tasks
from gateway.app import running
from gateway.clock import new_id
from gateway.db.journal import JournalUnwritable
from gateway.db.lanes import Operation
from gateway.db.pool import LedgerAway
from gateway.settings import Settings, UpstreamSettings
from gateway.web.server import bind
from tests.support.behaviours import Completion
from tests.support.call import Gate
from tests.support.gateway import MODEL, farebox
from tests.support.ledger_proxy import ledger_proxy
from tests.support.shop import until
from tests.support.upstream import FakeUpstream

UPSTREAMS = (UpstreamSettings(name="up0", base_url="http://127.0.0.1:1/v1", api_key=SecretStr("k")),)
SERVICES = {"sweep", "replay", "invariants", "catalogue", "held", "partitions"}


def settings_in(directory: Path, **changes: object) -> Settings:
    return Settings.model_validate({"port": 0, "ops_port": 0, "data_directory": directory, **changes})


async def test_every_service_runs_and_all_ends_with_the_context(database_url: str, tmp_path: Path) -> None:
    before = set(tasks._running)
    async with running(settings_in(tmp_path), database_url, upstreams=UPSTREAMS) as app:
        started = {task.get_name() for task in tasks._running - before}
        assert started >= SERVICES | {"lane", "watch", "watcher", "event loop lag", "journal guard"}
        value = app.metrics.registry.get_sample_value
        await until(lambda: all(value("farebox_upkeep_last_success_seconds", {"service": name}) for name in SERVICES))
        assert list((tmp_path / "journal").glob("*.journal"))
        ports = (app.port, app.ops_port)
    assert tasks._running <= before
    assert not list((tmp_path / "journal").iterdir())
    for port in ports:
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            await asyncio.open_connection("127.0.0.1", port)


@pytest.mark.parametrize("fault", ["port", "journal", "ledger"])
async def test_a_start_that_fails_leaves_nothing_behind(database_url: str, tmp_path: Path, fault: str) -> None:
    before = set(tasks._running)
    taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    changes: dict[str, object] = {}
    dsn, expected = database_url, (OSError, JournalUnwritable, LedgerAway)
    if fault == "port":
        changes["port"] = taken.sockets[0].getsockname()[1]
    elif fault == "journal":
        (tmp_path / "journal").write_text("in the way")
    else:
        dsn = "postgresql://127.0.0.1:1/none"
    with pytest.raises(expected):
        async with running(settings_in(tmp_path, **changes), dsn, upstreams=UPSTREAMS):
            raise AssertionError("it must not start")
    await asyncio.sleep(0)
    assert tasks._running <= before
    if fault != "journal":
        assert not list((tmp_path / "journal").iterdir())
    taken.close()
    await taken.wait_closed()


async def test_a_drain_ends_what_does_not_end_by_itself(database_url: str) -> None:
    """A call that is done in time is whole; one that is not is ended, settled, and told so."""
    gate = Gate()
    endless = Completion(output_tokens=10_000, pause_seconds=0.01)
    short = Completion(gate=gate, gate_at_event=3)
    async with FakeUpstream() as upstream, farebox(database_url, [upstream.base_url], stop_seconds=1.0) as gateway:
        upstream.next(endless, short)
        async with gateway.chat(stream=True) as long_one:
            await long_one.content.readany()
            async with gateway.chat(stream=True) as short_one:
                await gate.arrived()
                draining = tasks.spawn(gateway.app.drain(), name="drain")
                await asyncio.sleep(0.05)
                async with gateway.chat() as refused:
                    assert (refused.status, (await refused.json())["error"]["code"]) == (503, "stopping")
                gate.open()
                assert (await short_one.read()).endswith(b"data: [DONE]\n\n")
                assert b'"code":"stopping"' in await long_one.read()
        async with asyncio.timeout(2):
            await draining
        assert gateway.app.gateway.unsettled == 0
        assert {(event["reason"], event["basis"]) for event in await gateway.usage()} == {
            (None, "reported"),
            ("gateway_stopped", "estimated"),
        }


async def test_a_new_price_is_on_offer_at_once(database_url: str) -> None:
    """The database says so; the clock's own look comes every thirty seconds only."""
    async with FakeUpstream() as upstream, farebox(database_url, [upstream.base_url]) as gateway:
        await until(gateway.app.gateway.authenticator.hears)
        await asyncio.sleep(0.05)
        before = gateway.app.shelf
        async with gateway.app.database.connection() as connection:
            await connection.execute("SELECT pg_notify('farebox_prices', '')")
        await until(lambda: gateway.app.shelf is not before)
        assert gateway.app.shelf.count == before.count


async def test_one_of_many_leads_when_it_is_told_to(database_url: str, tmp_path: Path) -> None:
    """Who does not lead runs what concerns its own process only, and says nothing of the rest."""
    before = set(tasks._running)
    sockets = bind("127.0.0.1", 0)
    async with running(settings_in(tmp_path), database_url, upstreams=UPSTREAMS, sockets=sockets) as app:
        value = app.metrics.registry.get_sample_value

        def succeeded() -> set[str]:
            return {name for name in SERVICES if value("farebox_upkeep_last_success_seconds", {"service": name})}

        await until(lambda: succeeded() == {"replay", "catalogue"})
        for _ in range(2):
            await app.lead.take()
        await until(lambda: succeeded() == SERVICES)
        assert [task.get_name() for task in tasks._running - before].count("sweep") == 1
        for _ in range(2):
            await app.lead.leave()
        assert succeeded() == {"replay", "catalogue"}
        assert (app.port, app.ops_port) == (0, 0)
        _, writer = await asyncio.open_connection(*sockets[0].getsockname())
        await until(lambda: app.is_in_use)
        writer.close()
        await until(lambda: not app.is_in_use)
    assert tasks._running <= before


async def test_a_reload_takes_over_what_can_change_while_calls_are_served(database_url: str) -> None:
    gate = Gate()
    async with (
        FakeUpstream() as first,
        FakeUpstream() as second,
        farebox(database_url, [first.base_url], credit="1") as gateway,
    ):
        first.next(Completion(gate=gate, gate_at_event=3))
        async with gateway.chat(stream=True) as before:
            await gate.arrived()
            moved = gateway.app.catalogue.upstreams[0].model_copy(update={"base_url": second.base_url})
            changes = {"upstream": (moved,), "aliases": {"best": MODEL}, "calls_in_flight_max": 2, "port": 1}
            settings = gateway.app.settings.model_copy(update=changes)
            assert await gateway.app.reload(settings) == ["port"]
            async with gateway.chat(model="best") as after:
                assert after.status == 200
            gate.open()
            assert (await before.read()).endswith(b"data: [DONE]\n\n")
        assert (len(first.log), len(second.log)) == (1, 1)
        assert gateway.app.gateway.calls_in_flight_max == 2
        assert gateway.app.settings.port == 0
        assert await gateway.app.reload(gateway.app.settings) == []


async def test_the_ops_port_is_not_the_api(database_url: str) -> None:
    async with FakeUpstream() as upstream, farebox(database_url, [upstream.base_url]) as gateway:
        for url in (f"{gateway.ops_url}/v1/models", f"{gateway.base_url}/metrics"):
            async with gateway.session.get(url, headers=gateway.headers()) as response:
                assert response.status == 404


async def test_a_server_that_falls_silent_is_left_by_every_connection(database_url: str) -> None:
    """Such as a primary that is frozen: reads must not wait for it half a minute when the lane knows better."""
    settings: dict[str, Any] = {"lane_statement_seconds": 0.3, "lane_wait_seconds": 0.1}
    async with (
        ledger_proxy(database_url) as proxy,
        farebox(proxy.dsn, ["http://127.0.0.1:1/v1"], **settings) as gateway,
    ):
        database, lane = gateway.app.database, gateway.app.lane
        database._statement_seconds = 20.0
        await database.fetch("holds_summary")
        proxy.mute()
        reading = [asyncio.create_task(database.fetch("holds_summary")) for _ in range(4)]
        operation = Operation(gateway.wallet_id, new_id(), b'{"op":"void"}')
        with pytest.raises(LedgerAway):
            await lane.submit(operation)
        async with asyncio.timeout(8):  # 5 s for one that waits for a connection
            results = await asyncio.gather(*reading, return_exceptions=True)
        assert {type(result) for result in results} == {LedgerAway}
        proxy.restore()
        assert await database.fetch("holds_summary")
        await until(lambda: not lane.queued)
