"""The composition root: the only module that builds objects, wires them together and starts tasks."""

import asyncio
import contextlib
import itertools
import logging
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from prometheus_client import generate_latest

from gateway.clock import monotonic_seconds, new_id
from gateway.db import keys
from gateway.db.journal import Journal
from gateway.db.lanes import Lane
from gateway.db.pool import Connection, Database, LedgerAway, connect
from gateway.db.seals import Limits as SealLimits
from gateway.metrics import LaneMetrics, Metrics
from gateway.request.admit import Shelf
from gateway.request.authenticate import Authenticator
from gateway.request.by_id import kept_responses
from gateway.request.handle import Gateway
from gateway.request.hold import Holds
from gateway.request.idempotency import Idempotency
from gateway.request.passed import Rule, rules_of
from gateway.request.recount import Recounter
from gateway.request.relay import Relay
from gateway.request.session import SessionLimits
from gateway.request.settle import Settler
from gateway.request.upstream_socket import Dialler
from gateway.request.vault import Vault, secret_in
from gateway.request.watch import Watch
from gateway.settings import Settings, UpstreamSettings
from gateway.tasks import spawn, stop
from gateway.upkeep.background import ForgetResponses, LookAtBackground
from gateway.upkeep.catalogue import CatalogueRefresh
from gateway.upkeep.forget_keys import ForgetKeys
from gateway.upkeep.lead import Lead
from gateway.upkeep.replay import Replay
from gateway.upkeep.retention import Partitions
from gateway.upkeep.seal import ChainService, SealService
from gateway.upkeep.service import Service, run_forever
from gateway.upkeep.sweep import Sweep
from gateway.upkeep.vitals import HeldGauges, Invariants
from gateway.web.checks import checks
from gateway.web.health import ops_handler
from gateway.web.realtime import Sessions
from gateway.web.routes import Handler, Limits, api_handler
from gateway.web.server import Listener
from gateway.web.spool import Spools

_log = logging.getLogger("farebox.app")
_LAG_PROBE_SECONDS = 0.5
_SETTLED_POLL_SECONDS = 0.01
# Idempotency keys have connections of their own: a large reply must not keep an API key waiting to be looked up.
_KEYS_STATEMENT_SECONDS = 5.0
_KEYS_CONNECTIONS_MAX = 8
_GUARD_SECONDS = 2.0
# What a running gateway takes over from changed settings; anything else needs a restart.
_OF_THE_GATEWAY = (
    "min_output_tokens", "hold_slice_tokens", "stored_context", "auto_service_tier", "drain_seconds",
    "calls_in_flight_max",
)  # fmt: skip
_RELOADED = ("upstream", "aliases", "allow", "stop_seconds", "recount_refused", *_OF_THE_GATEWAY)


