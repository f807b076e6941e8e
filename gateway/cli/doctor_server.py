"""What the doctor asks of a PostgreSQL server: does a commit survive, is there room, and who stands between."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

from gateway.clock import unix_seconds
from gateway.db.migrate import unsafe_settings
from gateway.db.pool import Connection, LedgerAway, Row, connect, is_pooled
from gateway.db.queries import queries
from gateway.settings import Settings

CONNECTIONS_ADVISED = 20
# One for the lane, one that listens, four for reads, eight for kept replies, and one for a command.
CONNECTIONS_PER_GATEWAY = 15
# A hold's id carries this machine's clock, and the ledger refuses ids a day ahead of its own.
SKEW_WARN_SECONDS = 2.0
SKEW_FAIL_SECONDS = 3_600.0
# What a role's own deadlines would cut off, while Farebox has deadlines of its own.
_TIMEOUTS = ("statement_timeout", "lock_timeout", "idle_session_timeout", "transaction_timeout")
_WAITS_FOR_DISK = ("on", "remote_apply")
_SYNCHRONOUS = ("sync", "quorum")


class State(StrEnum):
    """How a check went."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One check: what was seen, and what to do about it."""

    name: str
    state: State
    detail: str
    advice: str = ""


async def examine(connection: Connection, settings: Settings) -> list[Check]:
    """Everything about the server that needs no migrated database. Raises LedgerAway."""
    facts = {row["name"]: row["setting"] for row in await connection.fetch(queries()["database_settings"])}
    kind = "embedded" if settings.database_url is None else "external"
    standbys = cast(Sequence[Row], await connection.fetch(queries()["doctor_standbys"]))
    slots = [row["slot_name"] for row in await connection.fetch(queries()["doctor_idle_slots"])]
    used = int(await connection.fetchval(queries()["doctor_connections"]))
    skew_seconds = (await connection.fetchval(queries()["database_now"])).timestamp() - unix_seconds()
    return [
        Check("database", State.OK, f"{kind} PostgreSQL {facts['server_version']}"),
        durability(await unsafe_settings(connection), facts),
        standby(facts, standbys),
        replication_slots(slots),
        timeouts(facts),
        connections(int(facts["max_connections"]) - int(facts["superuser_reserved_connections"]), used),
        clock(skew_seconds),
        await writable(connection),
        await pooler(connection, settings),
    ]


def durability(problems: list[str], facts: Mapping[str, str]) -> Check:
    """Does a commit survive a crash of this server?"""
    if problems:
        return Check("durability", State.FAIL, "; ".join(problems), "change that before money depends on it")
    detail = f"synchronous_commit {facts['synchronous_commit']}, wal_level {facts['wal_level']}"
    if facts["wal_level"] == "minimal":
        advice = "set wal_level = replica: with minimal there is neither a standby nor a backup to a point in time"
        return Check("durability", State.WARN, detail, advice)
    return Check("durability", State.OK, detail)


def standby(facts: Mapping[str, str], streaming: Sequence[Row]) -> Check:
    """Does a commit survive the loss of this server? Without any standby that is the operator's choice."""
    named = facts["synchronous_standby_names"]
    names = ", ".join(row["application_name"] for row in streaming)
    if not named and not streaming:
        return Check("standby", State.OK, "none: what this server's disk loses is lost")
    if not named:
        advice = "a failover loses what was committed last: name it in synchronous_standby_names"
        return Check("standby", State.WARN, f"asynchronous: {names}", advice)
    if facts["synchronous_commit"] not in _WAITS_FOR_DISK:
        advice = "set synchronous_commit = on: no commit waits for the disk of a standby"
        return Check("standby", State.WARN, f"synchronous_commit is {facts['synchronous_commit']}", advice)
    if not streaming:
        return Check("standby", State.WARN, f"{named} is away", "bring it back: until then commits wait")
    if all(row["sync_state"] is None for row in streaming):
        return Check("standby", State.WARN, f"{names}: hidden from this role", "GRANT pg_monitor to it, to see them")
    synchronous = [row["application_name"] for row in streaming if row["sync_state"] in _SYNCHRONOUS]
    if not synchronous:
        advice = "bring a standby of that name back: until then commits wait"
        return Check("standby", State.WARN, f"{named} is named, and only {names} is there", advice)
    return Check("standby", State.OK, f"synchronous: {', '.join(synchronous)}")


