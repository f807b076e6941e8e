"""Faults, each drawn by lot and each with evidence that it took place: `act` returns whether it was reached.

A fault ends what it began. Those that touch the database servers take turns; all others overlap as they fall.
"""

import asyncio
import contextlib
import resource
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp
import asyncpg

from gateway import points
from tests.adversity.campaign.door import Strike
from tests.adversity.campaign.world import HOLD_VALID_SECONDS, Seat, World, make_well
from tests.support.processes import eventually

KILLS = tuple(f"kill:{point}" for point in points.NAMES)
OURS = "application_name = 'farebox' AND datname = current_database()"
STRIKE_SECONDS_MAX = 3.0
ASYNCPG_SAYS_AWAY = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


@dataclass(frozen=True, slots=True)
class Fault:
    """`act(world, seat)` does it and undoes it."""

    act: Callable[[World, Seat], Awaitable[bool]]
    weight: int = 2


async def door_cut(world: World, seat: Seat) -> bool:
    """The ledger is away; what is settled meanwhile is journaled, and replayed."""
    seat.door.cut()
    try:
        return await _journaled(world, seat, 2.5)
    finally:
        seat.door.restore()


async def door_delay(world: World, seat: Seat) -> bool:
    """Up to the deadline of a statement, and past it."""
    seat.door.delay_seconds = world.dice.choice((0.02, 0.1, 0.3, 0.7, 1.5, 5.0))
    await asyncio.sleep(1.5)
    seat.door.restore()
    return True


async def door_deaf(world: World, seat: Seat) -> bool:
    """A partition one way: questions are lost, and come late."""
    seat.door.deafen()
    await asyncio.sleep(world.dice.uniform(0.3, 2.0))
    seat.door.restore()
    return True


async def door_mute(world: World, seat: Seat) -> bool:
    """A partition the other way: what was done is not heard of."""
    seat.door.mute()
    await asyncio.sleep(world.dice.uniform(0.3, 2.0))
    seat.door.restore()
    return True


def strike(kind: Strike) -> Callable[[World, Seat], Awaitable[bool]]:
    """Statements of a lane are struck, now and then."""

    async def act(world: World, seat: Seat) -> bool:
        before = seat.door.struck[kind]
        for _ in range(world.dice.randrange(1, 6)):
            seat.door.strikes.append(kind)
            await asyncio.sleep(world.dice.choice((0.0, 0.1)))
        with contextlib.suppress(TimeoutError):
            await eventually(lambda: not seat.door.strikes, within_seconds=STRIKE_SECONDS_MAX)
        return seat.door.struck[kind] > before

    return act


async def primary_killed(world: World, seat: Seat) -> bool:
    """`kill -9` of PostgreSQL, and a recovery."""
    async with world.cluster_lock:
        await world.on_cluster(world.cluster.primary.kill)
        await asyncio.sleep(world.dice.uniform(0.0, 1.5))
        await world.on_cluster(world.cluster.primary.start)
    return True


async def primary_frozen(world: World, seat: Seat) -> bool:
    async with world.cluster_lock:
        await world.on_cluster(world.cluster.primary.freeze)
        await asyncio.sleep(world.dice.uniform(0.3, 2.5))
        await world.on_cluster(world.cluster.primary.thaw)
    return True


async def standby_frozen(world: World, seat: Seat) -> bool:
    """Commits wait for their standby, past the lanes' deadline."""
    async with world.cluster_lock:
        await world.on_cluster(make_well, world.cluster)  # another failover may have left it alone
        await world.on_cluster(world.cluster.standby.freeze)
        await asyncio.sleep(world.dice.uniform(0.5, 2.0))
        await world.on_cluster(world.cluster.standby.thaw)
    return True


async def standby_killed(world: World, seat: Seat) -> bool:
    async with world.cluster_lock:
        await world.on_cluster(make_well, world.cluster)  # another failover may have left it alone
        await world.on_cluster(world.cluster.standby.kill)
        await asyncio.sleep(world.dice.uniform(0.3, 1.5))
        await world.on_cluster(world.cluster.standby.start)
    return True


async def promoted(world: World, seat: Seat) -> bool:
    """The primary freezes or dies with commits in flight; its standby takes its place."""
    async with world.cluster_lock:
        await world.on_cluster(make_well, world.cluster)  # another failover may have left it alone
        return await _fail_over(world)


async def promoted_behind(world: World, seat: Seat) -> bool:
    """The same, after a while in which the standby was dead: commits waited for it, and were asked again."""
    async with world.cluster_lock:
        await world.on_cluster(make_well, world.cluster)  # another failover may have left it alone
        await world.on_cluster(world.cluster.standby.kill)
        await asyncio.sleep(2.6)
        await _fail_over_to_the_past(world)
    return True


