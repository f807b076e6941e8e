"""One call that reached a fake upstream: what was asked, what was really sent, and the means to send it badly."""

import asyncio
import contextlib
import os
import socket
import struct
import time
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import web
from multidict import CIMultiDictProxy

from tests.support.completion import Asked

# Every wait in this fake ends: a test that waits longer has failed, and must say so.
WAIT_SECONDS_MAX = 10.0


class Gate:
    """Holds a reply back until the test opens it; `reached` is set when the reply arrives there."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._opened = asyncio.Event()

    def open(self) -> None:
        self._opened.set()

    async def passed(self) -> None:
        """Raises TimeoutError when nobody opens it."""
        self.reached.set()
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            await self._opened.wait()

    async def arrived(self) -> None:
        """Wait until a reply stands before the gate. Raises TimeoutError."""
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            await self.reached.wait()


@dataclass(slots=True)
class Served:
    """One entry of the log. The log is the oracle: what Farebox charges is compared with it.

    `prompt_tokens` and `completion_tokens` are the honest usage of the whole reply, all choices together;
    `usage_objects` are what was really written about it. `output_tokens_sent` counts tokens handed to the socket so
    far. `completed`: the whole answer was handed to the socket. `client_left`: the other side closed before that; it
    stays False where the upstream itself broke off.
    """

    number: int
    request_id: str | None
    method: str
    raw_path: str
    headers: CIMultiDictProxy[str]
    body: bytes
    asked: Asked | None
    at_seconds: float = field(default_factory=time.monotonic)
    status: int | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usage_objects: list[object] = field(default_factory=list)
    output_tokens_sent: int = 0
    events_sent: int = 0
    bytes_sent: int = 0
    completed: bool = False
    client_left: bool = False
    ended: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    def touch(self) -> None:
        """Wake whoever waits for this entry to change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[["Served"], bool]) -> "Served":
        """Wait until `condition(self)`. Raises TimeoutError."""
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while not condition(self):
                await self._changed.wait()
        return self

    async def sent_events(self, count: int) -> "Served":
        """Wait until `count` SSE events (the role and finish chunks and `[DONE]` count) were sent."""
        return await self.until(lambda served: served.events_sent >= count)

    async def finished(self) -> "Served":
        """Wait until the reply ended, well or badly."""
        return await self.until(lambda served: served.ended)


class Call:
    """The writing end of one call. Behaviours use nothing else."""

    def __init__(self, request: web.Request, served: Served) -> None:
        assert request.transport is not None
        self.served = served
        self.response: web.StreamResponse | None = None
        self._request = request
        self._transport: asyncio.Transport = request.transport
        self._compressor: zlib._Compress | None = None
        self.cut = False

    @property
    def asked(self) -> Asked:
        """Raises AssertionError where the request was no chat completion."""
        assert self.served.asked is not None, "this behaviour answers chat completions only"
        return self.served.asked

    async def start(
        self,
        content_type: str,
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        length_bytes: int | None = None,
        gzip: bool = False,
    ) -> None:
        """Send the head. Without `length_bytes` the body is chunked."""
        self.response = web.StreamResponse(status=status)
        self.response.headers.update(
            {"content-type": content_type, "x-request-id": f"req_{self.served.number}", "openai-processing-ms": "7"}
        )
        if gzip:
            self._compressor = zlib.compressobj(wbits=31)
            self.response.headers["content-encoding"] = "gzip"
        elif length_bytes is not None:
            self.response.content_length = length_bytes
        self.response.headers.update(headers or {})
        self.served.status = status
        await self.response.prepare(self._request)

    async def send(self, data: bytes, *, events: int = 0, tokens: int = 0, last: bool = False) -> None:
        """Write `data` as its own piece, and let the other side read it before the next. `last`: nothing follows."""
        assert self.response is not None
        if self._compressor is not None:
            data = self._compressor.compress(data) + self._compressor.flush(zlib.Z_SYNC_FLUSH)
        if data:
            await self.response.write(data)
        self.served.bytes_sent += len(data)
        self.served.events_sent += events
        self.served.output_tokens_sent += tokens
        # Noted before the loop turns: a client may leave as soon as it has the last byte, and is then not gone early.
        self.served.completed = last
        self.served.touch()
        for _ in range(3):  # write, poll, read: three turns when both ends share one loop
            await asyncio.sleep(0)

    async def finish(self, *, broken: bool = False) -> None:
        """End the body as HTTP wants it. `broken`: what it said was not the whole answer."""
        assert self.response is not None
        tail = self._compressor.flush() if self._compressor is not None else b""
        self.served.completed, self.cut = not broken, broken
        self.served.bytes_sent += len(tail)
        await self.response.write_eof(tail)

    async def write_raw(self, data: bytes) -> None:
        """Write to the socket itself, below HTTP."""
        self._transport.write(data)
        self.served.bytes_sent += len(data)
        self.served.touch()
        await self._flushed()

    async def close(self) -> None:
        """End the connection (FIN) with the reply unfinished. Never returns: the handler is cancelled."""
        await self._flushed()
        self.cut = True
        self._transport.close()
        await self.stall()

    async def reset(self) -> None:
        """End the connection with a TCP RST. Never returns: the handler is cancelled."""
        await self._flushed()
        self.cut = True
        self._linger_zero()
        self._transport.abort()
        await self.stall()

    def _linger_zero(self) -> None:
        """Make the next close a reset."""
        # A duplicate of the descriptor: not every event loop lends its socket out with all its options.
        with socket.socket(fileno=os.dup(self._transport.get_extra_info("socket").fileno())) as twin:
            twin.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def stall(self) -> None:
        """Say nothing more until the other side leaves. Never returns normally; raises TimeoutError at the limit."""
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            await asyncio.Event().wait()

    async def _flushed(self) -> None:
        for _ in range(1_000):
            if self._transport.is_closing() or not self._transport.get_write_buffer_size():
                return
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def recorded(call: Call) -> AsyncIterator[None]:
    """Note in the log how a reply ended, whatever happens."""
    served = call.served
    try:
        yield
    except (ConnectionResetError, asyncio.CancelledError):
        served.client_left = not served.completed and not call.cut
        raise
    finally:
        served.ended = True
        served.touch()
