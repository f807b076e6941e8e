"""The services that look after the database as a whole. Of several processes one leads, and runs them."""

import asyncio
import contextlib
from collections.abc import Sequence

from gateway.metrics import Metrics
from gateway.tasks import spawn, stop
from gateway.upkeep.service import Service, run_forever


class Lead:
    """Runs `services` while this process leads. Two that lead do no harm, only work twice."""

    def __init__(self, services: Sequence[Service], metrics: Metrics) -> None:
        self._services = services
        self._metrics = metrics
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_taken(self) -> bool:
        """Whether this process leads."""
        return bool(self._tasks)

    async def take(self) -> None:
        """Lead, from here on."""
        if not self._tasks:
            self._tasks = [spawn(run_forever(service, self._metrics), name=service.name) for service in self._services]

    async def leave(self) -> None:
        """Leave it to another process, whose word on these services then counts."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            await stop(task)
        if tasks:
            for service in self._services:
                with contextlib.suppress(KeyError):  # it never succeeded
                    self._metrics.upkeep_seconds.remove(service.name)
