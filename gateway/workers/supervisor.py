"""The supervisor: keeps N workers serving one port, replaces those that die, and speaks for all of them.

The port is one socket that listens, made here and inherited by every worker: what waits to be accepted belongs to all,
so that no connection is lost with a worker. Settings reach a worker over its link, not from the file: a worker that is
started again does as its neighbours do, whatever the file says by now.
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from gateway.clock import monotonic_seconds
from gateway.metrics import CrewMetrics, Metrics
from gateway.settings import Settings, check
from gateway.tasks import spawn, stop
from gateway.upkeep.service import Service, run_forever
from gateway.web.health import Check, ops_handler
from gateway.web.server import Listener, bind
from gateway.workers.process import NoAnswer, Orders, Worker, launch
from gateway.workers.totals import Totals, snapshot

_log = logging.getLogger("farebox.workers")

START_SECONDS_MAX = 60.0
# Restarts of one worker: the first at once, then doubling; a worker that lived for a minute is forgiven.
BACK_OFF_SECONDS, BACK_OFF_SECONDS_MAX = 0.5, 30.0
FORGIVEN_SECONDS = 60.0
BEAT_SECONDS = 1.0
SCRAPE_SECONDS_MAX = 1.5
CHECKS_SECONDS_MAX = 3.0  # the check of the database takes up to two
STUCK_SECONDS = 2.0
# Replaced workers that still serve their last streams, for each worker; the oldest are drained beyond that.
RETIRING_PER_WORKER_MAX = 4
# What a worker needs beyond stop_seconds to close its lane and its journal.
CLOSING_SECONDS_MAX = 20.0
HURRY_SECONDS_MAX = 5.0
# The supervisor holds these, so that no worker can be given others.
NEEDS_RESTART = ("host", "port", "ops_host", "ops_port", "data_directory", "database_url")


class WorkerFailed(Exception):
    """A worker did not come to serve; it has said why on standard error."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"a worker could not start with it (exit code {exit_code})")
        self.exit_code = exit_code


