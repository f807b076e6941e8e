"""A private PostgreSQL in a directory to be used up, and processes that share it as gateways do."""

import asyncio
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg

from gateway.db.embedded import EmbeddedPostgres
from tests.support.postgres import memory_directory

WAIT_SECONDS_MAX = 20.0
# Most rules here are about processes; a disk that keeps its promises only makes them slower to test.
FAST = {"fsync": "off", "dynamic_shared_memory_type": "mmap"}

# It prints the DSN, and leaves in good order when its standard input is closed.
GATEWAY = f"""
import sys
from pathlib import Path
from gateway.db.embedded import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]), settings={FAST!r})
print(server.start(), flush=True)
sys.stdin.read()
server.stop()
"""


@contextmanager
def new_home() -> Iterator[Path]:
    """A directory for one server, not made yet, where any account may pass; nothing runs in it afterwards."""
    parent = Path(tempfile.mkdtemp(prefix="farebox-", dir=memory_directory()))
    parent.chmod(0o755)
    try:
        yield parent / "postgres"
    finally:
        EmbeddedPostgres(parent / "postgres").kill()
        shutil.rmtree(parent)


@contextmanager
def made_home() -> Iterator[Path]:
    """The directory of a server that has run once and was stopped; its table `kept` has the `value` 7."""
    with new_home() as home:
        with EmbeddedPostgres(home, settings=FAST) as dsn:
            sql(dsn, "CREATE TABLE kept AS SELECT 7 AS value")
        yield home


@contextmanager
def copy_of(made: Path) -> Iterator[Path]:
    """A copy of such a directory, which takes a tenth of the time."""
    with new_home() as home:
        subprocess.run(["cp", "-Rp", str(made), str(home)], check=True)
        yield home


class Gateways:
    """Processes that use the server of `home`. None outlives the block."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._started: list[subprocess.Popen[str]] = []

    def start(self) -> "subprocess.Popen[str]":
        """One more, in a session of its own as after a login."""
        process = subprocess.Popen(
            [sys.executable, "-c", GATEWAY, str(self._home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def __enter__(self) -> "Gateways":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            process.kill()
            process.communicate()


def said(process: "subprocess.Popen[str]") -> str:
    """The DSN that a gateway printed."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def leave(process: "subprocess.Popen[str]") -> None:
    """Let a gateway end in good order."""
    process.communicate(timeout=WAIT_SECONDS_MAX)
    assert process.returncode == 0


def sql(dsn: str, *statements: str) -> object:
    """The first value of the last statement's reply."""

    async def ask() -> object:
        connection = await asyncpg.connect(dsn)
        try:
            for statement in statements:
                value = await connection.fetchval(statement)
            return value
        finally:
            await connection.close()

    return asyncio.run(ask())


def postmaster_pid(home: Path) -> int:
    return int((home / "cluster" / "postmaster.pid").read_text().split()[0])
