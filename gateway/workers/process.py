"""One worker process, as its supervisor sees it: started, asked, told to retire or to stop, and seen to its end."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.clock import monotonic_seconds
from gateway.tasks import spawn
from gateway.workers.link import Link, Message
from gateway.workers.totals import Snapshot

_log = logging.getLogger("farebox.workers")

# A worker that does not answer this many questions is asked no more until it does.
_UNANSWERED_MAX = 4
_EXIT_SECONDS_MAX = 5.0
# A worker does as its supervisor says; what a terminal sends to the whole group is for the supervisor.
_NOT_FOR_WORKERS = {signal.SIGINT, signal.SIGHUP}


class NoAnswer(Exception):
    """The worker did not answer in time, or has died."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What a worker is started with. `settings` is the document as it was read, with its secrets."""

    settings: Mapping[str, Any]
    dsn: str
    sockets: Sequence[socket.socket]


class Worker:
    """A worker process. `ready` once it serves; `exit_code` once it has ended."""

    def __init__(self, number: int, process: "subprocess.Popen[bytes]", link: Link) -> None:
        self.number = number
        self.snapshot: Snapshot = ()
        self.ready = False
        self.retiring = False
        self.exit_code: int | None = None
        self.changed = asyncio.Event()
        self._process = process
        self._link = link
        self._asked = 0
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._unanswered: dict[int, float] = {}  # when each was asked
        self._heard_at_seconds = monotonic_seconds()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def silent_seconds(self) -> float:
        """How long nothing has come from it although it was asked."""
        if not self._unanswered:
            return 0.0
        return monotonic_seconds() - max(self._heard_at_seconds, min(self._unanswered.values()))

    async def ask(self, what: str, *, within_seconds: float) -> Any:
        """Raises NoAnswer."""
        if self.exit_code is not None or len(self._unanswered) >= _UNANSWERED_MAX:
            raise NoAnswer
        self._asked += 1
        number = self._asked
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._unanswered[number] = monotonic_seconds()
        self._link.send({"ask": what, "number": number})
        try:
            async with asyncio.timeout(within_seconds):
                return await answer
        except TimeoutError:
            raise NoAnswer from None
        finally:
            self._answers.pop(number, None)

    def lead(self, leads: bool) -> None:
        """Look after the database as a whole, or no longer."""
        self._link.send({"lead": leads})

    def retire(self) -> None:
        """Take no new connections, end when the open ones have ended."""
        self.retiring = True
        self._link.send({"retire": True})

    def hurry(self) -> None:
        """End every call now."""
        self._link.send({"hurry": True})

    def send(self, number: signal.Signals) -> None:
        """A signal, unless it has ended."""
        self._process.send_signal(number)

    async def started(self, *, within_seconds: float) -> bool:
        """Wait until it serves; False, and it has ended, where it does not."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                while not self.ready and self.exit_code is None:
                    self.changed.clear()
                    await self.changed.wait()
        if self.ready and self.exit_code is None:
            return True
        await self.ended(within_seconds=0.0)
        return False

    async def ended(self, *, within_seconds: float) -> None:
        """Wait until it has ended; after `within_seconds` it is killed."""
        try:
            async with asyncio.timeout(within_seconds):
                await self.gone()
        except TimeoutError:
            self.send(signal.SIGKILL)
            await self.gone()

    async def gone(self) -> None:
        while self.exit_code is None:
            self.changed.clear()
            await self.changed.wait()

    async def listen(self, on_end: Callable[["Worker"], None]) -> None:
        """Hear what it says until it ends, and then say so."""
        while (message := await self._link.receive()) is not None:
            self._heard(message)
        # It has hung up, which it does last. One that lives on all the same must not.
        code = await asyncio.to_thread(_reap, self._process)
        await self._link.close()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(NoAnswer())
        self.exit_code = code
        on_end(self)
        self.changed.set()

    def _heard(self, message: Message) -> None:
        self._heard_at_seconds = monotonic_seconds()
        if "ready" in message:
            self.ready = True
            self.changed.set()
        if "snapshot" in message:
            self.snapshot = message["snapshot"]
        if "number" in message:
            self._unanswered.pop(message["number"], None)
            answer = self._answers.get(message["number"])
            if answer is not None and not answer.done():
                answer.set_result(message.get("answer"))


def _reap(process: "subprocess.Popen[bytes]") -> int:
    try:
        return process.wait(_EXIT_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


async def launch(number: int, command: Sequence[str], orders: Orders, on_end: Callable[[Worker], None]) -> Worker:
    """Start worker `number`. Raises OSError."""
    ours, theirs = socket.socketpair()
    shared = [listening.fileno() for listening in orders.sockets]
    try:
        with theirs:
            process = _spawn([*command, str(theirs.fileno())], [theirs.fileno(), *shared])
    except OSError:
        ours.close()
        raise
    link = await Link.over(ours)
    link.send({"worker": number, "settings": dict(orders.settings), "dsn": orders.dsn, "sockets": shared})
    worker = Worker(number, process, link)
    spawn(worker.listen(on_end), name=f"worker {number}")
    _log.info("a worker was started", extra={"fields": {"worker": number, "pid": worker.pid}})
    return worker


def _spawn(command: Sequence[str], descriptors: Sequence[int]) -> "subprocess.Popen[bytes]":
    # The same code as ours, found in the same places, wherever the working directory is.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_FOR_WORKERS)
    try:
        return subprocess.Popen(command, pass_fds=descriptors, env=environment, stdin=subprocess.DEVNULL)  # noqa: S603 - our own program
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
