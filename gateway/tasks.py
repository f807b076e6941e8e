"""The only place that starts background tasks: each is kept, named, and loud when it dies."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

_log = logging.getLogger("farebox.tasks")
_running: set[asyncio.Task[Any]] = set()


def spawn(coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
    """Run `coroutine` in the background. The event loop alone keeps only weak references to tasks, so we keep one."""
    task = asyncio.get_running_loop().create_task(coroutine, name=name)
    _running.add(task)
    task.add_done_callback(_ended)
    return task


async def stop(task: asyncio.Task[Any]) -> None:
    """Cancel `task` and wait until it has ended."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _ended(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.critical("task %s died", task.get_name(), exc_info=error)