@dataclass(slots=True)
class App:
    """A running gateway. `port` and `ops_port` are the ones that it listens on; a worker has none of its own."""

    settings: Settings
    gateway: Gateway
    database: Database
    lane: Lane
    journal: Journal
    metrics: Metrics
    watch: Watch
    idempotency: Idempotency
    sweep: Sweep
    replay: Replay
    invariants: Invariants
    seal: SealService
    chain: ChainService
    catalogue: CatalogueRefresh
    api: Listener
    spools: Spools
    lead: Lead = field(init=False)
    port: int = 0
    ops_port: int = 0
    allowed: tuple[Rule, ...] = ()
    shelf: Shelf = field(default_factory=lambda: Shelf([], [], [], {}))

    async def reload(self, settings: Settings) -> list[str]:
        """Go on with changed settings; the names of those that need a restart, and stay as they were.

        Raises LedgerAway, having changed nothing.
        """
        await self.catalogue.serve(settings.upstream, settings.aliases)
        self.gateway.relay.asker.forget()
        self.allowed = rules_of(settings.allow, settings.upstream)
        for name in _OF_THE_GATEWAY:
            setattr(self.gateway, name, getattr(settings, name))
        self.gateway.recounter.is_on = settings.recount_refused
        changed = [name for name in Settings.model_fields if getattr(settings, name) != getattr(self.settings, name)]
        self.settings = self.settings.model_copy(update={name: getattr(settings, name) for name in _RELOADED})
        return [name for name in changed if name not in _RELOADED]

    @property
    def is_in_use(self) -> bool:
        """Whether a client is connected, or a call in flight."""
        return bool(self.api.connections or self.watch)

    def refresh(self) -> None:
        """Bring gauges up to date before a scrape."""
        self.metrics.lane_queue.set(self.lane.queued)
        self.metrics.lane_stuck.set(self.lane.stuck_seconds())
        self.metrics.journal_records.set(self.journal.records)
        self.metrics.journal_damaged.set(len(self.journal.set_aside_files()))
        self.gateway.relay.asker.report()

    async def drain(self) -> None:
        """Take no new calls; let those in flight end, and end those that do not in time."""
        self.gateway.stopping = True
        await self.watch.emptied(within_seconds=self.settings.stop_seconds * 0.7)
        self.watch.stop_all()
        # What the ledger does not take at once goes to the journal, so that every client still gets an end.
        self.lane.hurry()
        deadline = monotonic_seconds() + self.settings.stop_seconds * 0.2
        while (self.gateway.unsettled or self.idempotency.unfinished) and monotonic_seconds() < deadline:  # noqa: ASYNC110 - once in a process
            await asyncio.sleep(_SETTLED_POLL_SECONDS)


@asynccontextmanager
async def running(
    settings: Settings,
    dsn: str,
    *,
    upstreams: tuple[UpstreamSettings, ...],
    services: Sequence[Service] = (),
    sockets: Sequence[socket.socket] = (),
) -> AsyncIterator[App]:
    """A gateway that serves while the context lasts, and drains at its end. `services` run beside its own.

    With `sockets` it is one of several on one port: it takes connections from those, opens no port of its own, and
    leads only when it is told to.
    Raises LedgerAway, JournalUnwritable, SecretUnusable, and OSError for a port that is taken.
    """
    metrics = Metrics()
    async with contextlib.AsyncExitStack() as stack:
        database = Database(dsn, statement_seconds=2 * settings.lane_statement_seconds)
        stack.push_async_callback(database.close)
        journal = Journal(settings.directory() / "journal", bytes_max=settings.journal_bytes_max)
        journal.open(f"{os.getpid()}-{new_id()}")
        stack.callback(journal.close)
        lane = _lane(settings, dsn, metrics)
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=15.0, ttl_dns_cache=60)
        stack.push_async_callback(connector.close)
        keys_database = Database(dsn, connections_max=_KEYS_CONNECTIONS_MAX, statement_seconds=_KEYS_STATEMENT_SECONDS)
        stack.push_async_callback(keys_database.close)
        idempotency = _idempotency(settings, keys_database, lane, metrics)

        def leave() -> None:
            database.drop()
            keys_database.drop()

        lane.on_silence = leave  # their connections lead to the same server
        app = _wire(settings, upstreams, database, journal, lane, connector, metrics, idempotency, keys_database)
        stack.callback(app.gateway.recounter.close)
        await app.catalogue.run_once()
        await _start(app, dsn, services, sockets, stack)
        yield app
        await app.drain()


def _lane(settings: Settings, dsn: str, metrics: Metrics) -> Lane:
    turns = itertools.count()

    async def connection() -> Connection:
        # Each connection begins with the next host: the last one's connection has failed.
        return await connect(dsn, turn=next(turns))

    return Lane(
        connection,
        LaneMetrics(metrics),
        batch_operations_max=settings.lane_batch_operations_max,
        queue_operations_max=settings.lane_queue_operations_max,
        statement_seconds=settings.lane_statement_seconds,
        wait_seconds=settings.lane_wait_seconds,
    )


