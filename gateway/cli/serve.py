"""`farebox serve`: the gateway itself, until a signal stops it."""

import asyncio
import contextlib
import gc
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager

import click

from gateway.app import App, running
from gateway.cli.context import Misconfigured, database_server, embedded_server
from gateway.db.journal import JournalUnwritable
from gateway.db.migrate import migrate
from gateway.db.pool import Database
from gateway.db.prices import current
from gateway.logs import configure
from gateway.request.vault import SecretUnusable
from gateway.settings import Settings, UpstreamSettings
from gateway.upkeep.keep_database import KeepDatabase
from gateway.upkeep.price_import import import_prices
from gateway.upkeep.service import Service

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

Announce = Callable[[App], Awaitable[None]]
Upstreams = Callable[[], AbstractAsyncContextManager[tuple[UpstreamSettings, ...]]]


@click.command()
@click.pass_obj
def serve(settings: Settings) -> None:
    """Serve the gateway until SIGTERM or Ctrl-C; calls in flight are given time to end."""
    if not settings.upstream:
        raise Misconfigured(
            "no upstream is configured: set FAREBOX_UPSTREAM_BASE_URL and FAREBOX_UPSTREAM_API_KEY, "
            "or list [[upstream]] in a TOML file (`farebox demo` brings its own)"
        )

    async def announce(app: App) -> None:
        click.echo(f"farebox serves http://{settings.host}:{app.port}/v1, ops on port {app.ops_port}", err=True)

    run_gateway(settings, lambda: contextlib.nullcontext(settings.upstream), announce)


def run_gateway(settings: Settings, upstreams: Upstreams, announce: Announce) -> None:
    """Everything from the database to the last reply. Raises Misconfigured, EmbeddedPostgresFailed, UnsuitableServer,
    LedgerAway."""
    configure(settings.log_level)
    server = embedded_server(settings)
    services = () if server is None else (KeepDatabase(server),)
    with database_server(settings, server) as dsn:
        run_loop(_until_signalled(settings, dsn, upstreams, announce, services))


async def _until_signalled(
    settings: Settings, dsn: str, upstreams: Upstreams, announce: Announce, services: Sequence[Service]
) -> None:
    # Signals are taken before the slow parts of a start, so that Ctrl-C never leaves something behind.
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stopped.set)
    try:
        await _serve(settings, dsn, upstreams, announce, services, stopped)
    finally:
        # The loop would give them back to Python, which ends at once: another signal changes nothing any more.
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)


async def _serve(
    settings: Settings,
    dsn: str,
    upstreams: Upstreams,
    announce: Announce,
    services: Sequence[Service],
    stopped: asyncio.Event,
) -> None:
    await migrate(dsn)
    await prepare(settings, dsn)
    try:
        async with upstreams() as served, running(settings, dsn, upstreams=served, services=services) as app:
            _spare_the_collector()
            await announce(app)
            await stopped.wait()
            click.echo("farebox is stopping: calls in flight may end", err=True)
    except (JournalUnwritable, SecretUnusable) as error:
        raise Misconfigured(str(error)) from error
    except OSError as error:
        raise Misconfigured(
            f"cannot listen on {settings.host}:{settings.port} or {settings.ops_host}:{settings.ops_port}: "
            f"{error.strerror or error}"
        ) from error


def _spare_the_collector() -> None:
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
