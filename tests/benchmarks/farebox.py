"""Farebox as a benchmark runs it: a fresh data directory, one gateway process, a wallet with a key, priced models."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gateway.core.catalogue import Model
from gateway.db import prices
from gateway.db.embedded import EmbeddedPostgres
from gateway.db.pool import Database
from tests.benchmarks.client import Target
from tests.benchmarks.mock_upstream import HELD_MODEL, MODEL
from tests.benchmarks.processes import START_SECONDS_MAX, name, running, tree
from tests.benchmarks.rows import LARGE_MODEL, MEDIA_MODEL, RATES

COMMAND_SECONDS_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Farebox:
    """A running gateway. `database_url` is None where it runs its own PostgreSQL under `data_directory`."""

    target: Target
    pid: int
    data_directory: Path
    database_url: str | None

    def gateway_pids(self) -> list[int]:
        """The gateway's processes without its PostgreSQL."""
        return [pid for pid in tree(self.pid) if name(pid) != "postgres"]

    def postgres_pids(self) -> list[int]:
        """PostgreSQL's processes; none where it is not ours."""
        return _postgres_pids(self.data_directory)

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """The DSN of the database the gateway uses."""
        with _dsn(self.data_directory, self.database_url) as dsn:
            yield dsn


@contextlib.contextmanager
def _dsn(data_directory: Path, database_url: str | None) -> Iterator[str]:
    if database_url is not None:
        yield database_url
        return
    with EmbeddedPostgres(data_directory / "postgres") as dsn:
        yield dsn


async def _price_media(dsn: str) -> None:
    """A model that has a rate for every meter; `farebox price set` knows only those of text."""
    database = Database(dsn)
    try:
        await prices.save_models(database, [Model(MEDIA_MODEL, 128_000, 4_096)])
        await prices.add_prices(database, [prices.PriceVersion(MEDIA_MODEL, datetime.now(UTC), RATES, (), "bench")])
    finally:
        await database.close()


@contextlib.contextmanager
def start_farebox(
    data_directory: Path, upstream_port: int, *, log: Path, database_url: str | None = None, core: int | None = None
) -> Iterator[Farebox]:
    """`farebox serve` in front of the mock upstream, ready. Raises RuntimeError."""
    port, ops_port = _free_ports(2)
    env = {
        "FAREBOX_DATA_DIRECTORY": str(data_directory),
        "FAREBOX_UPSTREAM_BASE_URL": f"http://127.0.0.1:{upstream_port}/v1",
        "FAREBOX_UPSTREAM_API_KEY": "sk-bench",
        "FAREBOX_PORT": str(port),
        "FAREBOX_OPS_PORT": str(ops_port),
        "FAREBOX_LOG_LEVEL": "warning",
    }
    if database_url is not None:
        env["FAREBOX_DATABASE_URL"] = database_url
    try:
        with running([sys.executable, "-m", "gateway", "serve"], log=log, env=env, core=core) as process:
            _wait_until_ready(process, f"http://127.0.0.1:{ops_port}/readyz", log)
            for model in (MODEL, HELD_MODEL, LARGE_MODEL):
                _command(env, "price", "set", model, "--input", "0.10", "--output", "0.40")
            with _dsn(data_directory, database_url) as dsn:
                asyncio.run(_price_media(dsn))
            wallet = json.loads(_command(env, "wallet", "create", "--credit", "1000000", "--json"))
            key = json.loads(_command(env, "key", "create", "--wallet", _field(wallet, "wallet_id", "id"), "--json"))
            target = Target("farebox", port, f"Bearer {_field(key, 'key')}")
            yield Farebox(target, process.pid, data_directory, database_url)
    finally:
        _end_postgres(data_directory)


def _field(document: Mapping[str, object], *names: str) -> str:
    for one in names:
        if one in document:
            return str(document[one])
    raise RuntimeError(f"none of {names} in {document}")


def _command(env: Mapping[str, str], *arguments: str) -> str:
    """What `farebox ARGUMENTS` printed. Raises RuntimeError with its complaint."""
    done = subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_SECONDS_MAX,
    )
    if done.returncode != 0:
        raise RuntimeError(f"farebox {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"farebox ended with {process.returncode}; see {log}")
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError),
            urllib.request.urlopen(url, timeout=1) as response,
        ):
            if response.status == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"farebox is not ready after {START_SECONDS_MAX:.0f} s; see {log}")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _postgres_pids(data_directory: Path) -> list[int]:
    for path in data_directory.rglob("postmaster.pid"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int(path.read_text(encoding="utf-8").splitlines()[0])
            if name(pid) == "postgres":
                return tree(pid)
    return []


def _end_postgres(data_directory: Path) -> None:
    """PostgreSQL outlives a gateway that had to be killed; a benchmark leaves nothing running."""
    for pid in _postgres_pids(data_directory)[:1]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGQUIT)
        deadline = time.monotonic() + 10
        while name(pid) == "postgres" and time.monotonic() < deadline:
            time.sleep(0.05)
