"""`farebox doctor`: can a gateway run here, and what is in its way?"""

import asyncio
import contextlib
import http.client
import resource
import socket
from collections.abc import Iterator

import click
import orjson

from gateway.cli.command import FareboxCommand
from gateway.cli.context import EXIT_BAD, Misconfigured, away, database_server, ensure_migrated
from gateway.cli.doctor_server import Check, State, examine, partitions
from gateway.cli.output import print_json, print_line, print_table
from gateway.db import prices
from gateway.db.embedded import EmbeddedPostgresFailed
from gateway.db.journal import Journal, JournalUnwritable, read_file
from gateway.db.migrate import pending
from gateway.db.pool import Database, LedgerAway, connect
from gateway.request.admit import Shelf
from gateway.settings import InvalidSettings, Settings

OPEN_FILES_ADVISED = 4_096
_PROBE_SECONDS = 1.0
_PROBE_BYTES_MAX = 2**20


@click.command(cls=FareboxCommand)
@click.pass_obj
@click.pass_context
def doctor(context: click.Context, settings: Settings | InvalidSettings, as_json: bool) -> None:
    """Check everything that a gateway needs, and say what to do; exit 1 if a check fails."""
    checks = list(_examine(settings))
    is_well = all(check.state is not State.FAIL for check in checks)
    if as_json:
        documents = [
            {"check": c.name, "state": c.state, "detail": c.detail, "advice": c.advice or None} for c in checks
        ]
        print_json({"ok": is_well, "checks": documents})
    else:
        print_table(("check", "state", "seen"), ((c.name, c.state, c.detail) for c in checks))
        for check in checks:
            if check.advice:
                print_line(f"\n{check.name}: {check.advice}")
    if not is_well:
        context.exit(EXIT_BAD)


def _examine(settings: Settings | InvalidSettings) -> Iterator[Check]:
    if isinstance(settings, InvalidSettings):
        lines = str(settings).splitlines()
        yield Check("settings", State.FAIL, "; ".join(lines), "correct the configuration; nothing else was checked")
        return
    yield Check("settings", State.OK, f"data directory {settings.directory()}")
    yield _upstreams(settings)
    yield from _database(settings)
    yield from _journal(settings)
    yield _kept_replies(settings)
    yield _port("port", settings.host, settings.port)
    yield _port("ops_port", settings.ops_host, settings.ops_port)
    yield _open_files()


def _upstreams(settings: Settings) -> Check:
    if not settings.upstream:
        advice = "set FAREBOX_UPSTREAM_BASE_URL and FAREBOX_UPSTREAM_API_KEY, or list [[upstream]] in the file"
        return Check("upstreams", State.WARN, "none: only `farebox demo` can serve", advice)
    return Check("upstreams", State.OK, ", ".join(f"{one.name} ({one.base_url})" for one in settings.upstream))


def _kept_replies(settings: Settings) -> Check:
    if settings.idempotency_secret is not None:
        return Check("idempotency", State.OK, "idempotency_secret is set")
    if settings.database_url is None:
        return Check("idempotency", State.OK, "the secret is in the data directory")
    advice = "set FAREBOX_IDEMPOTENCY_SECRET, the same for every gateway, if they do not share a data directory"
    return Check("idempotency", State.WARN, "no idempotency_secret: another machine cannot read kept replies", advice)


def _database(settings: Settings) -> Iterator[Check]:
    try:
        with database_server(settings) as dsn:
            yield from asyncio.run(_ask_database(settings, dsn))
    except EmbeddedPostgresFailed as error:
        yield Check("database", State.FAIL, str(error), "put that right, or set FAREBOX_DATABASE_URL")
    except LedgerAway as error:
        yield Check("database", State.FAIL, away(error)[1], "start PostgreSQL, or correct FAREBOX_DATABASE_URL")


async def _ask_database(settings: Settings, dsn: str) -> list[Check]:
    is_embedded = settings.database_url is None
    with contextlib.suppress(Misconfigured):
        await ensure_migrated(dsn, is_embedded=is_embedded)
    connection = await connect(dsn)
    try:
        checks = await examine(connection, settings)
        missing = await pending(connection)
        if not missing:
            checks += [Check("migrations", State.OK, "current"), await partitions(connection)]
    finally:
        await connection.close()
    if missing:
        checks.append(Check("migrations", State.FAIL, f"pending: {', '.join(missing)}", "run `farebox migrate`"))
        return checks
    checks.append(await _prices(settings, dsn))
    return checks


