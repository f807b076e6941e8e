"""A worker as a process: it serves sockets that it was given, does as its supervisor says, and ends without it."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.cli.serve import _WORKER
from gateway.db.pool import Database
from gateway.web.server import bind
from gateway.workers.process import Orders, Worker, launch
from gateway.workers.totals import Snapshot
from tests.adversity.witness import chat, many_connections
from tests.support.behaviours import Completion
from tests.support.call import Gate
from tests.support.gateway import make_wallet, price_models
from tests.support.upstream import FakeUpstream

START_SECONDS_MAX = 60.0
Document = dict[str, Any]


@pytest.fixture
def document(upstream: FakeUpstream, tmp_path: Path) -> Document:
    section = {"name": "up0", "base_url": upstream.base_url, "api_key": "sk-test"}
    return {"upstream": [section], "data_directory": str(tmp_path / "data"), "stop_seconds": 2.0}


@pytest.fixture
async def door() -> AsyncIterator[socket.socket]:
    (listening,) = bind("127.0.0.1", 0)
    yield listening
    listening.close()


async def start(document: Document, dsn: str, *sockets: socket.socket) -> Worker:
    return await launch(5, _WORKER, Orders(document, dsn, sockets), lambda _: None)


async def new_key(dsn: str) -> str:
    database = Database(dsn)
    await price_models(database)
    _, key = await make_wallet(database, "1")
    await database.close()
    return key


def calls(snapshot: Snapshot) -> int:
    (samples,) = [family[3] for family in snapshot if family[0] == "farebox_calls"]
    return sum(int(number) for _, _, number in samples)


@pytest.mark.parametrize("fault", ["settings", "journal", "ledger"])
async def test_what_keeps_it_from_serving_is_one_line_and_a_code(
    document: Document, tmp_path: Path, door: socket.socket, capfd: pytest.CaptureFixture[str], fault: str
) -> None:
    code, line = {
        "settings": (2, "farebox: port: "),
        "journal": (2, f"farebox: {tmp_path}/data/journal: "),
        "ledger": (3, "farebox: the database cannot be reached"),
    }[fault]
    if fault == "settings":
        document["port"] = -1
    elif fault == "journal":
        (tmp_path / "data").write_text("in the way")
    worker = await start(document, "postgresql://127.0.0.1:1/none", door)
    assert not await worker.started(within_seconds=START_SECONDS_MAX)
    said = capfd.readouterr().err
    assert (worker.exit_code, said.count("\n")) == (code, 1), said
    assert said.startswith(line)


@pytest.mark.parametrize("how", ["told", "retired", "orphaned", "hurried"])
async def test_it_ends_when_its_calls_have(
    document: Document, database_url: str, door: socket.socket, upstream: FakeUpstream, how: str
) -> None:
    key = await new_key(database_url)
    gate = Gate()
    upstream.default = Completion(output_tokens=12, gate=gate, gate_at_event=5)
    worker = await start(document, database_url, door)
    assert await worker.started(within_seconds=START_SECONDS_MAX)
    checks = {name for name, *_ in await worker.ask("checks", within_seconds=5.0)}
    assert checks >= {"database", "lane", "journal_writable", "not_stopping"}
    async with many_connections() as session:
        base_url = f"http://127.0.0.1:{door.getsockname()[1]}/v1"
        call = asyncio.create_task(chat(session, base_url, key, stream=True))
        await (await upstream.received()).sent_events(5)
        if how == "retired":
            worker.retire()
        elif how == "orphaned":
            worker._link._writer.transport.abort()
        else:
            worker.send(signal.SIGTERM)
        await asyncio.sleep(0.2)
        assert os.path.exists(f"/proc/{worker.pid}") or sys.platform != "linux"
        if how == "hurried":
            worker.hurry()
        else:
            gate.open()
        seen = await call
    assert (seen.whole, seen.error_code) == ((False, "stopping") if how == "hurried" else (True, None))
    await worker.ended(within_seconds=10.0)
    assert worker.exit_code == 0
    if how != "orphaned":
        assert calls(worker.snapshot) == 1, "its last word is complete"


async def test_its_log_says_which_one_it_is(
    document: Document, database_url: str, door: socket.socket, capfd: pytest.CaptureFixture[str]
) -> None:
    await new_key(database_url)
    worker = await start(document | {"log_level": "info"}, database_url, door)
    assert await worker.started(within_seconds=START_SECONDS_MAX)
    worker.send(signal.SIGTERM)
    await worker.ended(within_seconds=10.0)
    lines = [orjson.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert lines
    assert {line["worker"] for line in lines} == {5}