class _Place:
    """One of the N places: who serves there, and whether somebody else should."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.current: Worker | None = None
        self.starting: Worker | None = None
        self.offered: Worker | None = None
        self.is_old = False
        self.failures = 0
        self.woken = asyncio.Event()
        self.tried = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class Supervisor:
    """`document` are the settings as they were read, `settings` the same, checked."""

    def __init__(
        self, document: Mapping[str, Any], settings: Settings, orders: Orders, command: Sequence[str], metrics: Metrics
    ) -> None:
        self._settings = settings
        self._orders = replace(orders, settings=document)
        self._command = command
        self._metrics = metrics
        self._crew = CrewMetrics(metrics.registry)
        self._totals = Totals()
        self._places: list[_Place] = []
        self._workers: list[Worker] = []  # every process that lives, the oldest first
        self._lead: Worker | None = None
        self._beats: asyncio.Task[None] | None = None
        self._hurried = False
        self._moved = asyncio.Event()
        self.stopping = False
        self.port = 0
        self.ops_port = 0

    async def start(self) -> None:
        """Return when the first worker serves; the others follow. Raises WorkerFailed, with none left behind."""
        first = await self._launch(0, self._orders)
        await self._must_serve(first)
        self._beats = spawn(self._beat(), name="beats")
        self._resize(self._settings.workers)
        self._offer(self._places[0], first)

    async def reload(self, document: Mapping[str, Any]) -> list[str]:
        """Replace every worker, one after the other, by one with these settings; no call is dropped.

        Returns the names of changed settings that need a restart, and stay as they were. Raises InvalidSettings, and
        WorkerFailed where not even the first serves: then nothing has changed.
        """
        asked = check(document)
        names = [name for name in NEEDS_RESTART if getattr(asked, name) != getattr(self._settings, name)]
        document = {name: value for name, value in document.items() if name not in NEEDS_RESTART}
        document |= {n: self._orders.settings[n] for n in NEEDS_RESTART if n in self._orders.settings}
        orders = replace(self._orders, settings=document)
        first = await self._launch(0, orders)
        await self._must_serve(first)
        self._orders, self._settings = orders, check(document)
        self._offer(self._places[0], first)
        before = self._places[1:]
        self._resize(self._settings.workers)
        for place in before:
            if place in self._places:
                place.is_old = True
                place.tried.clear()
                place.woken.set()
                # Whether it served or not: the place tries on by itself, and serves as before until then.
                await place.tried.wait()
        return names

    def hurry(self) -> None:
        """End every call now, and shortly after it every worker."""
        for worker in self._workers:
            worker.hurry()
        self._hurried = True
        self._moved.set()

    async def stop(self) -> None:
        """Let calls end as a single gateway would, and return when no worker is left."""
        self.stopping = True
        if self._beats is not None:
            await stop(self._beats)
        for place in self._places:
            if place.task is not None:
                await stop(place.task)
        for worker in self._workers:
            worker.send(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.stop_seconds + CLOSING_SECONDS_MAX):
                while self._workers and not self._hurried:
                    self._moved.clear()
                    await self._moved.wait()
        within_seconds = HURRY_SECONDS_MAX if self._hurried else 0.0
        await asyncio.gather(*(worker.ended(within_seconds=within_seconds) for worker in list(self._workers)))

    # Places ----------------------------------------------------------------------------------------------------------

    async def _launch(self, number: int, orders: Orders) -> Worker:
        worker = await launch(number, self._command, orders, self._ended)
        self._workers.append(worker)
        return worker

    async def _must_serve(self, worker: Worker) -> None:
        if not await worker.started(within_seconds=START_SECONDS_MAX):
            raise WorkerFailed(worker.exit_code or 1)

    def _resize(self, workers: int) -> None:
        for number in range(len(self._places), workers):
            place = _Place(number)
            self._places.append(place)
            # The first is not started here: it comes as an offer.
            place.task = spawn(self._keep(place), name=f"place {number}")
        while len(self._places) > workers:
            place = self._places.pop()
            if place.task is not None:
                place.task.cancel()
            for worker in (place.current, place.starting):
                if worker is not None:
                    self._retire(worker)

    def _offer(self, place: _Place, worker: Worker) -> None:
        place.offered = worker
        place.woken.set()

    async def _keep(self, place: _Place) -> None:
        """Keep one place served, for good."""
        if place.number == 0:
            await place.woken.wait()
        while True:
            began = monotonic_seconds()
            if await self._fill(place):
                if not place.is_old:
                    place.tried.set()
                await self._until_needed(place)
                lived_seconds = monotonic_seconds() - began
                if place.current is not None:
                    continue  # it lives, and is to be replaced
                place.failures = 0 if lived_seconds > FORGIVEN_SECONDS else place.failures + 1
            else:
                place.failures += 1
            place.tried.set()
            self._crew.worker_restarts.inc()
            delay_seconds = min(BACK_OFF_SECONDS_MAX, BACK_OFF_SECONDS * 2 ** min(place.failures - 1, 10))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_seconds if place.failures > 1 else 0.0):
                    await place.woken.wait()

    async def _fill(self, place: _Place) -> bool:
        """Start a worker, and let it take the place of the one there; False where it does not come to serve."""
        worker, place.offered = place.offered, None
        place.woken.clear()
        place.is_old = False
        if worker is None:
            try:
                worker = place.starting = await self._launch(place.number, self._orders)
            except OSError as error:
                _log.critical("a worker cannot be started", extra={"fields": {"error": str(error)}})
                return False
            is_serving = await worker.started(within_seconds=START_SECONDS_MAX)
            place.starting = None
            if not is_serving:
                fields = {"worker": worker.number, "exit_code": worker.exit_code}
                _log.error("a worker did not start", extra={"fields": fields})
                return False
        elif worker.exit_code is not None:
            return False
        former, place.current = place.current, worker
        if former is not None:
            self._retire(former)
        self._choose_lead()
        return True

    async def _until_needed(self, place: _Place) -> None:
        """Wait until the worker there has died, or is to be replaced."""
        while place.current is not None and place.offered is None and not place.is_old:
            await place.woken.wait()
            place.woken.clear()

    def _retire(self, worker: Worker) -> None:
        worker.retire()
        retiring = [other for other in self._workers if other.retiring]
        for oldest in retiring[: max(0, len(retiring) - RETIRING_PER_WORKER_MAX * len(self._places))]:
            oldest.send(signal.SIGTERM)

    def _ended(self, worker: Worker) -> None:
        self._totals.absorb(worker.snapshot)
        self._workers.remove(worker)
        self._moved.set()
        fields = {"worker": worker.number, "pid": worker.pid, "exit_code": worker.exit_code}
        # One that never served is spoken of by whoever waits for it.
        is_news = worker.ready and not self.stopping and not worker.retiring
        _log.log(logging.ERROR if is_news else logging.INFO, "a worker has ended", extra={"fields": fields})
        for place in self._places:
            if place.current is worker:
                place.current = None
                place.woken.set()
        if self._lead is worker:
            self._lead = None
        if not self.stopping:
            self._choose_lead()

    # All of them as one ----------------------------------------------------------------------------------------------

    def _choose_lead(self) -> None:
        """One worker that answers looks after the database; a worker that does not answer is relieved."""
        serving = [p.current for p in self._places if p.current is not None]
        fit = [worker for worker in serving if worker.silent_seconds < STUCK_SECONDS] or serving
        if not fit or self._lead in fit:
            return
        if self._lead is not None:
            self._lead.lead(False)
        self._lead = fit[0]
        self._lead.lead(True)

    async def _beat(self) -> None:
        """Ask every worker for its counts: what one had counted when it dies is known to the second."""
        while True:
            await self._ask_all()
            self._choose_lead()
            await asyncio.sleep(BEAT_SECONDS)

    async def _ask_all(self) -> None:
        async def ask(worker: Worker) -> None:
            # The answer is kept where it arrives; one that has been silent is not waited for.
            within_seconds = 0.0 if worker.silent_seconds > STUCK_SECONDS else SCRAPE_SECONDS_MAX
            with contextlib.suppress(NoAnswer):
                await worker.ask("snapshot", within_seconds=within_seconds)

        await asyncio.gather(*(ask(worker) for worker in self._workers if worker.ready))

    async def exposition(self) -> bytes:
        """All metrics of all workers as one, within SCRAPE_SECONDS_MAX whatever a worker does."""
        await self._ask_all()
        states = dict.fromkeys(("ready", "stuck", "starting", "retiring", "missing"), 0)
        for place in self._places:
            worker = place.current
            state = "missing" if worker is None else "ready" if worker.silent_seconds < STUCK_SECONDS else "stuck"
            states[state] += 1
            self._crew.worker_up.labels(str(place.number)).set(state == "ready")
        serving = [place.current for place in self._places]
        states["retiring"] = sum(worker.retiring for worker in self._workers)
        states["starting"] = sum(not worker.retiring and worker not in serving for worker in self._workers)
        for state, count in states.items():
            self._crew.workers.labels(state).set(count)
        taken = [worker.snapshot for worker in self._workers if worker.silent_seconds < STUCK_SECONDS]
        stale = [worker.snapshot for worker in self._workers if worker.silent_seconds >= STUCK_SECONDS]
        lead = self._lead.snapshot if self._lead is not None else None
        return self._totals.exposition([snapshot(self._metrics.registry), *taken], lead, stale=stale)

    async def checks(self) -> list[Check]:
        """Ready is who has a worker that is; each check of the workers passes where it passes in all of them."""

        async def ask(place: _Place) -> list[Check]:
            if place.current is None:
                return [Check("worker", False, "is being started")]
            try:
                answer = await place.current.ask("checks", within_seconds=CHECKS_SECONDS_MAX)
            except NoAnswer:
                return [Check("worker", False, "does not answer")]
            return [Check(*found) for found in answer]

        said = await asyncio.gather(*map(ask, self._places))
        lead = f"worker {self._lead.number} (process {self._lead.pid})" if self._lead is not None else "no worker"
        return [
            *_workers_check(said),
            *_merged(said),
            Check("lead", self._lead is not None, lead, gates_ready=False),
            Check("not_stopping", not self.stopping, "stopping" if self.stopping else "ok"),
        ]


@asynccontextmanager
async def supervising(
    document: Mapping[str, Any], dsn: str, *, command: Sequence[str], services: Sequence[Service]
) -> AsyncIterator[Supervisor]:
    """A supervisor with both ports open, and no worker yet; `services` run in its process.

    Raises InvalidSettings, and OSError for a port that is taken.
    """
    settings, metrics = check(document), Metrics()
    async with contextlib.AsyncExitStack() as stack:
        sockets = bind(settings.host, settings.port)
        for listening in sockets:
            stack.callback(listening.close)
        supervisor = Supervisor(document, settings, Orders({}, dsn, sockets), command, metrics)
        supervisor.port = int(sockets[0].getsockname()[1])
        ops = Listener(
            ops_handler(supervisor.checks, supervisor.exposition, metrics),
            header_seconds=settings.header_seconds,
            header_bytes_max=settings.header_bytes_max,
            body_bytes_max=65_536,
            keep_alive_seconds=settings.keep_alive_seconds,
        )
        stack.push_async_callback(ops.close, timeout_seconds=0.5)
        supervisor.ops_port = await ops.open(settings.ops_host, settings.ops_port)
        for service in services:
            stack.push_async_callback(stop, spawn(run_forever(service, metrics), name=service.name))
        stack.push_async_callback(supervisor.stop)
        yield supervisor


def _workers_check(said: Sequence[Sequence[Check]]) -> list[Check]:
    failed = {
        number: "; ".join(f"{c.name} {c.detail}" for c in checks if c.gates_ready and not c.passes)
        for number, checks in enumerate(said)
    }
    ready = [number for number, why in failed.items() if not why]
    detail = f"{len(ready)} of {len(said)} are ready"
    detail += "".join(f"; {number}: {why}" for number, why in failed.items() if why)
    return [
        Check("workers", bool(ready), detail),
        Check("all_workers", len(ready) == len(said), detail, gates_ready=False),
    ]


def _merged(said: Sequence[Sequence[Check]]) -> list[Check]:
    by_name: dict[str, list[tuple[int, Check]]] = {}
    for number, checks in enumerate(said):
        for found in checks:
            by_name.setdefault(found.name, []).append((number, found))
    return [
        Check(
            name,
            all(found.passes for _, found in each),
            "; ".join(f"{number}: {found.detail}" for number, found in each if not found.passes) or each[0][1].detail,
            gates_ready=False,
        )
        for name, each in by_name.items()
        if name not in ("worker", "not_stopping")
    ]
