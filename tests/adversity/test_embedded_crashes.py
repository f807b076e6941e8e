"""The private PostgreSQL among processes that are killed, interrupted, or come and go."""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from gateway.db.embedded import EmbeddedPostgres
from gateway.db.embedded_process import children, command_line, wait_until
from tests.support.embedded import (
    FAST,
    WAIT_SECONDS_MAX,
    Gateways,
    copy_of,
    leave,
    made_home,
    new_home,
    postmaster_pid,
    said,
    sql,
)


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    with made_home() as directory:
        yield directory


@pytest.fixture
def home(made: Path) -> Iterator[Path]:
    with copy_of(made) as directory:
        yield directory


@pytest.fixture
def absent_home() -> Iterator[Path]:
    with new_home() as directory:
        yield directory


@pytest.fixture
def gateways(home: Path) -> Iterator[Gateways]:
    with Gateways(home) as started:
        yield started


@pytest.fixture
def newcomers(absent_home: Path) -> Iterator[Gateways]:
    with Gateways(absent_home) as started:
        yield started


def test_kill_9_of_the_gateway_leaves_a_server_that_the_next_one_adopts(home: Path, gateways: Gateways) -> None:
    killed = gateways.start()
    dsn = said(killed)
    killed.kill()
    killed.wait()
    orphan = postmaster_pid(home)

    adopter = EmbeddedPostgres(home, settings=FAST)
    assert (adopter.start(), postmaster_pid(home)) == (dsn, orphan)
    assert sql(dsn, "SELECT value FROM kept") == 7
    adopter.stop()
    assert not adopter.is_running()

    # The server's own kill -9, and settings that are not today's: both end in a new server with the same data.
    other = EmbeddedPostgres(home, settings={**FAST, "work_mem": "5MB"})
    killed = gateways.start()
    assert said(killed) == dsn
    killed.kill()
    killed.wait()
    orphan = postmaster_pid(home)
    assert other.start() == dsn
    assert postmaster_pid(home) != orphan
    assert command_line(orphan) is None
    assert (sql(dsn, "SELECT value FROM kept"), sql(dsn, "SHOW work_mem")) == (7, "5MB")
    other.kill()
    other.start()
    assert sql(dsn, "SELECT value FROM kept") == 7
    other.stop()


def test_processes_share_one_server_and_the_last_stops_it(absent_home: Path, newcomers: Gateways) -> None:
    first, second = newcomers.start(), newcomers.start()  # at once: one of them makes the cluster, the other waits
    assert said(first) == said(second)
    pid = postmaster_pid(absent_home)
    third = EmbeddedPostgres(absent_home, settings={"work_mem": "5MB"})  # settings of a guest do not restart the server
    dsn = third.start()
    for process in (first, second):
        leave(process)
        assert (sql(dsn, "SELECT 1"), postmaster_pid(absent_home)) == (1, pid)
    third.stop()
    assert not third.is_running()


def test_ctrl_c_in_the_terminal_does_not_reach_the_server(home: Path, gateways: Gateways) -> None:
    process = gateways.start()
    dsn = said(process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(WAIT_SECONDS_MAX) != 0
    assert sql(dsn, "SELECT 1") == 1


def test_an_interrupted_first_start_does_not_block_the_next(absent_home: Path, newcomers: Gateways) -> None:
    process = newcomers.start()
    assert wait_until(lambda: any(absent_home.glob("cluster.new-*/base")), WAIT_SECONDS_MAX)
    process.kill()
    process.wait()
    assert not (absent_home / "cluster").exists()
    server = EmbeddedPostgres(absent_home, settings=FAST)
    assert sql(server.start(), "SELECT 1") == 1

    # The initdb that was left behind may still be writing; it ends soon, and its traces with it.
    def tidy() -> bool:
        server.start()
        return not list(absent_home.glob("*.new-*"))

    assert wait_until(tidy, WAIT_SECONDS_MAX)
    server.stop()


@pytest.mark.parametrize("kind", ["stranger", "zombie", "nonsense", "empty"])
def test_a_stale_pid_file_is_not_believed(home: Path, kind: str) -> None:
    server = EmbeddedPostgres(home, settings=FAST)
    server.start()
    pid_file, socket_lock = home / "cluster" / "postmaster.pid", home / "socket" / ".s.PGSQL.5432.lock"
    server.kill()
    # PostgreSQL believes a number that belongs to any process of its own account.
    owner = pid_file.stat()
    account = {"user": owner.st_uid, "group": owner.st_gid} if os.geteuid() == 0 else {}
    command = ["sleep", "60"] if kind == "stranger" else ["true"]
    with subprocess.Popen(command, **account) as stranger:  # type: ignore[call-overload]
        if kind == "zombie":
            assert wait_until(lambda: command_line(stranger.pid) is None, WAIT_SECONDS_MAX)
        for path in (pid_file, socket_lock):
            text = path.read_text().split("\n", 1)[1]
            path.write_text({"nonsense": "x\n", "empty": ""}.get(kind, f"{stranger.pid}\n{text}"))
        assert not server.is_running()
        assert sql(server.start(), "SELECT value FROM kept") == 7
        if kind == "stranger":
            assert stranger.poll() is None
        server.stop()
        stranger.kill()


def test_a_start_waits_for_the_backends_of_a_dead_server(home: Path) -> None:
    server = EmbeddedPostgres(home, settings=FAST)
    dsn = server.start()
    dead, before = postmaster_pid(home), set(children(postmaster_pid(home)))

    async def crash_under_a_busy_backend() -> int:
        connection = await asyncpg.connect(dsn)
        busy = asyncio.gather(
            connection.execute("SELECT count(*) FROM generate_series(1, 12000000)"), return_exceptions=True
        )
        await asyncio.sleep(0.2)
        (backend,) = set(children(dead)) - before
        os.kill(dead, signal.SIGKILL)
        restarted = await asyncio.to_thread(server.start)
        # Two generations at work on one cluster would destroy it.
        assert command_line(backend) is None
        await busy
        connection.terminate()
        return len(restarted)

    assert asyncio.run(crash_under_a_busy_backend()) == len(dsn)
    server.stop()


def test_it_stops_in_time_whatever_its_clients_do(home: Path) -> None:
    server = EmbeddedPostgres(home, settings=FAST)
    dsn = server.start()

    async def stop_under_load() -> float:
        connection = await asyncpg.connect(dsn)
        asleep = asyncio.gather(connection.execute("SELECT pg_sleep(60)"), return_exceptions=True)
        await asyncio.sleep(0.1)
        began = time.monotonic()
        await asyncio.to_thread(server.stop)
        took_seconds = time.monotonic() - began
        await asleep
        connection.terminate()
        return took_seconds

    assert asyncio.run(stop_under_load()) < 5

    # One that hears nothing at all is killed.
    server.start()
    pid = postmaster_pid(home)
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    server.stop(timeout_seconds=1.0)
    assert time.monotonic() - began < 3
    assert command_line(pid) is None
