import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from gateway.clock import new_id
from gateway.core.journal_record import Record, encode
from gateway.db.journal import Journal
from tests.support.command import Command
from tests.support.gateway import Farebox
from tests.support.postgres import ScratchPostgres

CHECKS = [
    *("settings", "upstreams", "database", "durability", "standby", "replication_slots", "timeouts"),
    *("max_connections", "clock", "writable", "pooler", "migrations", "partitions", "prices"),
    *("journal", "journals_left", "idempotency", "port", "ops_port", "open_files"),
]
RECORD = encode(Record(new_id(), new_id(), b'{"op":"void"}'))


@pytest.fixture
def farebox(farebox: Command) -> Command:
    """With ports that are free."""
    farebox.environment |= {"FAREBOX_PORT": "0", "FAREBOX_OPS_PORT": "0"}
    return farebox


def checks(farebox: Command, **environment: str) -> dict[str, Any]:
    """Every check by its name, once the document has the right shape."""
    said = farebox("doctor", "--json", **environment)
    document = said.document
    assert document.keys() == {"ok", "checks"}
    assert all(one.keys() == {"check", "state", "detail", "advice"} for one in document["checks"])
    # Whatever is not well comes with advice.
    assert all((one["advice"] is None) == (one["state"] == "ok") for one in document["checks"])
    failed = [one for one in document["checks"] if one["state"] == "fail"]
    assert (said.exit_code, document["ok"]) == (1 if failed else 0, not failed)
    return {one["check"]: one for one in document["checks"]}


def test_a_server_that_may_lose_money_fails(farebox: Command) -> None:
    found = checks(farebox)
    assert list(found) == CHECKS
    assert found["durability"]["state"] == "fail"
    assert "fsync is off" in found["durability"]["detail"]
    unwell = {name for name, one in found.items() if one["state"] != "ok"}
    assert unwell == {"durability", "upstreams", "prices", "idempotency"}
    said = farebox("doctor")
    assert said.exit_code == 1
    assert "durability: change that before money depends on it" in said.out


def test_upstreams_and_what_they_serve_are_counted(farebox: Command) -> None:
    farebox.json("price", "set", "m", "--input", "1", "--output", "1")
    upstream = {"FAREBOX_UPSTREAM_BASE_URL": "https://api.example.com/v1", "FAREBOX_UPSTREAM_API_KEY": "sk-secret"}
    found = checks(farebox, **upstream)
    assert (found["upstreams"]["state"], found["prices"]["state"]) == ("ok", "ok")
    assert found["prices"]["detail"] == "1 models are priced, 1 of them served by an upstream"
    assert "sk-secret" not in farebox("doctor", **upstream).out


def test_models_that_no_upstream_serves_are_a_warning(farebox: Command, tmp_path: Path) -> None:
    file = tmp_path / "farebox.toml"
    file.write_text('[[upstream]]\nname = "a"\nbase_url = "https://api.example.com/v1"\nmodels = ["other-*"]\n')
    farebox.json("price", "set", "m", "--input", "1", "--output", "1")
    found = checks(farebox, FAREBOX_CONFIG=str(file))
    assert (found["prices"]["state"], found["upstreams"]["state"]) == ("warn", "ok")


@pytest.mark.parametrize(("secret", "state"), [(None, "warn"), ("s" * 32, "ok")])
def test_gateways_that_share_a_database_need_one_secret(farebox: Command, secret: str | None, state: str) -> None:
    given = {} if secret is None else {"FAREBOX_IDEMPOTENCY_SECRET": secret}
    assert checks(farebox, **given)["idempotency"]["state"] == state
    assert "s" * 32 not in farebox("doctor", **given).out


def test_bad_settings_fail(farebox: Command) -> None:
    found = checks(farebox, FAREBOX_BODY_SECONDS="0")
    assert list(found) == ["settings"]
    assert "body_seconds" in found["settings"]["detail"]


