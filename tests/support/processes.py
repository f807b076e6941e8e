"""Gateways as processes of their own: started, waited for, killed, and never left behind.

async with Gateways() as gateways:
    gateway = await gateways.serve(dsn, upstream.base_url, FAREBOX_SWEEP_SECONDS="0.5")
    gateway.send(signal.SIGTERM)
    assert await gateway.ended() == 0
"""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import aiohttp
import pytest

from gateway.db.embedded_process import children, command_line, end, live_postmaster
from gateway.db.migrate import migrate
from gateway.db.pool import Database
from tests.support.gateway import make_wallet, price_models
from tests.support.postgres import ScratchPostgres, memory_directory

START_SECONDS_MAX = 60.0
WAIT_SECONDS_MAX = 20.0
POLL_SECONDS = 0.02
WORKER = "gateway.cli.worker"
COMMAND = (sys.executable, "-m", "gateway")
_SERVES = re.compile(r"serves http://[^:]+:(\d+)/v1, ops on port (\d+)")
_DEMO = re.compile(r"base URL +http://[^:]+:(\d+)/v1.*http://[^:]+:(\d+)/readyz", re.DOTALL)


@dataclass(slots=True)
class GatewayProcess:
    """One gateway. `log` is its standard error, `said` its standard output."""

    process: "subprocess.Popen[bytes]"
    log: Path
    output: Path
    port: int = 0
    ops_port: int = 0

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def ops_url(self) -> str:
        return f"http://127.0.0.1:{self.ops_port}"

    @property
    def workers(self) -> list[int]:
        """The process ids of its workers, the oldest first."""
        return sorted(pid for pid in children(self.pid) if WORKER in (command_line(pid) or ""))

    @property
    def errors(self) -> str:
        """What it has written to standard error."""
        return self.log.read_text(encoding="utf-8")

    @property
    def said(self) -> str:
        """What it has written to standard output."""
        return self.output.read_text(encoding="utf-8")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def interrupt(self) -> None:
        """Ctrl-C: the terminal sends SIGINT to the whole group."""
        os.killpg(self.process.pid, signal.SIGINT)

    async def kill(self) -> None:
        """`kill -9`, and wait until it is gone."""
        self.process.kill()
        assert await self.ended() == -signal.SIGKILL

    async def ended(self, within_seconds: float = WAIT_SECONDS_MAX) -> int:
        """Its exit code. Raises TimeoutError."""
        await eventually(lambda: self.process.poll() is not None, within_seconds=within_seconds)
        return self.process.returncode

    async def announced(self) -> None:
        """Wait until it says where it listens. Raises AssertionError where it ends instead."""

        def listens() -> bool:
            found = _SERVES.search(self.errors) or _DEMO.search(self.said)
            if found is not None:
                self.port, self.ops_port = int(found[1]), int(found[2])
            return found is not None or self.process.poll() is not None

        await eventually(listens, within_seconds=START_SECONDS_MAX)
        assert self.port, f"the gateway ended with {self.process.returncode}: {self.errors[-2000:]}"

    async def get(self, path: str) -> tuple[int, str]:
        """(status, body) of an ops page."""
        async with aiohttp.ClientSession() as session, session.get(self.ops_url + path) as response:
            return response.status, await response.text()

    async def metric(self, name: str) -> float:
        """The sum over the labels of one metric."""
        _, text = await self.get("/metrics")
        values = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        return sum(float(value) for value in values)

    async def answers_ready(self, status: int, within_seconds: float = WAIT_SECONDS_MAX) -> None:
        """Wait until /readyz answers `status`. Raises TimeoutError."""

        async def is_so() -> bool:
            return (await self.get("/readyz"))[0] == status

        await eventually(is_so, within_seconds=within_seconds)


class Gateways:
    """Starts gateways on free ports; when the block ends none of them is left, nor a PostgreSQL of theirs.

    All share `directory`, removed at the end, unless a test says otherwise by FAREBOX_DATA_DIRECTORY. `command` runs
    instead of `farebox`.
    """

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self._command = command
        self.directory = Path(tempfile.mkdtemp(prefix="farebox-process-", dir=memory_directory()))
        # An account without rights must reach the embedded server's directory.
        self.directory.chmod(0o755)
        self.data_directory = self.directory / "data"
        self._started: list[GatewayProcess] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for gateway in self._started:
            # One that has been killed may have left workers, which are of its group.
            if gateway.process.poll() in (None, -signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(gateway.pid, signal.SIGKILL)
            gateway.process.wait()
        cluster = self.data_directory / "postgres" / "cluster"
        if cluster.exists() and (server := live_postmaster(cluster)) is not None:
            end(cluster, server.pid, None, timeout_seconds=4.0)
        shutil.rmtree(self.directory, ignore_errors=True)

    def start(self, command: str, environment: Mapping[str, str]) -> GatewayProcess:
        """`farebox COMMAND` in a session of its own, as after a login."""
        number = len(self._started)
        log, output = self.directory / f"{number}.err", self.directory / f"{number}.out"
        with log.open("wb") as errors, output.open("wb") as said:
            process = subprocess.Popen(
                [*self._command, command],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=errors,
                env=self.environment(environment),
                cwd=self.directory,
                start_new_session=True,
            )
        gateway = GatewayProcess(process, log, output)
        self._started.append(gateway)
        return gateway

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        """This process's environment without its FAREBOX_ settings, with free ports, and `more`."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FAREBOX_")}
        own = {
            "FAREBOX_DATA_DIRECTORY": str(self.data_directory),
            "FAREBOX_PORT": "0",
            "FAREBOX_OPS_PORT": "0",
            "FAREBOX_LOG_LEVEL": "warning",
        }
        return inherited | own | dict(more)

    async def serve(self, dsn: str | None, upstream_base_url: str, **settings: str) -> GatewayProcess:
        """A gateway that is ready. Without a DSN it brings its own PostgreSQL."""
        environment = {
            "FAREBOX_UPSTREAM_BASE_URL": upstream_base_url,
            "FAREBOX_UPSTREAM_API_KEY": "sk-test",
            **settings,
        }
        if dsn is not None:
            environment["FAREBOX_DATABASE_URL"] = dsn
        gateway = self.start("serve", environment)
        await gateway.announced()
        await gateway.answers_ready(200)
        return gateway


async def eventually(
    condition: Callable[[], bool | Awaitable[bool]], *, within_seconds: float = WAIT_SECONDS_MAX
) -> float:
    """Poll `condition`; how long it took, in seconds. Raises TimeoutError."""
    began = time.monotonic()
    while True:
        answer = condition()
        if answer if isinstance(answer, bool) else await answer:
            return time.monotonic() - began
        if time.monotonic() - began > within_seconds:
            raise TimeoutError(f"not so within {within_seconds:.0f} s")
        await asyncio.sleep(POLL_SECONDS)


async def prepare(dsn: str) -> None:
    """Migrate, and price the test models: a gateway that finds prices imports none."""
    await migrate(dsn)
    database = Database(dsn)
    try:
        await price_models(database)
    finally:
        await database.close()


async def open_wallet(dsn: str, credit: str) -> tuple[str, str]:
    """(wallet id, key) of a new wallet with `credit` units."""
    database = Database(dsn)
    try:
        return await make_wallet(database, credit)
    finally:
        await database.close()


@pytest.fixture(scope="session")
def durable() -> Iterator[ScratchPostgres]:
    """A server that keeps what it commits: a gateway process refuses any other. Its template has the test models."""
    with ScratchPostgres(prepare, settings={}) as server:
        yield server