async def promoted_cancelled(world: World, seat: Seat) -> bool:
    """The same; and somebody cancelled the waiting statements. PostgreSQL then answers as if they were safe."""
    async with world.cluster_lock:
        await world.on_cluster(make_well, world.cluster)  # another failover may have left it alone
        await world.on_cluster(world.cluster.standby.kill)
        cancelled = 0
        for _ in range(6):
            await asyncio.sleep(0.25)
            cancelled += await _signal_backends(world, "pg_cancel_backend")
        await _fail_over_to_the_past(world)
    return cancelled > 0


async def _fail_over_to_the_past(world: World) -> None:
    """The standby comes back with what it had, and is made the primary. A frozen one would find more in its socket."""
    await world.on_cluster(world.cluster.primary.kill)
    await world.on_cluster(world.cluster.standby.start)
    await _fail_over(world)


async def _fail_over(world: World) -> bool:
    old = world.cluster.primary
    if old.pids:
        await world.on_cluster(world.dice.choice((old.freeze, old.kill)))
    await world.on_cluster(world.cluster.promote)
    # Fenced: whoever is still connected to it hears nothing more.
    await world.on_cluster(old.kill)
    return world.cluster.primary is not old


async def queries_cancelled(world: World, seat: Seat) -> bool:
    """pg_cancel_backend of whatever runs, again and again."""
    cancelled = 0
    for _ in range(40):
        cancelled += await _signal_backends(world, "pg_cancel_backend")
        await asyncio.sleep(0.02)
    return cancelled > 0


async def backends_terminated(world: World, seat: Seat) -> bool:
    """57P01, in the middle of whatever runs."""
    ended = 0
    for _ in range(4):
        ended += await _signal_backends(world, "pg_terminate_backend")
        await asyncio.sleep(0.2)
    return ended > 0


async def _signal_backends(world: World, function: str) -> int:
    state = "state = 'active'" if "cancel" in function else "true"
    statement = f"SELECT count({function}(pid)) AS n FROM pg_stat_activity WHERE {OURS} AND {state}"
    with contextlib.suppress(*ASYNCPG_SAYS_AWAY):
        return int((await world.fetch(statement))[0]["n"])
    return 0