def _idempotency(settings: Settings, database: Database, lane: Lane, metrics: Metrics) -> Idempotency:
    given = settings.idempotency_secret
    secret = secret_in(settings.directory()) if given is None else given.get_secret_value().encode()
    return Idempotency(
        database,
        lane,
        Vault(secret),
        metrics,
        keep_seconds=settings.idempotency_keep_seconds,
        reply_bytes_max=settings.idempotency_reply_bytes_max,
        hold_valid_seconds=settings.hold_valid_seconds,
    )


def _authenticator(settings: Settings, database: Database) -> Authenticator:
    return Authenticator(
        lambda digest: keys.by_hash(database, digest),
        cache_seconds=settings.key_cache_seconds,
        entries_max=settings.key_cache_entries_max,
        unknown_per_second_max=settings.unknown_keys_per_second_max,
    )


def _wire(
    settings: Settings,
    upstreams: tuple[UpstreamSettings, ...],
    database: Database,
    journal: Journal,
    lane: Lane,
    connector: aiohttp.BaseConnector,
    metrics: Metrics,
    idempotency: Idempotency,
    keys_database: Database,
) -> App:
    watch = Watch()
    holds = Holds(lane, metrics, valid_seconds=settings.hold_valid_seconds, top_up_url=settings.top_up_url)
    settler = Settler(lane, journal, metrics)
    kept, passing = kept_responses(
        keys_database, connector, holds, settler, metrics, lambda: app.catalogue.upstreams, settings=settings
    )
    gateway = Gateway(
        authenticator=_authenticator(settings, database),
        shelf=lambda: app.shelf,
        holds=holds,
        recounter=Recounter(metrics, is_on=settings.recount_refused),
        relay=Relay(connector, metrics, reply_buffer_bytes_max=settings.reply_buffer_bytes_max),
        settler=settler,
        idempotent=idempotency,
        kept=kept,
        watch=watch,
        metrics=metrics,
        **{name: getattr(settings, name) for name in _OF_THE_GATEWAY},
    )
    limits = SessionLimits(settings.session_idle_seconds, settings.session_frame_bytes_max)
    sessions = Sessions(Dialler(connector, frame_bytes_max=limits.frame_bytes_max), limits)
    spools = Spools(settings.directory(), settings.form_bytes_max, settings.form_disk_bytes_max)
    bounds = Limits(settings.body_bytes_max, settings.body_seconds, spools, lambda: app.allowed)
    handler = api_handler(gateway, passing, bounds, sessions)
    metrics.unsettled.set_function(lambda: gateway.unsettled)
    lane.calls_in_flight = lambda: gateway.in_flight

    def put(shelf: Shelf) -> None:
        app.shelf = shelf

    sealed = SealLimits(settings.seal_entries_max, settings.seal_age_seconds)
    app = App(
        settings=settings,
        spools=spools,
        gateway=gateway,
        database=database,
        lane=lane,
        journal=journal,
        metrics=metrics,
        watch=watch,
        idempotency=idempotency,
        sweep=Sweep(database, lane, metrics, interval_seconds=settings.sweep_seconds),
        replay=Replay(journal, lane, metrics),
        invariants=Invariants(database, metrics, interval_seconds=settings.invariants_seconds),
        seal=SealService(database, metrics, sealed, interval_seconds=settings.seal_seconds),
        chain=ChainService(database, metrics, interval_seconds=settings.seal_seconds),
        catalogue=CatalogueRefresh(database, upstreams, settings.aliases, put),
        api=_listener(handler, settings, body_bytes_max=settings.body_bytes_max),
    )
    app.allowed = rules_of(settings.allow, upstreams)
    app.lead = _lead(app)
    return app


def _lead(app: App) -> Lead:
    services: Sequence[Service] = (
        app.sweep,
        app.invariants,
        app.seal,
        app.chain,
        HeldGauges(app.database, app.metrics),
        Partitions(app.database, retention_days=app.settings.usage_retention_days),
        ForgetKeys(app.database),
        ForgetResponses(app.database),
        LookAtBackground(app.database, app.gateway.kept.background, app.metrics, app.settings.background_look_seconds),
    )
    return Lead(services, app.metrics)