async def _prices(settings: Settings, dsn: str) -> Check:
    database = Database(dsn)
    try:
        in_force = await prices.current(database)
        models = await prices.load_models(database)
    finally:
        await database.close()
    if not in_force:
        advice = "run `farebox price import` (`farebox serve` does so when it first starts)"
        return Check("prices", State.WARN, "none", advice)
    offered = Shelf(models, in_force, settings.upstream, settings.aliases).count
    detail = f"{len(in_force)} models are priced, {offered} of them served by an upstream"
    if settings.upstream and not offered:
        advice = "list the models of an upstream, or price those that it has: `farebox price set`"
        return Check("prices", State.WARN, detail, advice)
    return Check("prices", State.OK, detail)


def _journal(settings: Settings) -> Iterator[Check]:
    directory = settings.directory() / "journal"
    journal = Journal(directory, bytes_max=settings.journal_bytes_max)
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        journal.probe()
        problem = journal.unwritable
    except OSError as error:
        problem = error.strerror or type(error).__name__
    if problem is not None:
        advice = "make it writable, or set FAREBOX_DATA_DIRECTORY: without a journal no call is taken"
        yield Check("journal", State.FAIL, f"{directory} cannot be written: {problem}", advice)
        return
    yield Check("journal", State.OK, f"{directory} is writable")
    yield _left_behind(journal)


def _left_behind(journal: Journal) -> Check:
    """Journals of gateways that have died. A damaged one holds settles that nobody charged."""
    damaged = journal.set_aside_files()
    if damaged:
        names = ", ".join(path.name for path in damaged)
        advice = "see `farebox journal list --records`, and deploy/runbooks/FareboxJournalDamaged.md"
        return Check("journals_left", State.FAIL, names, advice)
    try:
        with journal.taken_over() as paths:
            records = sum(len(read_file(path)[0]) for path in paths)
    except (OSError, JournalUnwritable) as error:
        return Check("journals_left", State.WARN, f"cannot be read: {error}", "look at their permissions")
    if records:
        advice = "`farebox serve` replays them when it starts, and `farebox journal replay` now"
        return Check("journals_left", State.WARN, f"{records} settles of a gateway that died wait", advice)
    return Check("journals_left", State.OK, "none")


def _port(name: str, host: str, port: int) -> Check:
    where = f"{host}:{port}"
    if port == 0:
        return Check(name, State.OK, f"{host}, any free port")
    try:
        family = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        if _is_farebox(host, port, is_ops=name == "ops_port"):
            return Check(name, State.OK, f"{where} is served by a running farebox")
        advice = f"choose another with FAREBOX_{name.upper()}"
        return Check(name, State.FAIL, f"{where}: {error.strerror or error}", advice)
    return Check(name, State.OK, f"{where} is free")


def _is_farebox(host: str, port: int, *, is_ops: bool) -> bool:
    """Whether what listens there answers as only a gateway of ours does."""
    asked = "127.0.0.1" if host in {"", "0.0.0.0", "::"} else host  # noqa: S104 - compared, not bound
    connection = http.client.HTTPConnection(asked, port, timeout=_PROBE_SECONDS)
    try:
        connection.request("GET", "/metrics" if is_ops else "/v1/models")
        body = connection.getresponse().read(_PROBE_BYTES_MAX)
        if is_ops:
            return b"farebox_calls" in body
        error = orjson.loads(body)["error"]
        return bool(error["code"] == "invalid_api_key" and "fb-" in error["message"])
    except (OSError, http.client.HTTPException, orjson.JSONDecodeError, KeyError, TypeError):
        return False
    finally:
        connection.close()


def _open_files() -> Check:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES_ADVISED:
        advice = f"raise it, for example with `ulimit -n {OPEN_FILES_ADVISED * 4}`: each call in flight takes two"
        return Check("open_files", State.WARN, f"at most {soft}", advice)
    return Check("open_files", State.OK, "no limit" if soft == resource.RLIM_INFINITY else f"at most {soft}")
