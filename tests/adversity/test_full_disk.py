"""Goal: without room for a settle no money is put at risk. Method: fill the disk under a gateway with calls in flight,
take the ledger away as well, let the calls end, then give back the disk first and the ledger after it."""

import asyncio
import contextlib
import itertools
import resource
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.adversity.witness import Books, Sighting, chat, many_connections
from tests.support.behaviours import Choose, Completion
from tests.support.call import Gate
from tests.support.ledger_proxy import LedgerProxy, ledger_proxy
from tests.support.postgres import ScratchPostgres
from tests.support.processes import GatewayProcess, Gateways, eventually, open_wallet
from tests.support.upstream import FakeUpstream

BODIES = 6
CREDIT, CREDIT_NANOS = "10", 10 * 10**9
DISK_BYTES = 2**20
# The time between two probes of the journal is 2 s.
RED_WITHIN_SECONDS = 8.0

_numbers = itertools.count(1)


class SmallDisk:
    """A file system of one MiB, full or not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self, _gateway: GatewayProcess) -> None:
        with contextlib.suppress(OSError), self._filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 512)

    def free(self, _gateway: GatewayProcess) -> None:
        self._filler.unlink()


class NoMoreBytes:
    """A process that may not write files any more, for a machine where nothing may be mounted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self, gateway: GatewayProcess) -> None:
        resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    def free(self, gateway: GatewayProcess) -> None:
        resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


Disk = SmallDisk | NoMoreBytes


@contextlib.contextmanager
def a_disk(path: Path) -> Iterator[Disk]:
    """A real one that can be full, where one may be mounted; else a limit on the process."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(path)]
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, *command[1:]], check=False, capture_output=True, timeout=10).returncode:
        if not hasattr(resource, "prlimit"):
            pytest.skip("no disk can be mounted here, and no process limited but on Linux")
        yield NoMoreBytes(path)
        return
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True, timeout=10)


@pytest.fixture
async def proxy(durable: ScratchPostgres) -> AsyncIterator[LedgerProxy]:
    name = f"full_disk_{next(_numbers)}"
    async with ledger_proxy(await durable.clone(name)) as opened:
        yield opened
    await durable.drop(name)


@asynccontextmanager
async def calls_in_flight(
    proxy: LedgerProxy, data: Path
) -> AsyncIterator[tuple[GatewayProcess, Books, Gate, FakeUpstream, Callable[[], "asyncio.Task[Sighting]"]]]:
    """A gateway with its data there; the last of what is yielded makes one more call."""
    wallet_id, key = await open_wallet(proxy.dsn, CREDIT)
    gate = Gate()
    streamed = Completion(output_tokens=12, gate=gate, gate_at_event=4)
    whole = Completion(output_tokens=7, gate=gate)
    async with (
        FakeUpstream(Choose(lambda asked: streamed if asked.stream else whole)) as upstream,
        Gateways() as gateways,
        Books(proxy.dsn, wallet_id, CREDIT_NANOS) as books,
        many_connections() as session,
    ):
        settings = {"FAREBOX_DATA_DIRECTORY": str(data), "FAREBOX_LANE_WAIT_SECONDS": "0.5"}
        gateway = await gateways.serve(proxy.dsn, upstream.base_url, **settings)

        numbers = itertools.count()

        def call() -> "asyncio.Task[Sighting]":
            return asyncio.create_task(chat(session, gateway.base_url, key, stream=next(numbers) % 2 == 0))

        yield gateway, books, gate, upstream, call


async def check_red(gateway: GatewayProcess) -> None:
    """Readiness says that it is the journal."""

    async def is_red() -> bool:
        status, text = await gateway.get("/readyz")
        return status == 503 and "journal_writable" in text

    await eventually(is_red, within_seconds=RED_WITHIN_SECONDS)


async def test_no_call_is_taken_and_those_in_flight_are_charged_once_there_is_room(
    proxy: LedgerProxy, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    with a_disk(data) as disk:
        async with calls_in_flight(proxy, data) as (gateway, books, gate, upstream, call):
            calls = [call() for _ in range(BODIES)]
            await upstream.received(len(calls))
            disk.fill(gateway)
            await check_red(gateway)
            # The ledger is there, and a call is refused all the same: its settle might have nowhere to go.
            refused = await call()
            assert (refused.status, refused.error_code, refused.retry_after) == (503, "ledger_unavailable", "2")
            proxy.cut()
            gate.open()
            await asyncio.sleep(1.5)
            assert not any(task.done() for task in calls), "nobody has the end of a reply that nothing has recorded"
            disk.free(gateway)
            seen = await asyncio.gather(*calls)
            assert all(sighting.whole for sighting in seen)
            assert await gateway.metric("farebox_journal_failures_total") >= 1
            proxy.restore()
            await gateway.answers_ready(200)
            await books.resolved()
            await books.check(upstream.log, seen)
            assert len(upstream.log) == len(calls)
            after = await call()
            await books.check(upstream.log, [*seen, after])
