"""A worker process from its start to its end: what it inherits, how long it is waited for, and what is heard of it."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from gateway.workers import process
from gateway.workers.process import NoAnswer, Orders, Worker, launch
from tests.support import stub_worker

STUB = (sys.executable, stub_worker.__file__)
START_SECONDS_MAX = 20.0
Started = Callable[..., Awaitable[Worker]]


@pytest.fixture
async def start() -> AsyncIterator[Started]:
    """Starts a stub that behaves as it is told to; none is left at the end."""
    started: list[Worker] = []

    async def one(how: str | None = None, *, sockets: tuple[socket.socket, ...] = ()) -> Worker:
        ended: list[Worker] = []
        worker = await launch(3, STUB, Orders({"top_up_url": how}, "dsn", sockets), ended.append)
        started.append(worker)
        return worker

    yield one
    await asyncio.gather(*(worker.ended(within_seconds=0.0) for worker in started))


async def test_a_worker_serves_answers_and_ends(start: Started) -> None:
    worker = await start()
    assert await worker.started(within_seconds=START_SECONDS_MAX)
    worker.lead(True)
    assert (await worker.ask("checks", within_seconds=5.0))[0] == ["heard", True, "lead True", False]
    assert worker.silent_seconds == 0.0
    worker.retire()
    await worker.ended(within_seconds=5.0)
    assert (worker.exit_code, worker.retiring) == (0, True)
    assert worker.snapshot[0][3] == [["farebox_calls_total", {}, stub_worker.CALLS]]
    with pytest.raises(NoAnswer):
        await worker.ask("checks", within_seconds=5.0)
    # Whatever is said to it now goes nowhere.
    worker.hurry()
    worker.send(signal.SIGTERM)


async def test_it_inherits_its_sockets_and_nothing_else(start: Started) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        alone, sharing = await start(), await start(sockets=(listening,))
        counts = []
        for worker in (alone, sharing):
            assert await worker.started(within_seconds=START_SECONDS_MAX)
            counts.append(int((await worker.ask("checks", within_seconds=5.0))[1][2]))
        assert counts[1] == counts[0] + 1


async def test_what_a_terminal_sends_to_all_is_not_for_it(start: Started) -> None:
    worker = await start()
    for number in (signal.SIGINT, signal.SIGHUP):
        os.kill(worker.pid, number)
    assert await worker.started(within_seconds=START_SECONDS_MAX)
    assert await worker.ask("checks", within_seconds=5.0)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


@pytest.mark.parametrize(("how", "code"), [("bad", 2), ("hung", -signal.SIGKILL)])
async def test_one_that_does_not_come_to_serve_has_ended(start: Started, how: str, code: int) -> None:
    worker = await start(how)
    assert not await worker.started(within_seconds=0.5 if how == "hung" else START_SECONDS_MAX)
    assert worker.exit_code == code


async def test_one_that_does_not_answer_is_asked_a_few_times_only(start: Started) -> None:
    worker = await start("mute")
    assert await worker.started(within_seconds=START_SECONDS_MAX)
    for _ in range(2 * process._UNANSWERED_MAX):
        with pytest.raises(NoAnswer):
            await worker.ask("snapshot", within_seconds=0.01)
    assert len(worker._unanswered) == process._UNANSWERED_MAX
    assert worker.silent_seconds > 0.01
    assert worker.snapshot == ()


async def test_one_that_does_not_end_is_killed_and_whoever_waits_hears_of_it(start: Started) -> None:
    worker = await start("stubborn")
    assert await worker.started(within_seconds=START_SECONDS_MAX)
    os.kill(worker.pid, signal.SIGSTOP)
    question = asyncio.create_task(worker.ask("checks", within_seconds=30.0))
    await asyncio.sleep(0)
    worker.send(signal.SIGTERM)
    await worker.ended(within_seconds=0.1)
    assert worker.exit_code == -signal.SIGKILL
    with pytest.raises(NoAnswer):
        await question


async def test_a_command_that_does_not_exist_is_an_error_and_leaves_nothing() -> None:
    with pytest.raises(OSError, match="nowhere"):
        await launch(0, ("/nowhere",), Orders({}, "", ()), lambda _: None)
