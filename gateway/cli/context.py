"""What every command shares: exit codes, refusals, and how it comes by a database.

With FAREBOX_DATABASE_URL (or `database_url` in the file) that database is used. Otherwise it is the embedded one under
the data directory: shared with whoever runs it, else started for the command and stopped after it.
"""

import asyncio
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

from gateway.db.embedded import EmbeddedPostgres
from gateway.db.migrate import migrate, migrations, pending
from gateway.db.pool import Database, LedgerAway, connect
from gateway.settings import Settings

T = TypeVar("T")

EXIT_BAD = 1
EXIT_USAGE = 2
EXIT_AWAY = 3
EXIT_INTERRUPTED = 130

# SQLSTATE classes of a connection that a wrong setting prevents: not authorised, no such database.
_MISCONFIGURED_STATES = ("28", "3D")


class Refused(Exception):
    """The question was understood and the answer is bad (exit 1). `code` is for scripts and stays as it is."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Misconfigured(Exception):
    """The operator must change something first (exit 2); one line each says what."""


class OutcomeUnknown(Exception):
    """The database went away before it answered (exit 3); the lines say how to find out."""


def run(settings: Settings, work: Callable[[Database], Awaitable[T]]) -> T:
    """What `work` returns, given a migrated database. Raises LedgerAway, Misconfigured, EmbeddedPostgresFailed."""
    with database_server(settings) as dsn:
        return asyncio.run(_work(dsn, settings.database_url is None, work))


async def _work(dsn: str, is_embedded: bool, work: Callable[[Database], Awaitable[T]]) -> T:
    await ensure_migrated(dsn, is_embedded=is_embedded)
    database = Database(dsn)
    try:
        return await work(database)
    finally:
        await database.close()


def embedded_server(settings: Settings) -> EmbeddedPostgres | None:
    """The embedded server, not yet started; None where a database is configured."""
    return None if settings.database_url is not None else EmbeddedPostgres(settings.directory() / "postgres")


@contextmanager
def database_server(settings: Settings, server: EmbeddedPostgres | None = None) -> Iterator[str]:
    """The DSN of the configured database, or of the embedded one, which runs while the context lasts."""
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    server = server or EmbeddedPostgres(settings.directory() / "postgres")
    with _sigterm_unwinds():
        dsn = server.start()
        try:
            yield dsn
        finally:
            with _signals_ignored():
                server.stop()


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """SIGTERM ends the command in good order, so that it does not leave a server behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def unwind(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        # Unless somebody else has taken the signal meanwhile, for good.
        if signal.getsignal(signal.SIGTERM) is unwind:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _signals_ignored() -> Iterator[None]:
    """A second Ctrl-C does not stop a stop half-way: it is bounded as it is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def ensure_migrated(dsn: str, *, is_embedded: bool) -> None:
    """Migrate an embedded database that is brand new. Raises Misconfigured where a person must decide."""
    connection = await connect(dsn)
    try:
        missing = await pending(connection)
    finally:
        await connection.close()
    if not missing:
        return
    if not is_embedded or len(missing) < len(migrations()):
        raise Misconfigured(f"the database lacks {', '.join(missing)}: run `farebox migrate`")
    await migrate(dsn)


def away(error: LedgerAway) -> tuple[int, str]:
    """The exit code and the line for a database that cannot be reached."""
    cause = error.__cause__
    if isinstance(cause, ValueError):
        # The driver's own words on a DSN; they name its parts, not the password.
        return EXIT_USAGE, f"FAREBOX_DATABASE_URL is not a PostgreSQL URL ({cause})"
    state = getattr(cause, "sqlstate", None) or ""
    reason = str(cause) if cause is not None and (state or isinstance(cause, OSError)) else ""
    line = f"the database cannot be reached ({reason or error}): check FAREBOX_DATABASE_URL"
    return (EXIT_USAGE if state.startswith(_MISCONFIGURED_STATES) else EXIT_AWAY), line


def fail(message: str, code: int) -> NoReturn:
    """Say what is wrong, one line each, and exit."""
    for line in message.splitlines():
        print(f"farebox: {line}", file=sys.stderr)  # noqa: T201 - the command line's own voice
    sys.exit(code)
