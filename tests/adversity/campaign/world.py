"""The world of one seed: three gateways, each behind a door of its own, one database of a cluster, and the oracle."""

import asyncio
import importlib.util
import os
import random
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import asyncpg

from gateway.core.catalogue import Meter, Model, Rates
from gateway.core.money import format_nanos
from gateway.db import prices
from gateway.db.migrate import migrate
from gateway.db.pool import Database
from gateway.settings import Settings
from tests.adversity.campaign.door import Door
from tests.adversity.campaign.load import MODEL, Client, Seen, by_case
from tests.adversity.witness import many_connections
from tests.support.cluster import Cluster
from tests.support.gateway import CONTEXT, OUTPUT, make_wallet
from tests.support.processes import GatewayProcess, Gateways, eventually
from tests.support.upstream import FakeUpstream

GATEWAYS, CLIENTS = 3, 24
TEMPLATE = "campaign"
# Picos that fall between nanos, so that rounding matters.
RATES: Rates = {Meter.INPUT: 1_250, Meter.CACHED_INPUT: 625, Meter.OUTPUT: 4_001}
# Two wallets that cannot run dry, one that does on its way, and one that nearly has.
CREDITS_NANOS = (10**9, 10**9, 12_000, 2_500)
RICH = (0, 1)
HOLD_VALID_SECONDS = 2
SETTINGS: Mapping[str, str] = {
    "hold_valid_seconds": str(HOLD_VALID_SECONDS),
    "sweep_seconds": "0.25",
    "lane_statement_seconds": "1.0",
    "lane_wait_seconds": "1.0",
    "drain_seconds": "6",
    "stop_seconds": "2",
    "hold_slice_tokens": "16",
    "idempotency_secret": "what the campaign says is no secret",
}
# Of what a release has; the campaign may be run on another one.
KNOWN = {f"FAREBOX_{name.upper()}": value for name, value in SETTINGS.items() if name in Settings.model_fields}
# The driver alone gives up at the first host that takes a connection and closes it.
FINDS_PRIMARY = importlib.util.find_spec("gateway.core.dsn") is not None
IS_IDEMPOTENT = "idempotency_secret" in Settings.model_fields
COMMAND = (sys.executable, "-m", "tests.adversity.campaign.gateway_process")
_METRIC = re.compile(r"^(farebox_\w+?)(?:{[^}]*})? (\S+)$", re.MULTILINE)


@dataclass(slots=True)
class Window:
    """When something was wrong, in seconds of Unix time."""

    what: str
    began: float
    ended: float | None = None


@dataclass(slots=True)
class Seat:
    """One of the gateways, or whichever process took its place. `api_key` tells the oracle which it was."""

    number: int
    door: Door
    process: GatewayProcess
    api_key: str
    killed_at: str | None = None

    @property
    def is_alive(self) -> bool:
        return self.process.process.poll() is None


@dataclass
class World:
    """See the module. `lost_keys` are the upstream keys of gateway processes that did not live to the end."""

    seed: int
    dice: random.Random
    cluster: Cluster
    database: str
    gateways: Gateways
    upstream: FakeUpstream
    seats: list[Seat] = field(default_factory=list)
    wallets: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    lost_keys: set[str] = field(default_factory=set)
    cluster_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    environment: Mapping[str, str] = field(default_factory=dict)
    started: int = 0
    has_jumped: bool = False

    @property
    def dsn(self) -> str:
        """The primary's, not through a door."""
        return self.cluster.primary.dsn_at("127.0.0.1", self.cluster.primary.port, self.database)

    def urls(self) -> list[str]:
        return [seat.process.base_url for seat in self.seats]

    def trouble(self, what: str) -> Window:
        """Begin a window; whoever made it ends it."""
        window = Window(what, time.time())
        self.windows.append(window)
        return window

    async def fetch(self, statement: str, *arguments: object) -> list[dict[str, Any]]:
        """Rows of a statement on the primary. Raises what asyncpg does."""
        connection = await asyncpg.connect(self.dsn, timeout=5.0, server_settings={"application_name": "campaign"})
        try:
            return [dict(row) for row in await connection.fetch(statement, *arguments, timeout=10.0)]
        finally:
            connection.terminate()

    @property
    def is_multihost(self) -> bool:
        """Whether gateways know both servers and look for the one that takes writes; else somebody leads them there."""
        return FINDS_PRIMARY and self.seed % 3 == 0

    def _dsn_of(self, door: Door) -> str:
        dsn = self.cluster.primary.dsn_at("127.0.0.1", door.ports[0], self.database)
        if self.is_multihost:
            hosts = ",".join(f"127.0.0.1:{port}" for port in door.ports)
            dsn = dsn.replace(f"127.0.0.1:{door.ports[0]}", hosts) + "&target_session_attrs=read-write"
        return dsn

    async def serve(self, seat: Seat, kill_at: str | None = None) -> None:
        """Seat a new process; it is to die at a point, if one is named."""
        self.started += 1
        seat.api_key = f"sk-process-{self.started}"
        seat.killed_at = kill_at
        more = {"FAREBOX_KILL_AT": kill_at} if kill_at else {}
        environment = {
            **KNOWN,
            **self.environment,
            "FAREBOX_DATABASE_URL": self._dsn_of(seat.door),
            "FAREBOX_UPSTREAM_BASE_URL": self.upstream.base_url,
            "FAREBOX_UPSTREAM_API_KEY": seat.api_key,
            **more,
        }
        seat.process = self.gateways.start("serve", environment)
        await seat.process.announced()

    async def kill(self, seat: Seat) -> None:
        """`kill -9`, and remember whose calls were lost."""
        self.lost_keys.add(seat.api_key)
        if seat.is_alive:
            seat.process.send(signal.SIGKILL)
        await seat.process.ended()

    async def metrics(self, seat: Seat) -> dict[str, float]:
        """Each metric of a gateway, summed over its labels."""
        found: dict[str, float] = {}
        _, text = await seat.process.get("/metrics")
        for name, value in _METRIC.findall(text):
            found[name] = found.get(name, 0.0) + float(value)
        return found

    async def on_cluster(self, act: Any, *arguments: object) -> None:
        """Something slow that is done to the cluster, off the loop."""
        await asyncio.to_thread(act, *arguments)

    async def heal(self) -> None:
        """Everything works again: every door open, both servers well, every gateway alive."""
        for seat in self.seats:
            seat.door.restore()
            if seat.is_alive:
                seat.process.send(signal.SIGCONT)
        async with self.cluster_lock:
            await self.on_cluster(make_well, self.cluster)
        for seat in self.seats:
            # One that was to die and has not might do so when nothing is wrong any more.
            if seat.killed_at is not None or not seat.is_alive:
                await self.kill(seat)
        await asyncio.gather(*(self.serve(seat) for seat in self.seats if not seat.is_alive))
        await asyncio.gather(*(seat.process.answers_ready(200) for seat in self.seats))
        now = time.time()
        for window in self.windows:
            window.ended = window.ended or now

    def settled_at_rest(self) -> bool:
        """Whether no journal has a record."""
        return not any(path.stat().st_size for path in self.gateways.data_directory.glob("journal/*.journal"))

    async def load(self, over: asyncio.Event) -> list[Client]:
        """Let the clients ask until it is over, and then until each has its answer."""
        clients = [Client(number, self.seed, self.urls, self.keys, self.seen) for number in range(CLIENTS)]
        async with many_connections() as session:
            await asyncio.gather(*(client.run(session, over) for client in clients))
        return clients


