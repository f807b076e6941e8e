"""`farebox serve`: the gateway itself, until a signal stops it. SIGHUP reads the configuration again."""

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import click

from gateway.app import App, running
from gateway.cli.context import Misconfigured, database_server, embedded_server
from gateway.db.journal import JournalUnwritable
from gateway.db.migrate import migrate
from gateway.db.pool import Database, LedgerAway
from gateway.db.prices import current
from gateway.logs import configure
from gateway.request.vault import SecretUnusable
from gateway.settings import WORKERS_MAX, InvalidSettings, Settings, UpstreamSettings, check, read
from gateway.tasks import spawn, stop
from gateway.upkeep.keep_database import KeepDatabase
from gateway.upkeep.price_import import import_prices
from gateway.upkeep.service import Service
from gateway.workers.supervisor import Supervisor, WorkerFailed, supervising

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_WORKER = (sys.executable, "-P", "-m", "gateway.cli.worker")

Announce = Callable[[App], Awaitable[None]]
Upstreams = Callable[[], AbstractAsyncContextManager[tuple[UpstreamSettings, ...]]]
Document = dict[str, Any]


class Signals:
    """What people tell the process: to stop, once or again, and to read its configuration again.

    A terminal that is closed sends SIGHUP too: who has nothing to read again stops.
    """

    def __init__(self, *, can_reload: bool) -> None:
        self._can_reload = can_reload
        self.stopped = asyncio.Event()
        self.hurried = asyncio.Event()
        self.reload = asyncio.Event()

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """From here on signals come here; afterwards another one changes nothing any more."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self.reload.set if self._can_reload else self._stop)
        try:
            yield
        finally:
            # The loop would give them back to Python, which ends at once.
            for number in (*_SIGNALS, signal.SIGHUP):
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)

    def _stop(self) -> None:
        (self.hurried if self.stopped.is_set() else self.stopped).set()


@click.command()
@click.option("--workers", type=click.IntRange(1, WORKERS_MAX), help="How many processes serve the port.")
@click.pass_context
def serve(context: click.Context, workers: int | None) -> None:
    """Serve the gateway until SIGTERM or Ctrl-C; calls in flight are given time to end.

    SIGHUP reads the configuration again.
    """

    def document() -> Document:
        found = read(os.environ, config=context.find_root().params["config"])
        if workers is not None:
            found["workers"] = workers
        if not check(found).upstream:
            raise Misconfigured(
                "no upstream is configured: set FAREBOX_UPSTREAM_BASE_URL and FAREBOX_UPSTREAM_API_KEY, "
                "or list [[upstream]] in a TOML file (`farebox demo` brings its own)"
            )
        return found

    settings = check(document())
    if settings.workers > 1:
        try:
            _run_workers(settings, document)
        except WorkerFailed as error:
            # It has said why, in a line of its own.
            raise click.exceptions.Exit(error.exit_code if error.exit_code > 0 else 1) from error
        return

    async def announce(app: App) -> None:
        click.echo(f"farebox serves http://{settings.host}:{app.port}/v1, ops on port {app.ops_port}", err=True)

    run_gateway(settings, lambda: contextlib.nullcontext(settings.upstream), announce, document)


def run_gateway(
    settings: Settings, upstreams: Upstreams, announce: Announce, document: Callable[[], Document] | None = None
) -> None:
    """Everything from the database to the last reply, in this process; `document` reads the configuration again.

    Raises Misconfigured, EmbeddedPostgresFailed, UnsuitableServer, LedgerAway.
    """

    async def one(dsn: str, services: Sequence[Service], signals: Signals) -> None:
        async with upstreams() as served, running(settings, dsn, upstreams=served, services=services) as app:
            spare_the_collector()
            await announce(app)
            if document is None:
                await signals.stopped.wait()
            else:
                await _until_stopped(signals, lambda: app.reload(check(document())))
            click.echo("farebox is stopping: calls in flight may end", err=True)

    _run(settings, one, can_reload=document is not None)


def _run_workers(settings: Settings, document: Callable[[], Document]) -> None:
    async def many(dsn: str, services: Sequence[Service], signals: Signals) -> None:
        async with supervising(document(), dsn, command=_WORKER, services=services) as supervisor:
            starting = spawn(_started(supervisor), name="start")
            stopped = spawn(signals.stopped.wait(), name="stopped")
            await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not stopped.done():
                if (failure := starting.result()) is not None:
                    raise failure
                click.echo(
                    f"farebox serves http://{settings.host}:{supervisor.port}/v1, ops on port {supervisor.ops_port}, "
                    f"with {settings.workers} workers",
                    err=True,
                )
                await _until_stopped(signals, lambda: supervisor.reload(document()))
            click.echo("farebox is stopping: calls in flight may end", err=True)
            for task in (starting, stopped):
                await stop(task)
            hurrying = spawn(_hurry(signals, supervisor.hurry), name="hurry")
            await supervisor.stop()
            await stop(hurrying)

    _run(settings, many, can_reload=True)


async def _started(supervisor: Supervisor) -> WorkerFailed | None:
    try:
        await supervisor.start()
    except WorkerFailed as error:
        return error
    return None


async def _hurry(signals: Signals, hurry: Callable[[], None]) -> None:
    await signals.hurried.wait()
    hurry()


async def _until_stopped(signals: Signals, reload: Callable[[], Awaitable[list[str]]]) -> None:
    """Wait for the signal to stop; meanwhile reload when told to. A reload that cannot be is one line."""
    reloading = spawn(_reload_when_told(signals, reload), name="reload")
    await signals.stopped.wait()
    await stop(reloading)


async def _reload_when_told(signals: Signals, reload: Callable[[], Awaitable[list[str]]]) -> None:
    while True:
        await signals.reload.wait()
        signals.reload.clear()
        try:
            names = await reload()
        except (InvalidSettings, Misconfigured, LedgerAway, WorkerFailed) as error:
            why = "; ".join((str(error) if not isinstance(error, LedgerAway) else "the database is away").splitlines())
            click.echo(f"farebox: the configuration was not reloaded: {why}; the one in force goes on", err=True)
            continue
        restart = f"; these need a restart, and stay as they were: {', '.join(names)}" if names else ""
        click.echo(f"farebox has reloaded its configuration{restart}", err=True)


def _run(
    settings: Settings, work: Callable[[str, Sequence[Service], Signals], Awaitable[None]], *, can_reload: bool
) -> None:
    configure(settings.log_level)
    server = embedded_server(settings)
    services = () if server is None else (KeepDatabase(server),)
    with database_server(settings, server) as dsn:
        signals = Signals(can_reload=can_reload)
        run_loop(_until_signalled(settings, dsn, signals, lambda: work(dsn, services, signals)))


async def _until_signalled(settings: Settings, dsn: str, signals: Signals, work: Callable[[], Awaitable[None]]) -> None:
    # Signals are taken before the slow parts of a start, so that Ctrl-C never leaves something behind.
    with signals.taken():
        await migrate(dsn)
        await prepare(settings, dsn)
        try:
            await work()
        except (JournalUnwritable, SecretUnusable) as error:
            raise Misconfigured(str(error)) from error
        except OSError as error:
            raise Misconfigured(
                f"cannot listen on {settings.host}:{settings.port} or {settings.ops_host}:{settings.ops_port}: "
                f"{error.strerror or error}"
            ) from error


def spare_the_collector() -> None:
    """What a start leaves in memory stays for good: the cycle collector need not walk it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


async def prepare(settings: Settings, dsn: str) -> None:
    """Import the price catalogue the first time."""
    database = Database(dsn)
    try:
        if not await current(database):
            await import_prices(database, settings)
    finally:
        await database.close()


def run_loop(work: Awaitable[None]) -> None:
    """Run on uvloop where there is one."""

    async def main() -> None:
        await work

    with contextlib.suppress(ImportError):
        import uvloop  # noqa: PLC0415 - absent on some platforms

        uvloop.run(main())
        return
    asyncio.run(main())