async def deadlocked(world: World, seat: Seat) -> bool:
    """A stranger locks two wallets in the wrong order; PostgreSQL gives the lane's statement up."""
    low, high = sorted(world.wallets[:2])
    lock = "SELECT FROM wallets WHERE wallet_id = $1 FOR UPDATE"
    mine = "SELECT count(*) > 0 FROM pg_stat_activity WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))"
    with contextlib.suppress(*ASYNCPG_SAYS_AWAY):
        connection = await asyncpg.connect(world.dsn, timeout=5.0, server_settings={"deadlock_timeout": "20s"})
        try:
            for _ in range(6):
                async with connection.transaction():
                    await connection.execute(lock, high, timeout=2.0)
                    await eventually(lambda: connection.fetchval(mine), within_seconds=0.8)
                    await connection.execute(lock, low, timeout=2.0)
                await asyncio.sleep(0.05)
        finally:
            connection.terminate()
    # Counted by each backend, and told a little later.
    await asyncio.sleep(1.2)
    with contextlib.suppress(*ASYNCPG_SAYS_AWAY):
        told = await world.fetch("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        return int(told[0]["deadlocks"]) > 0
    return False


async def connections_exhausted(world: World, seat: Seat) -> bool:
    """53300 for whoever must connect anew."""
    taken: list[asyncpg.Connection] = []
    is_full = False
    try:
        await _take_connections(world, taken)
    except asyncpg.TooManyConnectionsError:
        is_full = True
    except ASYNCPG_SAYS_AWAY:
        pass  # another fault has taken the server away
    try:
        if is_full and taken:
            with contextlib.suppress(*ASYNCPG_SAYS_AWAY):
                # Each place that comes free is taken at once, before its gateway is back.
                await taken[0].fetch(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OURS}", timeout=5)
                await _take_connections(world, taken)
            await asyncio.sleep(1.0)
    finally:
        for connection in taken:
            connection.terminate()
    return is_full


async def _take_connections(world: World, taken: list[asyncpg.Connection]) -> None:
    while len(taken) < 200:
        taken.append(await asyncpg.connect(world.dsn, timeout=5.0))


async def gateway_frozen(world: World, seat: Seat) -> bool:
    if not seat.is_alive:
        return False
    seat.process.send(signal.SIGSTOP)
    await asyncio.sleep(world.dice.uniform(0.3, 1.5))
    seat.process.send(signal.SIGCONT)
    return True


async def gateway_overslept(world: World, seat: Seat) -> bool:
    """Frozen for longer than the sweep waits: what it settles then is late."""
    if not seat.is_alive:
        return False
    seat.process.send(signal.SIGSTOP)
    await asyncio.sleep(2 * HOLD_VALID_SECONDS + 0.8)
    seat.process.send(signal.SIGCONT)
    return True


async def gateway_stopped(world: World, seat: Seat) -> bool:
    """SIGTERM with calls in flight: what does not end in time is cut, well-formed, and settled."""
    if not seat.is_alive:
        return False
    world.lost_keys.add(seat.api_key)
    seat.process.send(signal.SIGTERM)
    return await seat.process.ended() == 0


async def holds_swept(world: World, seat: Seat) -> bool:
    """Open holds are made to look old, so that sweeps race with checkpoints, settles and voids."""
    aged = 0
    for _ in range(12):
        statement = "WITH a AS (UPDATE holds SET renewed_at = now() - interval '1 hour' RETURNING 1) SELECT FROM a"
        with contextlib.suppress(*ASYNCPG_SAYS_AWAY):
            aged += len(await world.fetch(statement))
        await asyncio.sleep(0.05)
    return aged > 0


async def clock_jumped(world: World, seat: Seat) -> bool:
    """An hour ahead, and back again."""
    if not seat.is_alive or seat.api_key in world.lost_keys:
        return False
    world.has_jumped = True
    seat.process.send(signal.SIGUSR2)
    await asyncio.sleep(1.0)
    if seat.is_alive:
        seat.process.send(signal.SIGUSR2)
    return True


async def journal_full(world: World, seat: Seat) -> bool:
    """No file of this gateway may grow while the ledger is away: it takes no new calls, and loses none."""
    if not seat.is_alive:
        return False
    _, most = resource.prlimit(seat.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    seat.door.cut()
    try:
        await asyncio.sleep(3.0)
        found = await _metric(world, seat, "farebox_journal_failures_total")
    finally:
        seat.door.restore()
        if seat.is_alive:
            resource.prlimit(seat.process.pid, resource.RLIMIT_FSIZE, (most, most))
    return found > 0


async def journal_torn(world: World, seat: Seat) -> bool:
    """Killed with a journal, in the middle of writing the next record: others take it over."""
    if not seat.is_alive:
        return False
    seat.door.cut()
    await _journaled(world, seat, 2.5)
    own = world.gateways.data_directory.glob(f"journal/{seat.process.pid}-*.journal")
    await world.kill(seat)
    torn = [path for path in own if path.stat().st_size]
    for path in torn:
        whole = path.read_bytes()
        with path.open("ab") as file:
            file.write(whole[: len(whole) // 2][:60])
    seat.door.restore()
    return bool(torn)


async def _journaled(world: World, seat: Seat, seconds: float) -> bool:
    """Wait so long; whether there was a record in the journal meanwhile."""
    most = 0.0
    for _ in range(5):
        await asyncio.sleep(seconds / 5)
        most = max(most, await _metric(world, seat, "farebox_journal_records"))
    return most > 0


async def _metric(world: World, seat: Seat, name: str) -> float:
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        async with asyncio.timeout(2.0):
            return (await world.metrics(seat)).get(name, 0.0)
    return 0.0


FAULTS: dict[str, Fault] = {
    "door_cut": Fault(door_cut),
    "door_delay": Fault(door_delay),
    "door_deaf": Fault(door_deaf),
    "door_mute": Fault(door_mute),
    **{f"strike:{kind}": Fault(strike(kind)) for kind in Strike},
    "primary_killed": Fault(primary_killed),
    "primary_frozen": Fault(primary_frozen),
    "standby_frozen": Fault(standby_frozen),
    "standby_killed": Fault(standby_killed),
    "promoted": Fault(promoted, 3),
    "promoted_behind": Fault(promoted_behind),
    "promoted_cancelled": Fault(promoted_cancelled),
    "queries_cancelled": Fault(queries_cancelled),
    "deadlocked": Fault(deadlocked),
    "backends_terminated": Fault(backends_terminated),
    "connections_exhausted": Fault(connections_exhausted),
    "gateway_frozen": Fault(gateway_frozen),
    "gateway_overslept": Fault(gateway_overslept),
    "gateway_stopped": Fault(gateway_stopped),
    "holds_swept": Fault(holds_swept, 3),
    "clock_jumped": Fault(clock_jumped),
    "journal_full": Fault(journal_full),
    "journal_torn": Fault(journal_torn),
}