def _listener(handler: Handler, settings: Settings, *, body_bytes_max: int) -> Listener:
    return Listener(
        handler,
        header_seconds=settings.header_seconds,
        header_bytes_max=settings.header_bytes_max,
        body_bytes_max=body_bytes_max,
        keep_alive_seconds=settings.keep_alive_seconds,
    )


async def _start(
    app: App,
    dsn: str,
    services: Sequence[Service],
    sockets: Sequence[socket.socket],
    stack: contextlib.AsyncExitStack,
) -> None:
    """Start every task and open the ports; the stack undoes it in reverse order."""
    settings = app.settings
    lane_task = spawn(app.lane.run(), name="lane")
    # Once the lane has answered, or given up, every settle; before the journal is closed.
    stack.push_async_callback(app.gateway.settler.finished)
    stack.push_async_callback(app.idempotency.finished)

    async def close_lane() -> None:
        app.lane.close()
        await lane_task

    stack.push_async_callback(close_lane)
    listen = settings.listen_database_url
    prices_changed = asyncio.Event()
    watcher = _watcher(app, dsn if listen is None else listen.get_secret_value(), prices_changed)
    background = [
        spawn(app.watch.run(), name="watch"),
        spawn(watcher.run(), name="watcher"),
        spawn(_follow_prices(app, prices_changed), name="catalogue refresh"),
        spawn(_measure_lag(app.metrics), name="event loop lag"),
        spawn(_guard_journal(app), name="journal guard"),
        *(spawn(run_forever(s, app.metrics), name=s.name) for s in (*services, app.replay, app.catalogue)),
    ]
    stack.callback(app.spools.close)
    for task in background:
        stack.push_async_callback(stop, task)
    stack.push_async_callback(app.lead.leave)
    if sockets:
        stack.push_async_callback(_close_listener, app.api)
        app.api.open_on(sockets)
        return
    await app.lead.take()
    ops = _listener(
        ops_handler(lambda: checks(app), lambda: _exposition(app), app.metrics), settings, body_bytes_max=65_536
    )
    for listener in (ops, app.api):
        stack.push_async_callback(_close_listener, listener)
    app.ops_port = await ops.open(settings.ops_host, settings.ops_port)
    app.port = await app.api.open(settings.host, settings.port)


async def _exposition(app: App) -> bytes:
    app.refresh()
    return generate_latest(app.metrics.registry)


async def _close_listener(listener: Listener) -> None:
    await listener.close(timeout_seconds=0.5)


def _watcher(app: App, dsn: str, prices_changed: asyncio.Event) -> keys.Watcher:
    turns = itertools.count()

    async def connection() -> Connection:
        return await connect(dsn, turn=next(turns))

    watcher = keys.Watcher(connection, on_key=app.gateway.authenticator.forget, on_prices=prices_changed.set)
    app.gateway.authenticator.hears = lambda: watcher.live
    return watcher


async def _follow_prices(app: App, changed: asyncio.Event) -> None:
    while True:
        await changed.wait()
        changed.clear()
        with contextlib.suppress(LedgerAway):
            await app.catalogue.run_once()


async def _measure_lag(metrics: Metrics) -> None:
    while True:
        due = monotonic_seconds() + _LAG_PROBE_SECONDS
        await asyncio.sleep(_LAG_PROBE_SECONDS)
        metrics.loop_lag.observe(max(0.0, monotonic_seconds() - due))


async def _guard_journal(app: App) -> None:
    """No new money is put at risk while a settle could be lost; an append that fails says so before the next probe."""
    app.gateway.holds.usable = lambda: app.journal.unwritable is None
    while True:
        await asyncio.to_thread(app.journal.probe, app.gateway.unsettled)
        await asyncio.sleep(_GUARD_SECONDS)
