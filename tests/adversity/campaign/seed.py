"""One seed, from the drawing of its faults to the last check."""

import asyncio
import random
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.adversity.campaign.checks import Ledger, differences, read_ledger
from tests.adversity.campaign.faults import FAULTS, KILLS
from tests.adversity.campaign.load import Client, Seen, Wish, body_of, call
from tests.adversity.campaign.world import GATEWAYS, HOLD_VALID_SECONDS, RICH, World, world
from tests.adversity.witness import many_connections
from tests.support.cluster import Cluster
from tests.support.processes import eventually

ARTIFACTS = Path(".artifacts")
LOAD_SECONDS = 3.0
START_SECONDS_MAX = 1.8
# After twice a hold's validity the next sweep resolves it; the slack is for a slow machine.
REST_SECONDS_MAX = 2 * HOLD_VALID_SECONDS + 8.0


@dataclass(frozen=True, slots=True)
class Draw:
    """A fault, the gateway that it is for, and when it begins. A kill is armed at the start: `visits` to its point."""

    fault: str
    gateway: int
    at_seconds: float
    visits: int = 0


@dataclass(slots=True)
class Report:
    """What became of one seed. `differences` is empty where all is well."""

    seed: int
    draws: Sequence[Draw] = ()
    drawn: Counter[str] = field(default_factory=Counter)
    reached: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)
    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)

    def phase(self, name: str, since: float) -> float:
        """Note how long a phase took; when the next begins."""
        now = time.monotonic()
        self.phases[name] = now - since
        return now


def draw(seed: int, *, faults: Sequence[str] | None = None) -> list[Draw]:
    """Two to four faults, always the same for a seed, or those that are named."""
    dice = random.Random(f"faults {seed}")
    names = [*FAULTS, *KILLS]
    weights = [*(fault.weight for fault in FAULTS.values()), *(1 for _ in KILLS)]
    chosen = list(faults) if faults is not None else []
    while faults is None and len(chosen) < 2 + seed % 3:
        name = dice.choices(names, weights)[0]
        if name not in chosen:
            chosen.append(name)
    drawn = []
    for number, name in enumerate(chosen):
        visits = dice.randrange(3, 25) * (4 if name.endswith("mid_stream") else 1)
        drawn.append(Draw(name, (seed + number) % GATEWAYS, dice.uniform(0.2, START_SECONDS_MAX), visits))
    return drawn


async def run_seed(
    cluster: Cluster,
    seed: int,
    *,
    faults: Sequence[str] | None = None,
    statements: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    load_seconds: float = LOAD_SECONDS,
) -> Report:
    """Live one seed. Raises only where the campaign itself is broken."""
    began = time.monotonic()
    report = Report(seed, draw(seed, faults=faults))
    report.drawn.update(one.fault for one in report.draws)
    kill_at: list[str | None] = [None] * GATEWAYS
    for one in report.draws:
        if one.fault in KILLS:
            kill_at[one.gateway] = f"{one.fault.removeprefix('kill:')}:{one.visits}"
    async with world(cluster, seed, kill_at=kill_at, statements=statements, environment=environment) as made:
        at = report.phase("start", began)
        over = asyncio.Event()
        loading = asyncio.create_task(made.load(over))
        watching = asyncio.create_task(_watch_deaths(made, report))
        acting = [_act(made, one, report) for one in report.draws if one.fault not in KILLS]
        # What comes after a fault is asked for too.
        await asyncio.gather(asyncio.sleep(load_seconds), *acting)
        over.set()
        clients = await loading
        at = report.phase("load", at)
        watching.cancel()
        _note_deaths(made, report)
        await made.heal()
        healed = at = report.phase("heal", at)
        await _last_calls(made, report)
        await _come_to_rest(made, report, healed)
        at = report.phase("rest", at)
        ledger = await read_ledger(made)
        report.differences += await differences(made, ledger)
        report.phase("check", at)
        if report.differences:
            for seat in made.seats:  # what its gateways said, for whoever looks into it
                ARTIFACTS.mkdir(parents=True, exist_ok=True)
                shutil.copy(seat.process.log, ARTIFACTS / f"campaign-{seed}-{seat.number}.log")
        _count(made, ledger, clients, report)
        for seat in made.seats:
            report.seen["extended"] += int((await made.metrics(seat)).get("farebox_hold_extensions_total", 0))
    report.seconds = time.monotonic() - began
    return report


