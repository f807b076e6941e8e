"""What the doctor says of a server: each verdict once as a table, and against real servers."""

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from gateway.cli.doctor_server import Check, State, clock, connections, durability, replication_slots, standby, timeouts
from tests.support.cluster import Cluster
from tests.support.command import Command
from tests.support.postgres import ScratchPostgres

SAFE = {"synchronous_commit": "on", "synchronous_standby_names": "", "wal_level": "replica", "statement_timeout": "0"}


def facts(**changed: str) -> Mapping[str, str]:
    return SAFE | changed


def streams(name: str, sync_state: str | None) -> dict[str, Any]:
    return {"application_name": name, "state": None if sync_state is None else "streaming", "sync_state": sync_state}


NAMED = facts(synchronous_standby_names="two")
VERDICTS = [
    (durability([], facts()), State.OK, "wal_level replica"),
    (durability(["fsync is off"], facts()), State.FAIL, "fsync is off"),
    (durability([], facts(wal_level="minimal")), State.WARN, "minimal"),
    (standby(facts(), []), State.OK, "none"),
    (standby(facts(), [streams("two", "async")]), State.WARN, "asynchronous: two"),
    (standby(NAMED, []), State.WARN, "two is away"),
    (standby(NAMED, [streams("two", "sync")]), State.OK, "synchronous: two"),
    (standby(NAMED, [streams("one", "quorum"), streams("two", "async")]), State.OK, "synchronous: one"),
    (standby(NAMED, [streams("other", "async")]), State.WARN, "only other is there"),
    (standby(NAMED, [streams("two", None)]), State.WARN, "hidden"),
    (standby({**NAMED, "synchronous_commit": "local"}, [streams("two", "sync")]), State.WARN, "is local"),
    (standby({**NAMED, "synchronous_commit": "remote_write"}, [streams("two", "sync")]), State.WARN, "is remote_write"),
    (standby({**NAMED, "synchronous_commit": "remote_apply"}, [streams("two", "sync")]), State.OK, "synchronous: two"),
    (replication_slots([]), State.OK, "none"),
    (replication_slots(["old"]), State.WARN, "idle: old"),
    (timeouts(facts()), State.OK, "none"),
    (timeouts(facts(statement_timeout="5000")), State.WARN, "statement_timeout 5000 ms"),
    (connections(19, 1), State.WARN, "19"),
    (connections(100, 85), State.OK, "85 of 100"),
    (connections(100, 86), State.WARN, "86 of 100"),
    (clock(1.9), State.OK, "1.9 s"),
    (clock(-2.0), State.WARN, "2.0 s"),
    (clock(3_600.0), State.FAIL, "3600.0 s"),
]


@pytest.mark.parametrize(("check", "state", "says"), VERDICTS, ids=lambda value: getattr(value, "detail", None))
def test_verdicts(check: Check, state: State, says: str) -> None:
    assert (check.state, says in check.detail, bool(check.advice)) == (state, True, state is not State.OK)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster() as running:
        yield running


def found(farebox: Command) -> dict[str, tuple[str, str]]:
    return {one["check"]: (one["state"], one["detail"]) for one in farebox("doctor", "--json").document["checks"]}


def test_a_real_standby_is_seen_and_so_is_one_that_nobody_waits_for(cluster: Cluster, tmp_path: Path) -> None:
    farebox = Command(cluster.multihost_dsn, tmp_path)
    assert farebox("migrate").exit_code == 0
    seen = found(farebox)
    assert seen["standby"] == ("ok", "synchronous: two")
    assert (seen["durability"][0], seen["replication_slots"][0], seen["partitions"][0]) == ("ok", "ok", "ok")
    cluster.stand_alone()
    assert found(farebox)["standby"] == ("warn", "asynchronous: two")
    cluster.ask("SELECT pg_create_physical_replication_slot('forgotten', true)")
    assert found(farebox)["replication_slots"] == ("warn", "idle: forgotten")
    cluster.standby.kill()
    cluster.primary.reload(synchronous_standby_names="two")
    assert found(farebox)["standby"] == ("warn", "two is away")


SETTINGS = [
    ("synchronous_commit = off", "durability", "fail"),
    ("client_min_messages = error", "durability", "fail"),
    ("statement_timeout = '30s'", "timeouts", "warn"),
]


@pytest.mark.parametrize(("setting", "check", "state"), SETTINGS)
def test_what_is_set_for_our_database_alone_is_seen(
    farebox: Command, database_url: str, setting: str, check: str, state: str
) -> None:
    async def alter(statement: str) -> None:
        connection = await asyncpg.connect(database_url)
        name = await connection.fetchval("SELECT current_database()")
        await connection.execute(f'ALTER DATABASE "{name}" {statement}')
        await connection.close()

    asyncio.run(alter(f"SET {setting}"))
    name, _, _ = setting.partition(" =")
    verdict, detail = found(farebox)[check]
    assert (verdict, name in detail) == (state, True)


def test_a_month_without_a_partition_fails(farebox: Command, scratch: ScratchPostgres, database_url: str) -> None:
    async def drop() -> None:
        connection = await asyncpg.connect(database_url)
        month = await connection.fetchval("SELECT to_char(now() + interval '1 month', 'YYYY_MM')")
        await connection.execute(f"DROP TABLE usage_events_{month}")
        await connection.close()

    asyncio.run(drop())
    assert found(farebox)["partitions"][0] == "fail"


@pytest.mark.parametrize(("listen", "state"), [("", "ok"), ("postgresql://127.0.0.1:1/none", "fail")])
def test_a_listening_url_is_tried(farebox: Command, database_url: str, listen: str, state: str) -> None:
    farebox.environment["FAREBOX_LISTEN_DATABASE_URL"] = listen or database_url
    assert found(farebox)["pooler"][0] == state
