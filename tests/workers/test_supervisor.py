"""The supervisor: who serves where, who leads, and what it does with those that die, hang or cannot start.

The workers are stubs (tests/support/stub_worker.py); with real ones see tests/adversity/test_workers.py.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.metrics import Metrics
from gateway.settings import InvalidSettings, check
from gateway.web.health import Check
from gateway.workers import supervisor as module
from gateway.workers.process import Orders, Worker
from gateway.workers.supervisor import Supervisor, WorkerFailed, supervising
from tests.support import stub_worker
from tests.support.processes import eventually
from tests.workers.test_totals import samples

STUB = (sys.executable, stub_worker.__file__)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes seconds takes tenths here."""
    for name, seconds in {
        "BEAT_SECONDS": 0.05,
        "SCRAPE_SECONDS_MAX": 0.2,
        "STUCK_SECONDS": 0.5,
        "HURRY_SECONDS_MAX": 1.0,
    }.items():
        monkeypatch.setattr(module, name, seconds)


Make = Callable[..., Supervisor]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Supervisors over stubs; all are stopped at the end."""
    made: list[Supervisor] = []

    def one(**document: Any) -> Supervisor:
        supervisor = Supervisor(document, check(document), Orders({}, "dsn", ()), STUB, Metrics())
        made.append(supervisor)
        return supervisor

    yield one
    for supervisor in made:
        supervisor.hurry()
        await supervisor.stop()
        assert supervisor._workers == []


def serving(supervisor: Supervisor) -> list[Worker]:
    return [place.current for place in supervisor._places if place.current is not None]


async def all_serve(supervisor: Supervisor, workers: int) -> list[Worker]:
    await eventually(lambda: len(serving(supervisor)) == workers == len(supervisor._workers))
    return serving(supervisor)


async def metric(supervisor: Supervisor, name: str, **labels: str) -> float:
    return samples(await supervisor.exposition())[name, tuple(sorted(labels.items()))]


@pytest.mark.parametrize(("how", "code"), [("bad", 2), ("hung", -signal.SIGKILL)])
async def test_a_start_without_a_worker_fails(make: Make, monkeypatch: pytest.MonkeyPatch, how: str, code: int) -> None:
    monkeypatch.setattr(module, "START_SECONDS_MAX", 0.5 if how == "hung" else 20.0)
    supervisor = make(workers=3, top_up_url=how)
    with pytest.raises(WorkerFailed) as failed:
        await supervisor.start()
    assert failed.value.exit_code == code
    assert supervisor._workers == []


async def test_a_dead_worker_is_replaced_and_what_it_counted_stays(make: Make) -> None:
    supervisor = make(workers=2)
    await supervisor.start()
    first, second = await all_serve(supervisor, 2)
    assert await metric(supervisor, "farebox_calls_total") == 2 * stub_worker.CALLS
    second.send(signal.SIGKILL)
    await second.ended(within_seconds=5.0)
    assert await metric(supervisor, "farebox_calls_total") == 2 * stub_worker.CALLS
    assert [(c.name, c.passes) for c in await supervisor.checks()][:2] == [("workers", True), ("all_workers", False)]
    assert (await all_serve(supervisor, 2))[0] is first
    assert await metric(supervisor, "farebox_calls_total") == 3 * stub_worker.CALLS
    assert await metric(supervisor, "farebox_worker_restarts_total") == 1


async def test_a_worker_that_always_dies_is_started_ever_more_seldom(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays: list[float] = []
    timeout = asyncio.timeout

    def noted(seconds: float | None) -> asyncio.Timeout:
        if sys._getframe(1).f_code.co_name == "_keep":
            delays.append(seconds or 0.0)
            seconds = 0.0
        return timeout(seconds)

    monkeypatch.setattr(asyncio, "timeout", noted)
    monkeypatch.setattr(module, "BACK_OFF_SECONDS_MAX", 3.0)
    supervisor = make(workers=1, top_up_url="dies")
    await supervisor.start()
    await eventually(lambda: len(delays) >= 5)
    assert delays[:5] == [0.0, 1.0, 2.0, 3.0, 3.0]
    monkeypatch.setattr(asyncio, "timeout", timeout)
    assert await metric(supervisor, "farebox_worker_restarts_total") >= 5


async def test_one_worker_leads_and_one_that_hangs_does_not(make: Make) -> None:
    supervisor = make(workers=2)
    await supervisor.start()
    first, second = await all_serve(supervisor, 2)
    assert supervisor._lead is first
    assert (await supervisor.checks())[-2] == Check("lead", True, f"worker 0 (process {first.pid})", False)
    os.kill(first.pid, signal.SIGSTOP)
    await eventually(lambda: supervisor._lead is second)
    assert await metric(supervisor, "farebox_worker_up", worker="0") == 0
    assert await metric(supervisor, "farebox_workers", state="stuck") == 1
    assert await metric(supervisor, "farebox_calls_total") == 2 * stub_worker.CALLS
    os.kill(first.pid, signal.SIGCONT)
    await eventually(lambda: first.silent_seconds == 0.0)
    assert await heard(first) == "lead True, lead False"
    assert await heard(second) == "lead True"
    second.send(signal.SIGKILL)
    await eventually(lambda: supervisor._lead is first)


async def heard(worker: Worker) -> str:
    found = await worker.ask("checks", within_seconds=5.0)
    return str(found[0][2])


async def test_a_reload_replaces_every_worker_and_may_change_their_number(make: Make) -> None:
    supervisor = make(workers=2, port=1)
    await supervisor.start()
    before = await all_serve(supervisor, 2)
    document = {"workers": 3, "port": 2, "ops_host": "::1", "stop_seconds": 1.0}
    assert await supervisor.reload(document) == ["port", "ops_host"]
    after = await all_serve(supervisor, 3)
    assert not {*before} & {*after}
    assert {worker.exit_code for worker in before} == {0}
    assert supervisor._orders.settings == {"workers": 3, "port": 1, "stop_seconds": 1.0}
    assert await supervisor.reload({"port": 1}) == []
    await all_serve(supervisor, 1)
    assert supervisor._lead is serving(supervisor)[0]
    assert await metric(supervisor, "farebox_worker_restarts_total") == 0


@pytest.mark.parametrize("document", [{"top_up_url": "bad"}, {"port": -1}])
async def test_a_reload_that_cannot_be_changes_nothing(make: Make, document: dict[str, Any]) -> None:
    supervisor = make(workers=2)
    await supervisor.start()
    before = await all_serve(supervisor, 2)
    with pytest.raises((WorkerFailed, InvalidSettings)):
        await supervisor.reload({"workers": 2, **document})
    assert await all_serve(supervisor, 2) == before
    assert supervisor._orders.settings == {"workers": 2}


async def test_too_many_that_retire_are_drained(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETIRING_PER_WORKER_MAX", 1)
    supervisor = make(workers=1, top_up_url="stubborn")
    await supervisor.start()
    (oldest,) = await all_serve(supervisor, 1)
    told: list[signal.Signals] = []
    with monkeypatch.context() as patch:
        patch.setattr(oldest, "send", told.append)
        for _ in range(2):
            assert told == []
            await supervisor.reload({"top_up_url": "stubborn"})
            await eventually(lambda: supervisor._workers[-1] in serving(supervisor))
        assert told == [signal.SIGTERM]
    assert await metric(supervisor, "farebox_workers", state="retiring") == 2


async def test_a_stop_that_is_hurried_kills_what_does_not_end(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HURRY_SECONDS_MAX", 0.1)
    supervisor = make(workers=2, top_up_url="stubborn")
    await supervisor.start()
    workers = await all_serve(supervisor, 2)
    stopping = asyncio.create_task(supervisor.stop())
    await asyncio.sleep(0.2)
    assert not stopping.done()
    assert not next(found for found in await supervisor.checks() if found.name == "not_stopping").passes
    supervisor.hurry()
    await stopping
    assert {worker.exit_code for worker in workers} == {-signal.SIGKILL}


OK, AWAY = Check("database", True, "ok"), Check("database", False, "cannot be reached")
FULL = Check("journal_empty", False, "2 records wait for replay", gates_ready=False)
GONE = Check("worker", False, "does not answer")


@pytest.mark.parametrize(
    ("said", "ready", "detail"),
    [
        ([[OK], [OK]], True, "2 of 2 are ready"),
        ([[OK], [AWAY]], True, "1 of 2 are ready; 1: database cannot be reached"),
        ([[AWAY], [GONE]], False, "0 of 2 are ready; 0: database cannot be reached; 1: worker does not answer"),
        ([[OK, FULL], [OK]], True, "2 of 2 are ready"),
    ],
)
def test_ready_is_who_has_a_worker_that_is(said: list[list[Check]], ready: bool, detail: str) -> None:
    gate, every = module._workers_check(said)
    assert (gate.passes, gate.detail, gate.gates_ready) == (ready, detail, True)
    assert (every.passes, every.gates_ready) == (detail.startswith("2 of 2"), False)
    merged = {found.name: found for found in module._merged(said)}
    assert not any(found.gates_ready for found in merged.values())
    assert ("journal_empty" in merged) == (FULL in said[0])
    if FULL in said[0]:
        assert merged["journal_empty"] == Check("journal_empty", False, "0: 2 records wait for replay", False)


async def test_a_supervisor_has_both_ports_and_gives_them_back(tmp_path: Path) -> None:
    document = {"port": 0, "ops_port": 0, "data_directory": str(tmp_path)}
    async with supervising(document, "dsn", command=STUB, services=()) as supervisor:
        assert supervisor.port != supervisor.ops_port
        for port in (supervisor.port, supervisor.ops_port):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
        with pytest.raises(OSError, match="in use"):
            async with supervising(document | {"port": supervisor.port}, "dsn", command=STUB, services=()):
                raise AssertionError("the port is taken")
    with pytest.raises(OSError, match=r"refused|Connect call failed"):
        await asyncio.open_connection("127.0.0.1", supervisor.port)