def _targets(cluster: Cluster, *, is_multihost: bool) -> list[Callable[[], int]]:
    """Where the doors of a gateway lead: to each server, or to whichever is the primary."""
    if not is_multihost:
        return [lambda: cluster.primary.port]
    return [lambda port=node.port: port for node in (cluster.primary, cluster.standby)]  # type: ignore[misc]


def make_well(cluster: Cluster) -> None:
    """Both servers run, and the primary waits for its standby."""
    for node in (cluster.primary, cluster.standby):
        node.thaw()
    if not cluster.primary.pids:
        cluster.primary.start()
    if not cluster.standby.pids or _is_alone(cluster):
        cluster.rejoin()
    else:
        cluster.stand_together()


def _is_alone(cluster: Cluster) -> bool:
    """Whether the standby does not follow this primary, such as after a promotion."""
    # Another fault may have taken all connections for a moment.
    eventually_true(lambda: cluster.finds_one("SELECT 1"), 10.0)
    return not eventually_true(lambda: cluster.finds_one("SELECT count(*) FROM pg_stat_replication"), 1.0)


def eventually_true(condition: Any, seconds: float) -> bool:
    """Poll, blocking."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


async def make_template(cluster: Cluster) -> None:
    """A migrated database with the campaign's prices, to be copied for each seed."""
    cluster.ask(f"CREATE DATABASE {TEMPLATE}")
    dsn = cluster.primary.dsn_at("127.0.0.1", cluster.primary.port, TEMPLATE)
    await migrate(dsn)
    database = Database(dsn)
    try:
        await prices.save_models(database, [Model(MODEL, CONTEXT, OUTPUT)])
        none: tuple[Any, ...] = ()
        await prices.add_prices(database, [prices.PriceVersion(MODEL, datetime.now(UTC), RATES, none, "campaign")])
    finally:
        await database.close()


@asynccontextmanager
async def world(
    cluster: Cluster,
    seed: int,
    *,
    kill_at: Sequence[str | None] = (None,) * GATEWAYS,
    statements: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[World]:
    """A world that is ready. `kill_at` says where each gateway is to die; `statements` change the database first."""
    name = f"seed_{seed}_{os.getpid()}"
    await asyncio.to_thread(cluster.ask, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    async with AsyncExitStack() as stack:
        gateways = await stack.enter_async_context(Gateways(COMMAND))
        upstream = await stack.enter_async_context(FakeUpstream(by_case(), models=(MODEL,)))
        made = World(seed, random.Random(seed), cluster, name, gateways, upstream, environment=environment or {})
        for statement in statements:
            await made.fetch(statement)
        database = Database(made.dsn)
        try:
            for credit in CREDITS_NANOS:
                wallet_id, key = await make_wallet(database, format_nanos(credit))
                made.wallets.append(wallet_id)
                made.keys.append(key)
        finally:
            await database.close()
        for number in range(GATEWAYS):
            door = Door(*_targets(cluster, is_multihost=made.is_multihost))
            await door.open()
            stack.push_async_callback(door.close)
            made.seats.append(Seat(number, door, process=None, api_key=""))  # type: ignore[arg-type]
        await asyncio.gather(*(made.serve(seat, kill_at[seat.number]) for seat in made.seats))
        await asyncio.gather(*(eventually_ready(seat) for seat in made.seats))
        yield made
    await asyncio.to_thread(cluster.ask, f"DROP DATABASE {name} WITH (FORCE)")


async def eventually_ready(seat: Seat) -> None:
    """Wait until a gateway is ready, or has died where it was to die."""

    async def is_so() -> bool:
        return not seat.is_alive or (await seat.process.get("/readyz"))[0] == 200

    await eventually(is_so)
