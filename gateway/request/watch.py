"""One watch for all calls: deadlines, clients that left, holds to renew, and the order to stop.

Timers of their own would cost every call several insertions into the event loop's heap, and a stream one for each
chunk. Here a call writes down when it last moved, and a few times a second one loop looks at all of them.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

from multidict import CIMultiDict

from gateway.clock import monotonic_seconds
from gateway.endpoints.endpoint import Made
from gateway.settings import UpstreamSettings

_log = logging.getLogger("farebox.watch")

TICK_SECONDS = 0.25


class _Closable(Protocol):
    def close(self) -> None: ...


class Client(Protocol):
    """The caller's side of the exchange (gateway/web/metered.py)."""

    def gone(self) -> bool: ...
    def abort(self) -> None: ...
    async def start(self, status: int, headers: CIMultiDict[str]) -> None: ...
    async def write(self, data: bytes) -> None: ...
    def missed(self, data: bytes) -> None: ...


class Call:
    """What the watch knows of one call in flight."""

    __slots__ = (
        "asked_at_seconds", "client", "drain_seconds", "ends_at_seconds", "first_byte_by_seconds", "idle_seconds",
        "is_client_gone", "is_late", "is_over", "is_stopped", "moved_at_seconds", "note",
        "output_tokens_estimate", "renew", "response", "task", "writing_since_seconds",
    )  # fmt: skip

    def __init__(self, client: Client, *, drain_seconds: float) -> None:
        self.client = client
        self.drain_seconds = drain_seconds
        self.asked_at_seconds = 0.0
        self.moved_at_seconds = monotonic_seconds()
        self.idle_seconds = 0.0
        self.ends_at_seconds = 0.0
        self.writing_since_seconds = 0.0
        self.first_byte_by_seconds = 0.0
        self.task: asyncio.Task[object] | None = None
        self.is_late = False
        self.response: _Closable | None = None
        self.renew: Callable[[float], None] | None = None
        # Called once with what the upstream keeps under an id, before the client is told the id.
        self.note: Callable[[Made, UpstreamSettings], Awaitable[None]] | None = None
        self.output_tokens_estimate: Callable[[], int] = int
        self.is_client_gone = False
        self.is_over = False
        self.is_stopped = False

    async def start(self, status: int, headers: CIMultiDict[str]) -> None:
        """Begin the reply to the client, unless it is gone."""
        if not self.is_client_gone:
            try:
                await self.client.start(status, headers)
            except ConnectionError:
                self.client_left()

    async def pass_on(self, data: bytes) -> None:
        """Write to the client; once it is gone, its reply is read on for the usage until the watch says enough."""
        if data and self.is_client_gone:
            self.client.missed(data)
        elif data:
            self.writing_since_seconds = monotonic_seconds()
            try:
                await self.client.write(data)
            except ConnectionError:
                self.client_left()
            finally:
                self.writing_since_seconds = 0.0

    def await_first_byte(self, seconds: float) -> None:
        """The running task waits for an upstream's headers, for so long at most."""
        self.first_byte_by_seconds = monotonic_seconds() + seconds
        self.task = asyncio.current_task()

    def took_too_long(self) -> bool:
        """Whether a cancellation came from here, and from nowhere else; it is then taken back."""
        return self.is_late and self.task is not None and self.task.uncancel() == 0

    def begin_reading(self, response: _Closable, *, idle_seconds: float, total_seconds: float) -> None:
        """The upstream's headers are there: from here on its silence and the whole of its reply are bounded."""
        now = monotonic_seconds()
        self.response = response
        self.moved_at_seconds = now
        self.idle_seconds = idle_seconds
        end = now + total_seconds
        if not self.ends_at_seconds or end < self.ends_at_seconds:
            self.ends_at_seconds = end

    def end_reading(self) -> None:
        """The reply is over."""
        self.response = None
        self.idle_seconds = 0.0

    def let_go(self) -> None:
        """The watch has been left. What refers back to the call is let go of: a circle would keep the whole exchange in
        memory until the collector comes, and the collector stops every call for some 20 ms."""
        self.renew = None
        self.note = None
        self.task = None

    def touch(self) -> None:
        """The upstream sent something."""
        self.moved_at_seconds = monotonic_seconds()

    def client_left(self) -> None:
        """The client is gone: the upstream is read a little longer, for the exact usage."""
        if not self.is_client_gone:
            self.is_client_gone = True
            self.end_within(self.drain_seconds)

    def end_within(self, seconds: float) -> None:
        """Bring the end of the reading forward."""
        end = monotonic_seconds() + seconds
        if not self.ends_at_seconds or end < self.ends_at_seconds:
            self.ends_at_seconds = end

    def stop(self) -> None:
        """End the reading now: the process is shutting down."""
        self.is_stopped = True
        self._end()

    def look(self, now: float) -> None:
        """Called by the watch a few times a second."""
        if not self.is_client_gone and self.client.gone():
            self.client_left()
        if self.first_byte_by_seconds:
            by = self.first_byte_by_seconds
            if now > (min(by, self.ends_at_seconds) if self.is_client_gone else by):
                self._give_up_waiting()
        if self.writing_since_seconds and self.idle_seconds and now - self.writing_since_seconds > self.idle_seconds:
            # A client that takes nothing keeps money held: it counts as gone.
            self.client.abort()
        idle = self.idle_seconds and not self.writing_since_seconds and now - self.moved_at_seconds > self.idle_seconds
        if self.response is not None and (idle or (self.ends_at_seconds and now > self.ends_at_seconds)):
            self._end()
        elif self.renew is not None:
            self.renew(now)

    def _end(self) -> None:
        self.is_over = True
        if self.first_byte_by_seconds:
            self._give_up_waiting()
        if self.response is not None:
            self.response.close()

    def _give_up_waiting(self) -> None:
        self.first_byte_by_seconds = 0.0
        self.is_late = True
        if self.task is not None:
            self.task.cancel()


class Watched(Protocol):
    """What the watch looks after: a call, or a session of them (gateway/request/session.py)."""

    is_client_gone: bool

    def look(self, now: float) -> None: ...
    def stop(self) -> None: ...


class Watch:
    """All calls in flight. `run()` is its own task."""

    def __init__(self) -> None:
        self._calls: set[Any] = set()  # of Watched
        self._empty: asyncio.Event | None = None

    def __len__(self) -> int:
        return len(self._calls)

    def enter(self, call: Watched) -> None:
        """Look after `call` until it leaves."""
        self._calls.add(call)

    def leave(self, call: Watched) -> None:
        """`call` has ended."""
        self._calls.discard(call)
        if self._empty is not None and not self._calls:
            self._empty.set()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = monotonic_seconds()
            for call in list(self._calls):
                try:
                    call.look(now)
                except Exception as error:  # a bug in one call must not leave all others without deadlines
                    _log.critical("a call could not be looked after", exc_info=error)

    async def emptied(self, *, within_seconds: float) -> None:
        """Return when no call is left, or after `within_seconds`."""
        self._empty = asyncio.Event()
        if not self._calls:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                await self._empty.wait()

    def stop_all(self) -> None:
        """End every call now."""
        for call in list(self._calls):
            call.stop()