def replication_slots(idle: Sequence[str]) -> Check:
    """A slot that nobody reads fills the disk."""
    if idle:
        advice = "drop them (pg_drop_replication_slot), or set max_slot_wal_keep_size: their log fills the disk"
        return Check("replication_slots", State.WARN, f"idle: {', '.join(idle)}", advice)
    return Check("replication_slots", State.OK, "none is idle")


def timeouts(facts: Mapping[str, str]) -> Check:
    """A deadline of the role's would cut off what Farebox waits for."""
    given = [f"{name} {facts[name]} ms" for name in _TIMEOUTS if facts.get(name, "0") != "0"]
    if given:
        advice = "reset them for this role and database: Farebox has its own deadlines, and asks again"
        return Check("timeouts", State.WARN, ", ".join(given), advice)
    return Check("timeouts", State.OK, "none for this role")


def connections(connections_max: int, used: int) -> Check:
    """Is there room for a gateway more?"""
    if connections_max < CONNECTIONS_ADVISED:
        advice = f"set max_connections to {CONNECTIONS_ADVISED} or more: each gateway uses up to fifteen"
        return Check("max_connections", State.WARN, str(connections_max), advice)
    if connections_max - used < CONNECTIONS_PER_GATEWAY:
        advice = "raise max_connections, or stop other clients: each gateway uses up to fifteen"
        return Check("max_connections", State.WARN, f"{used} of {connections_max} are in use", advice)
    return Check("max_connections", State.OK, f"{used} of {connections_max} are in use")


def clock(skew_seconds: float) -> Check:
    """Do this machine and the database agree on the time?"""
    apart = abs(skew_seconds)
    state = State.OK if apart < SKEW_WARN_SECONDS else State.WARN if apart < SKEW_FAIL_SECONDS else State.FAIL
    advice = "" if state is State.OK else "set both clocks by NTP: ids and expiry dates depend on them"
    return Check("clock", state, f"{apart:.1f} s between the database and this machine", advice)


async def writable(connection: Connection) -> Check:
    """Does the server take writes?"""
    if await connection.fetchval(queries()["database_writable"]):
        return Check("writable", State.OK, "takes writes")
    advice = "name the primary in FAREBOX_DATABASE_URL, or add target_session_attrs=read-write"
    return Check("writable", State.FAIL, "takes no writes: a standby, or read-only by default", advice)


async def pooler(connection: Connection, settings: Settings) -> Check:
    """Is what one gateway says heard by another? Not through a pool of transactions."""
    listen = settings.listen_database_url
    if listen is None:
        if not await is_pooled(connection):
            return Check("pooler", State.OK, "none")
        advice = "set listen_database_url past it: until then every key is looked up again after half a second"
        return Check("pooler", State.WARN, "a pooler, such as PgBouncer", advice)
    try:
        direct = await connect(listen.get_secret_value())
    except LedgerAway as error:
        advice = "correct it: until then every key is looked up again after half a second"
        return Check("pooler", State.FAIL, f"listen_database_url cannot be reached ({error})", advice)
    try:
        if await is_pooled(direct):
            return Check("pooler", State.WARN, "listen_database_url leads to a pooler", "name the server itself there")
    finally:
        await direct.close()
    return Check("pooler", State.OK, "listen_database_url leads past any")


async def partitions(connection: Connection) -> Check:
    """Have the usage events of next month a place? For a migrated database."""
    if await connection.fetchval(queries()["doctor_next_month"]):
        return Check("partitions", State.OK, "made ahead")
    advice = "run a gateway, which makes them hourly, or `farebox migrate`; see FareboxUpkeepStale"
    return Check("partitions", State.FAIL, "next month has none: from its first day no call could be charged", advice)
