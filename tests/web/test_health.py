"""Liveness, readiness, health and metrics: red for each thing that is wrong, and green again after it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from gateway.core.journal_record import Record
from gateway.db.seals import LEAST_ID
from tests.support.gateway import Farebox, farebox
from tests.support.ledger_proxy import LedgerProxy, ledger_proxy
from tests.support.postgres import ScratchPostgres
from tests.support.rawhttp import exchange, request
from tests.support.refusals import check_envelope
from tests.support.shop import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

GATES = {"database", "lane", "journal_writable", "models", "not_stopping"}
CHECKS = GATES | {"journal_empty", "journal_whole", "invariants", "chain", "upstreams"}
House = tuple[Farebox, LedgerProxy]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(scratch: ScratchPostgres) -> AsyncIterator[House]:
    """A gateway whose database can be shut out."""
    dsn = await scratch.clone("health")
    async with (
        ledger_proxy(dsn) as proxy,
        farebox(proxy.dsn, ["http://127.0.0.1:1/v1"], lane_wait_seconds=0.1) as running,
    ):
        yield running, proxy
    await scratch.drop("health")


async def get(running: Farebox, path: str) -> tuple[int, dict[str, Any]]:
    async with running.session.get(running.ops_url + path) as response:
        return response.status, await response.json()


async def failing(running: Farebox) -> tuple[int, set[str]]:
    """The answer of /readyz, and what it says has failed."""
    status, document = await get(running, "/readyz")
    assert document["status"] == ("ok" if status == 200 else "unavailable")
    return status, set(document["failed"])


async def until_failing(running: Farebox, names: set[str]) -> None:
    async with asyncio.timeout(10):
        while await failing(running) != (503 if names else 200, names):
            await asyncio.sleep(0.02)


async def shut(running: Farebox, proxy: LedgerProxy) -> None:
    """The database is away, and a call has found out: a lane at rest asks nothing of it."""
    async with running.chat() as response:
        assert response.status == 502  # its key is known from here on
    proxy.cut()
    async with running.chat() as response:
        assert response.status == 503
    await until_failing(running, {"database", "lane"})


async def test_all_is_well(house: House) -> None:
    running, _ = house
    assert await failing(running) == (200, set())
    status, health = await get(running, "/healthz")
    assert (status, health["status"], set(health["checks"])) == (200, "ok", CHECKS)
    assert {check["status"] for check in health["checks"].values()} == {"ok"}
    assert all(check["detail"] for check in health["checks"].values())
    assert await get(running, "/livez") == (200, {"status": "ok"})


async def test_readiness_is_red_while_the_database_is_away_and_liveness_is_not(house: House) -> None:
    running, proxy = house
    await shut(running, proxy)
    status, health = await get(running, "/healthz")
    assert (status, health["checks"]["database"]) == (503, {"status": "failing", "detail": "cannot be reached"})
    assert set(health["checks"]) == CHECKS
    assert (await get(running, "/livez"))[0] == 200
    proxy.restore()
    await until_failing(running, set())


async def test_a_database_that_does_not_answer_is_away(house: House) -> None:
    running, proxy = house
    proxy.mute()
    async with asyncio.timeout(5):
        status, found = await failing(running)
    assert status == 503
    assert "database" in found
    proxy.restore()
    await until_failing(running, set())


async def test_readiness_is_red_while_the_journal_cannot_be_written(house: House) -> None:
    running, _ = house
    directory = running.app.journal._directory
    aside = directory.with_name("aside")
    directory.rename(aside)
    await asyncio.to_thread(running.app.journal.probe)
    assert await failing(running) == (503, {"journal_writable"})
    aside.rename(directory)
    await asyncio.to_thread(running.app.journal.probe)
    assert await failing(running) == (200, set())


async def test_readiness_is_red_while_the_gateway_stops(house: House) -> None:
    running, _ = house
    running.app.gateway.stopping = True
    try:
        assert await failing(running) == (503, {"not_stopping"})
    finally:
        running.app.gateway.stopping = False


async def test_readiness_is_red_without_a_model(house: House) -> None:
    running, _ = house
    shelf = running.app.shelf
    # The catalogue is read again whenever the watcher has reconnected, as it has after the tests above.
    put, running.app.catalogue._put = running.app.catalogue._put, lambda _: None
    running.app.shelf = type(shelf)([], [], [], {})
    try:
        assert await failing(running) == (503, {"models"})
    finally:
        running.app.catalogue._put = put
        running.app.shelf = shelf


async def test_drift_and_a_waiting_journal_are_ill_but_ready(house: House) -> None:
    """Calls can still be served exactly; a person is needed all the same."""
    running, proxy = house
    running.app.invariants.failing = {"accounts_sum_to_zero": 1}
    try:
        assert await failing(running) == (200, set())
        status, health = await get(running, "/healthz")
        assert (status, health["checks"]["invariants"]["detail"]) == (503, "accounts_sum_to_zero")
    finally:
        running.app.invariants.failing = {}
    running.app.chain.changed = {(LEAST_ID, 7): "entry"}
    try:
        assert await failing(running) == (200, set())
        status, health = await get(running, "/healthz")
        assert (status, health["checks"]["chain"]["detail"]) == (503, "1 places changed")
    finally:
        running.app.chain.changed = {}
    await shut(running, proxy)
    await running.app.journal.append(Record(running.wallet_id, running.wallet_id, b'{"op":"no such"}'))
    status, health = await get(running, "/healthz")
    assert health["checks"]["journal_empty"] == {"status": "failing", "detail": "1 records wait for replay"}
    proxy.restore()
    await until_failing(running, set())
    # Nothing like it can be replayed: it is set aside, for a person.
    await until(lambda: running.app.journal.records == 0)
    status, health = await get(running, "/healthz")
    assert health["checks"]["journal_whole"] == {"status": "failing", "detail": "1 files were set aside"}
    for path in running.app.journal.set_aside_files():
        path.unlink()


async def test_metrics_parse_and_are_fresh(house: House) -> None:
    running, _ = house
    running.app.metrics.journal_records.set(77)
    async with running.session.get(running.ops_url + "/metrics?format=any") as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        families = list(text_string_to_metric_families(await response.text()))
    values = {sample.name: sample.value for family in families for sample in family.samples}
    assert values["farebox_journal_records"] == running.app.journal.records
    assert values["farebox_lane_queue_operations"] == 0
    assert {"farebox_unsettled_calls", "farebox_build_info"} <= set(values)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "unknown_path"),
        ("GET", "/readyz/", 404, "unknown_path"),
        ("GET", "/v1/models", 404, "unknown_path"),
        ("POST", "/readyz", 405, "method_not_allowed"),
        ("DELETE", "/metrics", 405, "method_not_allowed"),
    ],
)
async def test_what_is_not_served_is_refused(house: House, method: str, path: str, status: int, code: str) -> None:
    reply = await exchange(house[0].app.ops_port, request(method, path))
    check_envelope(reply, status, code)
    assert ("Allow" in reply.headers) == (status == 405)


async def test_head_has_the_status_and_no_body(house: House) -> None:
    for path in ("/livez", "/readyz", "/healthz", "/metrics"):
        reply = await exchange(house[0].app.ops_port, request("HEAD", path, "Connection: close"))
        assert (reply.status, reply.body) == (200, b"")