async def _act(made: World, one: Draw, report: Report) -> None:
    await asyncio.sleep(one.at_seconds)
    window = made.trouble(one.fault)
    try:
        if await FAULTS[one.fault].act(made, made.seats[one.gateway]):
            report.reached[one.fault] += 1
    finally:
        window.ended = time.time()


async def _watch_deaths(made: World, report: Report) -> None:
    """A gateway's death is a trouble from its last sign of life until everything is healed."""
    while True:
        _note_deaths(made, report)
        await asyncio.sleep(0.1)


def _note_deaths(made: World, report: Report) -> None:
    for seat in made.seats:
        if seat.is_alive or any(window.what == seat.api_key for window in made.windows):
            continue
        made.trouble(seat.api_key).began -= 1.0
        made.lost_keys.add(seat.api_key)
        if seat.killed_at is not None and seat.process.process.returncode == -9:
            point = seat.killed_at.partition(":")[0]
            report.reached[f"kill:{point}"] += 1
            seat.killed_at = None


async def _last_calls(made: World, report: Report) -> None:
    """Every gateway serves again: the last calls are whole, or something is still wrong."""
    async with many_connections() as session:

        async def ask(gateway: int, wallet: int, *, stream: bool) -> Seen:
            wanted = Wish(wallet, 7, stream, 30, None, f"last-{gateway}-{wallet}-{stream}")
            seen = Seen(gateway=gateway, wallet=wallet, case=7, stream=stream, key=wanted.key)
            body = body_of(wanted, random.Random(made.seed))
            made.seen.append(seen)
            return await call(session, made.urls()[gateway], made.keys[wallet], wanted, body, seen)

        async def served() -> bool:
            asked = [(g, w, s) for g in range(GATEWAYS) for w in RICH for s in (True, False)]
            answers = await asyncio.gather(*(ask(g, w, stream=s) for g, w, s in asked))
            return all(seen.whole for seen in answers)

        try:
            await eventually(served)
        except TimeoutError:
            report.differences.append(f"the last calls are not served: {made.seen[-1]}")


async def _come_to_rest(made: World, report: Report, healed: float) -> None:
    async def is_at_rest() -> bool:
        held = await made.fetch("SELECT coalesce(sum(held_nanos), 0)::bigint AS n FROM wallets")
        unsettled = [(await made.metrics(seat)).get("farebox_unsettled", 0.0) for seat in made.seats]
        return held[0]["n"] == 0 and not any(unsettled) and made.settled_at_rest()

    try:
        await eventually(is_at_rest, within_seconds=REST_SECONDS_MAX)
    except TimeoutError:
        after = time.monotonic() - healed
        report.differences.append(f"money is still held, or journaled, {after:.1f} s after everything was healed")


def _count(made: World, ledger: Ledger, clients: Sequence[Client], report: Report) -> None:
    """What the clients went through, and which paths of the ledger were taken."""
    seen, statuses = report.seen, Counter(str(one.status) for one in made.seen)
    seen["calls"] = len(made.seen)
    seen["whole"] = sum(one.whole for one in made.seen)
    seen["left"] = sum(one.has_left for one in made.seen)
    seen["insufficient_funds"] = statuses["402"]
    seen["unavailable"] = statuses["503"]
    seen["broken"] = sum(bool(one.error) for one in made.seen)
    seen["retries"] = sum(client.retries for client in clients)
    seen["replayed"] = sum(one.is_replay for one in made.seen)
    seen["duplicates"] = sum(client.duplicates for client in clients)
    events = [event for rows in ledger.events.values() for event in rows]
    for resolution in ("settled", "voided", "expired"):
        seen[f"hold {resolution}"] = sum(event["resolution"] == resolution for event in events)
    seen["settled late"] = sum(event["late"] for event in events)
    seen["checkpoint charged"] = sum(
        event["resolution"] == "expired" and event["charged_nanos"] > 0 for event in events
    )
    seen["cut off"] = sum(event["reason"] == "cut_off" for event in events)
    seen["shortfall"] = sum(event["shortfall_nanos"] > 0 for event in events)