def test_a_database_that_is_away_fails(farebox: Command) -> None:
    found = checks(farebox, FAREBOX_DATABASE_URL="postgresql://127.0.0.1:1/none")
    assert found["database"]["state"] == "fail"
    assert "migrations" not in found
    assert found["journal"]["state"] == "ok"


def test_pending_migrations_fail(scratch: ScratchPostgres, farebox: Command) -> None:
    found = checks(farebox, FAREBOX_DATABASE_URL=scratch.dsn("postgres"))
    assert found["migrations"]["state"] == "fail"
    assert found["migrations"]["advice"] == "run `farebox migrate`"


def test_a_database_that_takes_no_writes_fails(farebox: Command, database_url: str) -> None:
    async def command(statement: str) -> None:
        connection = await asyncpg.connect(database_url)
        try:
            name = await connection.fetchval("SELECT current_database()")
            await connection.execute(f'ALTER DATABASE "{name}" {statement}')
        finally:
            await connection.close()

    asyncio.run(command("SET default_transaction_read_only = on"))
    assert checks(farebox)["writable"]["state"] == "fail"


def test_a_journal_that_cannot_be_written_fails(farebox: Command, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "journal").write_text("a file where a directory should be")
    assert checks(farebox)["journal"]["state"] == "fail"


def test_journals_of_the_dead_are_a_warning(farebox: Command, tmp_path: Path) -> None:
    directory = tmp_path / "data" / "journal"
    directory.mkdir(parents=True)
    (directory / "1.journal").write_bytes(RECORD + RECORD)
    found = checks(farebox)["journals_left"]
    assert (found["state"], found["detail"]) == ("warn", "2 settles of a gateway that died wait")
    (directory / "1.damaged").write_bytes(b"?\n")
    found = checks(farebox)["journals_left"]
    assert (found["state"], found["detail"]) == ("fail", "1.damaged")


def test_the_journal_of_a_running_gateway_is_its_own(farebox: Command, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "data" / "journal", bytes_max=2**20)
    journal.open("living")
    try:
        (tmp_path / "data" / "journal" / "living.journal").write_bytes(RECORD)
        assert checks(farebox)["journals_left"]["state"] == "ok"
    finally:
        journal.close()


def test_a_port_taken_by_another_program_fails(farebox: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        found = checks(farebox, FAREBOX_PORT=port, FAREBOX_OPS_PORT=port)
    assert (found["port"]["state"], found["ops_port"]["state"]) == ("fail", "fail")
    assert "FAREBOX_OPS_PORT" in found["ops_port"]["advice"]
    found = checks(farebox, FAREBOX_PORT=port)
    assert (found["port"]["state"], found["port"]["detail"]) == ("ok", f"127.0.0.1:{port} is free")


async def test_ports_of_a_running_gateway_are_ours(gateway: Farebox, farebox: Command) -> None:
    ports = {"FAREBOX_PORT": str(gateway.app.port), "FAREBOX_OPS_PORT": str(gateway.app.ops_port)}
    found = await asyncio.to_thread(checks, farebox, **ports)
    for name in ("port", "ops_port"):
        assert found[name]["state"] == "ok"
        assert found[name]["detail"].endswith("is served by a running farebox")
    swapped = {"FAREBOX_PORT": ports["FAREBOX_OPS_PORT"], "FAREBOX_OPS_PORT": ports["FAREBOX_PORT"]}
    found = await asyncio.to_thread(checks, farebox, **swapped)
    assert (found["port"]["state"], found["ops_port"]["state"]) == ("fail", "fail")


def test_few_open_files_are_a_warning(farebox: Command) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        found = checks(farebox)["open_files"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (found["state"], found["detail"]) == ("warn", "at most 256")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may listen anywhere")
def test_a_port_that_may_not_be_opened_fails(farebox: Command) -> None:
    assert checks(farebox, FAREBOX_PORT="1")["port"]["state"] == "fail"
