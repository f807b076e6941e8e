"""Background tasks are kept until they end, and one that dies says so."""

import asyncio
import gc
import logging
import weakref

import pytest

from gateway import tasks
from gateway.tasks import spawn, stop


async def fail() -> None:
    raise RuntimeError("on purpose")


async def test_a_task_that_nobody_holds_is_kept_until_it_ends() -> None:
    ended = asyncio.Event()

    async def wait(future: "asyncio.Future[None]") -> None:
        await future
        ended.set()

    future: asyncio.Future[None] | None = asyncio.get_running_loop().create_future()
    assert future is not None
    held = weakref.ref(spawn(wait(future), name="a task"))
    await asyncio.sleep(0)
    gc.collect()
    task = held()
    assert task is not None
    assert task.get_name() == "a task"
    assert task in tasks._running
    future.set_result(None)
    await task
    assert ended.is_set()
    await asyncio.sleep(0)
    assert task not in tasks._running


async def test_a_task_that_dies_is_loud_and_one_that_is_stopped_is_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "farebox.tasks"):
        stopped = spawn(asyncio.Event().wait(), name="stopped")
        await asyncio.sleep(0)
        await stop(stopped)
        assert stopped.cancelled()
        assert not caplog.records
        dead = spawn(fail(), name="dead")
        await asyncio.wait([dead])
        await asyncio.sleep(0)
        await stop(dead)
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == ("CRITICAL", "task dead died")
    assert record.exc_info is not None
    assert not tasks._running & {stopped, dead}


async def test_stop_waits_for_the_end() -> None:
    steps: list[str] = []

    async def tidy() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            steps.append("tidied")

    task = spawn(tidy(), name="tidy")
    await asyncio.sleep(0)
    await stop(task)
    assert steps == ["tidied"]
