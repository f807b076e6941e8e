"""`farebox serve`: the gateway itself, until a signal stops it."""

import asyncio
import contextlib
import gc
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import NoReturn

import click

from gateway.app import App, running
from gateway.db.embedded import EmbeddedPostgres, EmbeddedPostgresFailed
from gateway.db.journal import JournalUnwritable
from gateway.db.migrate import UnsuitableServer, migrate
from gateway.db.pool import Database, LedgerAway
from gateway.db.prices import current
from gateway.logs import configure
from gateway.settings import InvalidSettings, Settings, UpstreamSettings
from gateway.upkeep.price_import import import_prices

EXIT_USAGE = 2
EXIT_AWAY = 3


class CannotStart(Exception):
    """The gateway cannot start; each line says one thing to change."""


Announce = Callable[[App], Awaitable[None]]
Upstreams = Callable[[], AbstractAsyncContextManager[tuple[UpstreamSettings, ...]]]


@click.command()
@click.pass_obj
def serve(settings: Settings) -> None:
    """Serve the gateway until SIGTERM or Ctrl-C; calls in flight are given time to end."""
    if not settings.upstream:
        fail(
            "no upstream is configured: set FAREBOX_UPSTREAM_BASE_URL and FAREBOX_UPSTREAM_API_KEY, "
            "or list [[upstream]] in a TOML file (`farebox demo` brings its own)"
        )

    async def announce(app: App) -> None:
        click.echo(f"farebox serves http://{settings.host}:{app.port}/v1, ops on port {app.ops_port}", err=True)

    run_gateway(settings, lambda: contextlib.nullcontext(settings.upstream), announce)


def run_gateway(settings: Settings, upstreams: Upstreams, announce: Announce) -> None:
    """Everything from the database to the last reply. Exits 2 for what the operator must change, 3 if it is away."""
    configure(settings.log_level)
    try:
        with database_server(settings) as dsn:
            run_loop(_serve(settings, dsn, upstreams, announce))
    except (EmbeddedPostgresFailed, UnsuitableServer, InvalidSettings, CannotStart, JournalUnwritable) as error:
        fail(str(error))
    except LedgerAway as error:
        fail(f"the database cannot be reached ({error}): check FAREBOX_DATABASE_URL", EXIT_AWAY)


@contextmanager
def database_server(settings: Settings) -> Iterator[str]:
    """The DSN of the configured database, or of the embedded one, which runs while the context lasts."""
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    server = EmbeddedPostgres(settings.directory() / "postgres")
    dsn = server.start()
    try:
        yield dsn
    finally:
        server.stop()


async def _serve(settings: Settings, dsn: str, upstreams: Upstreams, announce: Announce) -> None:
    # Signals are taken before the slow parts of a start, so that Ctrl-C never leaves something behind.
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    await migrate(dsn)
    await prepare(settings, dsn)
    try:
        async with upstreams() as served, running(settings, dsn, upstreams=served) as app:
            _spare_the_collector()
            await announce(app)
            await stopped.wait()
            click.echo("farebox is stopping: calls in flight may end", err=True)
    except OSError as error:
        raise CannotStart(
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


def fail(message: str, code: int = EXIT_USAGE) -> NoReturn:
    """Say what is wrong, one line each, and exit."""
    for line in message.splitlines():
        click.echo(f"farebox: {line}", err=True)
    sys.exit(code)
