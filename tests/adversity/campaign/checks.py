"""What must be true once everything is healed and at rest. Each check returns its differences; none on a sound gateway.

The oracle is the upstream's log: what it served, to whom, and what that was worth, by a sum made here with fractions.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from typing import Any

from gateway.core.catalogue import Meter
from gateway.core.money import parse_nanos
from gateway.db.audit import audit
from tests.adversity.campaign.load import CALL_SECONDS_MAX, Seen
from tests.adversity.campaign.world import CREDITS_NANOS, IS_IDEMPOTENT, RATES, RICH, World
from tests.support.call import Served
from tests.support.ledger_operations import open_ledger

# How long a trouble may be felt after it has ended: lanes and pools connect anew.
GRACE_SECONDS = 6.0
# By how much the times of a hold may be off: it waits in a lane, and a commit waits for the standby.
PAD_SECONDS = 8.0


@dataclass(slots=True)
class Ledger:
    """What the database says, read once at the end."""

    events: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    wallets: dict[str, dict[str, Any]] = field(default_factory=dict)
    open_holds: int = 0


async def read_ledger(world: World) -> Ledger:
    """The last read: from here on nothing is unknown."""
    ledger = Ledger()
    for row in await world.fetch("SELECT * FROM usage_events ORDER BY wallet_id, hold_id, late"):
        ledger.events[str(row["hold_id"])].append(row | {"wallet_id": str(row["wallet_id"])})
    for row in await world.fetch("SELECT * FROM wallets"):
        ledger.wallets[str(row["wallet_id"])] = row
    ledger.open_holds = (await world.fetch("SELECT count(*) AS n FROM holds WHERE state = 'open'"))[0]["n"]
    return ledger


def owed_nanos(served: Served) -> int:
    """What a whole reply costs, half to even, by the usage that the upstream reported."""
    usage = served.usage_objects[-1]
    assert isinstance(usage, dict)
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    picos = (usage["prompt_tokens"] - cached) * RATES[Meter.INPUT] + cached * RATES[Meter.CACHED_INPUT]
    return round(Fraction(picos + usage["completion_tokens"] * RATES[Meter.OUTPUT], 1_000))


async def invariants(world: World, ledger: Ledger) -> list[str]:
    """Every invariant holds, and the audit derives the same."""
    async with open_ledger(world.dsn) as opened:
        broken = await opened.broken()
    found = [f"{name}: {rows[0]}" for name, rows in broken.items()]
    outcome = await audit(world.dsn)
    found += [f"audit {f.check}: {f.first}" for f in outcome.findings if f.differences]
    return found


async def money(world: World, ledger: Ledger) -> list[str]:
    """What a wallet had, less what it was charged, is what it has."""
    found = [f"{ledger.open_holds} holds are open"] if ledger.open_holds else []
    for wallet_id, credit in zip(world.wallets, CREDITS_NANOS, strict=True):
        events = [e for rows in ledger.events.values() for e in rows if e["wallet_id"] == wallet_id]
        charged = sum(event["charged_nanos"] for event in events)
        row = ledger.wallets[wallet_id]
        if (row["balance_nanos"], row["held_nanos"]) != (credit - charged, 0):
            found.append(f"{charged} of {credit} charged, {row['balance_nanos']} left, {row['held_nanos']} held")
    return found


async def served_is_charged(world: World, ledger: Ledger) -> list[str]:
    """Each call that was served is resolved once, and charged what the oracle says; nothing else is charged."""
    log: dict[str, Served] = {}
    found = []
    for served in world.upstream.log:
        assert served.request_id is not None
        if served.request_id in log:
            found.append(f"{served.request_id} was asked twice")
        log[served.request_id] = served
        rows = ledger.events[served.request_id]
        if sum(not row["late"] for row in rows) != 1:
            found.append(f"{served.request_id} was served and has {len(rows)} resolutions")
        elif wrong := _wrong_charge(world, served, rows):
            found.append(f"{served.request_id} {wrong}")
    for hold_id, rows in ledger.events.items():
        if hold_id not in log and any(row["charged_nanos"] for row in rows):
            found.append(f"{hold_id} was charged and never served")
    return found


def _wrong_charge(world: World, served: Served, rows: list[dict[str, Any]]) -> str | None:
    charged = sum(row["charged_nanos"] for row in rows)
    short = sum(row["shortfall_nanos"] for row in rows)
    is_reported = any(row["basis"] == "reported" for row in rows)
    if short and not any(row["late"] or row["reason"] == "swept" for row in rows):
        return f"fell short by {short} though its hold was open"
    if is_reported:
        owed = owed_nanos(served)
        if charged + short == owed or (charged > owed and _swept_too_much(rows, charged)):
            return None
        return f"was charged {charged} and {short} short, and cost {owed}"
    # A stream whose hold could not grow is cut, though the upstream may have written all of it by then.
    is_cut = any(row["reason"] == "cut_off" for row in rows)
    if served.completed and served.usage_objects and not is_cut and not _is_lost(world, served):
        return f"was served whole by a gateway that lived, and was charged {charged} by {rows[-1]['reason']}"
    # An estimate counts a token for four bytes; a word of the oracle's has at most six.
    prompt = served.prompt_tokens or len(served.body)
    most = 2 * (prompt + 8) * 2 + 9 * (served.output_tokens_sent + 2)
    if charged > most:
        return f"was charged {charged} by estimate, for {served.output_tokens_sent} tokens"
    return None


def _swept_too_much(rows: list[dict[str, Any]], charged: int) -> bool:
    """A sweep charges its checkpoint, an estimate; a late settle never gives back."""
    return any(row["resolution"] == "expired" and row["charged_nanos"] == charged for row in rows)


def _is_lost(world: World, served: Served) -> bool:
    """Whether the gateway that asked did not live to settle it."""
    return served.headers.get("Authorization", "").removeprefix("Bearer ") in world.lost_keys


async def seen_is_charged(world: World, ledger: Ledger) -> list[str]:
    """Each reply that a client saw whole is charged exactly once, for what it cost, as the reply says."""
    log = {served.request_id: served for served in world.upstream.log}
    found = []
    for seen in world.seen:
        if not seen.whole:
            continue
        rows = ledger.events.get(str(seen.hold_id), [])
        served = log.get(seen.hold_id)
        if served is None or not any(row["resolution"] == "settled" for row in rows):
            found.append(f"seen whole and not settled: {seen}")
            continue
        cost = [row["cost_nanos"] for row in rows if row["resolution"] == "settled"]
        owed = owed_nanos(served) if served.usage_objects else cost[0]
        if cost != [owed] or (seen.cost is not None and parse_nanos(seen.cost) != owed):
            found.append(f"seen whole, told {seen.cost}, settled {cost}, and cost {owed}: {seen}")
    return found


async def refusals_are_justified(world: World, ledger: Ledger) -> list[str]:
    """402 only where the funds fell short at some instant, 503 and broken replies only in a time of trouble."""
    log = {served.request_id: served for served in world.upstream.log}
    found = []
    for seen in world.seen:
        if seen.error == "TimeoutError":
            found.append(f"no end within {CALL_SECONDS_MAX:.0f} s: {seen}")
        if seen.whole or seen.has_left or _upstream_did_it(log.get(seen.hold_id)):
            continue
        if seen.status == 409 and IS_IDEMPOTENT:
            if not seen.error_code or not seen.error_code.startswith("idempotent_"):
                found.append(f"unexpected: {seen}")
        elif seen.error_code == "cut_off" and seen.wallet not in RICH:
            continue  # a hold of all that the wallet had
        elif seen.status == 402:
            if wrong := _unjustified(world, ledger, seen):
                found.append(f"{wrong}: {seen}")
        elif seen.status == 503 or seen.status is None or seen.status == 200:
            if not _in_trouble(world, seen):
                found.append(f"nothing was wrong: {seen}")
        else:
            found.append(f"unexpected: {seen} {seen.body[:200]!r}")
        if seen.status == 503 and seen.retry_after is None:
            found.append(f"no Retry-After: {seen}")
    return found


def _upstream_did_it(served: Served | None) -> bool:
    """Whether the upstream itself refused or broke."""
    return served is not None and (served.status != 200 or (served.ended and not served.completed))


def _in_trouble(world: World, seen: Seen) -> bool:
    """Whether something was wrong while the call lasted, or shortly before."""
    return any(
        window.began <= seen.ended and seen.began <= (window.ended or seen.ended) + GRACE_SECONDS
        for window in world.windows
    )


def _unjustified(world: World, ledger: Ledger, seen: Seen) -> str | None:
    """Why a refusal for lack of funds is wrong, if it is. Times are padded in its favour."""
    if seen.wallet in RICH:
        return "refused, and the wallet has plenty"
    required = parse_nanos(seen.required)
    least = CREDITS_NANOS[seen.wallet]
    for rows in ledger.events.values():
        for row in rows:
            if row["wallet_id"] != world.wallets[seen.wallet]:
                continue
            resolved = _unix(row["created_at"])
            if resolved <= seen.ended + PAD_SECONDS:
                least -= row["charged_nanos"]
            placed = 0.0 if world.has_jumped else int(str(row["hold_id"]).replace("-", "")[:12], 16) / 1_000
            if placed <= seen.ended + PAD_SECONDS and resolved >= seen.began - PAD_SECONDS and not row["late"]:
                least -= row["held_nanos"]
    return None if least < required else f"refused {required}, and at least {least} was free"


def _unix(moment: datetime) -> float:
    return moment.timestamp()


async def one_key_is_charged_once(world: World, ledger: Ledger) -> list[str]:
    """Whoever asks again with the same Idempotency-Key is answered with the same call, and charged for one."""
    by_key: dict[str, set[str]] = defaultdict(set)
    for seen in world.seen:
        if seen.hold_id is not None and any(row["charged_nanos"] for row in ledger.events[seen.hold_id]):
            by_key[seen.key].add(seen.hold_id)
    return [f"{key} was charged as {holds}" for key, holds in by_key.items() if len(holds) > 1 and IS_IDEMPOTENT]


CHECKS = (
    invariants,
    money,
    served_is_charged,
    seen_is_charged,
    refusals_are_justified,
    one_key_is_charged_once,
)


async def differences(world: World, ledger: Ledger) -> list[str]:
    """Everything that is wrong."""
    found: list[str] = []
    for check in CHECKS:
        found += [f"{check.__name__}: {wrong}" for wrong in first(await check(world, ledger))]
    return found


def first(found: Iterable[str], count: int = 8) -> list[str]:
    """The first few; one fault may have thousands of victims."""
    listed = list(found)
    rest = [f"and {len(listed) - count} more"] if len(listed) > count else []
    return listed[:count] + rest
