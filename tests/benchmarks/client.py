"""Load generating clients of our own: calls in a closed loop, streams counted, streams held open, single calls timed.

Replies are parsed only as far as their end; whether they are right is checked once, before anything is measured.
"""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import cast

from tests.benchmarks.mock_upstream import HELD_MODEL, MODEL

REPLY_SECONDS_MAX = 30.0
OPENING_BATCH = 50
PROMPT = "Say what a relay does, in words that a person who has never seen one will understand. "


@dataclass(frozen=True, slots=True)
class Target:
    """Where to send calls, and as whom."""

    name: str
    port: int
    authorization: str = "Bearer none"

    def request(self, body: bytes, path: str = "/chat/completions", content_type: str = "application/json") -> bytes:
        """The bytes of one POST."""
        head = (
            f"POST /v1{path} HTTP/1.1\r\n"
            f"host: 127.0.0.1:{self.port}\r\nauthorization: {self.authorization}\r\n"
            f"content-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def chat_body(*, stream: bool = False, held: bool = False, model: str = MODEL) -> bytes:
    """A chat request of about 460 bytes."""
    messages = [{"role": "system", "content": "You answer briefly."}, {"role": "user", "content": PROMPT * 3}]
    body: dict[str, object] = {"model": HELD_MODEL if held else model, "messages": messages, "max_tokens": 256}
    return json.dumps({**body, "stream": True} if stream else body, separators=(",", ":")).encode()


class Caller(asyncio.Protocol):
    """One connection that calls again as soon as it is answered. `on_reply` has the latency and the SSE events."""

    def __init__(self, request: bytes, on_reply: Callable[[float, int], bool], on_error: Callable[[], None]) -> None:
        self.request, self.on_reply, self.on_error = request, on_reply, on_error
        self.finished = asyncio.get_running_loop().create_future()
        self.over = False
        self.clear()

    def clear(self) -> None:
        self.head, self.tail, self.length, self.events = b"", b"", -1, 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.call()

    def call(self) -> None:
        self.clear()
        self.sent_at = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if self.length == -1:
            self.head += data
            end = self.head.find(b"\r\n\r\n")
            if end < 0:
                return
            head, data = self.head[: end + 4].lower(), self.head[end + 4 :]
            if not head.startswith(b"http/1.1 200"):
                self.fail()
                return
            self.length = _length(head)
        if self.length >= 0:
            self.length -= len(data)
            ended = self.length == 0
            self.length = max(self.length, 0)
        else:
            # Five bytes are kept: too few to count an event twice, enough to see one that was split.
            data = self.tail + data
            self.events += data.count(b"data: ")
            self.tail = data[-5:]
            ended = data.endswith(b"0\r\n\r\n")
        if ended:
            if self.on_reply(time.perf_counter() - self.sent_at, self.events):
                self.call()
            else:
                self.leave()

    def fail(self) -> None:
        self.on_error()
        self.leave()

    def leave(self) -> None:
        self.over = True
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over:
            self.on_error()
        if not self.finished.done():
            self.finished.set_result(None)


@dataclass(frozen=True, slots=True)
class Counted:
    """What a closed loop saw. Latencies are in seconds, one per reply; `seconds` is the time it took."""

    latencies: list[float]
    events: int
    errors: int
    seconds: float


async def run_callers(port: int, request: bytes, *, connections: int, seconds: float) -> Counted:
    """The same request from so many connections at once for so long."""
    latencies: list[float] = []
    events = errors = 0
    started = time.perf_counter()
    deadline = started + seconds

    def on_reply(latency_seconds: float, event_count: int) -> bool:
        nonlocal events
        latencies.append(latency_seconds)
        events += event_count
        return time.perf_counter() < deadline

    def on_error() -> None:
        nonlocal errors
        errors += 1

    loop = asyncio.get_running_loop()
    pairs = [
        await loop.create_connection(lambda: Caller(request, on_reply, on_error), "127.0.0.1", port)
        for _ in range(connections)
    ]
    _, unfinished = await asyncio.wait([one.finished for _, one in pairs], timeout=seconds + REPLY_SECONDS_MAX)
    for transport, _ in pairs:
        transport.close()
    return Counted(latencies, events, errors + len(unfinished), time.perf_counter() - started)


class HeldStream(asyncio.Protocol):
    """A stream that is opened and then only held. `opened` is true once its first event came."""

    def __init__(self, request: bytes) -> None:
        self.request, self.seen = request, b""
        self.opened: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self.request)

    def data_received(self, data: bytes) -> None:
        if not self.opened.done():
            self.seen += data
            if b"data: " in self.seen or not self.seen.startswith(b"HTTP/1.1 200"[: len(self.seen)]):
                self.opened.set_result(b"data: " in self.seen)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_result(False)


async def open_streams(target: Target, count: int) -> list[asyncio.Transport]:
    """`count` streams held open, each past its first event. Raises RuntimeError where some could not be opened."""
    request, loop = target.request(chat_body(stream=True, held=True)), asyncio.get_running_loop()
    transports: list[asyncio.Transport] = []
    for start in range(0, count, OPENING_BATCH):
        pairs = [
            await loop.create_connection(lambda: HeldStream(request), "127.0.0.1", target.port)
            for _ in range(min(OPENING_BATCH, count - start))
        ]
        transports.extend(transport for transport, _ in pairs)
        async with asyncio.timeout(REPLY_SECONDS_MAX):
            opened = await asyncio.gather(*(stream.opened for _, stream in pairs))
        if not all(opened):
            close_streams(transports)
            raise RuntimeError(f"{target.name} opened only {start + sum(opened)} of {count} streams")
    return transports


def close_streams(transports: list[asyncio.Transport]) -> None:
    for transport in transports:
        transport.abort()


class PausedReply(asyncio.Protocol):
    """A whole reply that is read up to `pause_at_bytes`, and no further until it is let go."""

    def __init__(self, request: bytes, pause_at_bytes: int) -> None:
        self.request, self.pause_at_bytes = request, pause_at_bytes
        self.read_bytes, self.wanted_bytes = 0, -1
        self.head = b""
        loop = asyncio.get_running_loop()
        self.paused: asyncio.Future[bool] = loop.create_future()
        self.finished: asyncio.Future[bool] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if self.wanted_bytes < 0:
            self.head += data
            end = self.head.find(b"\r\n\r\n")
            if end < 0:
                return
            self.wanted_bytes = _length(self.head[: end + 4].lower()) if self.head.startswith(b"HTTP/1.1 200") else 0
            data = self.head[end + 4 :]
        self.read_bytes += len(data)
        if not self.paused.done() and self.read_bytes >= self.pause_at_bytes:
            self.transport.pause_reading()
            self.paused.set_result(True)
        is_whole = data.endswith(b"0\r\n\r\n") if self.wanted_bytes == -2 else self.read_bytes >= self.wanted_bytes
        if is_whole:
            self.connection_lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        for future in (self.paused, self.finished):
            if not future.done():
                future.set_result(self.read_bytes >= self.pause_at_bytes)


async def paused_replies(target: Target, request: bytes, count: int, pause_at_bytes: int) -> list[PausedReply]:
    """`count` replies at once, each read so far and no further. Raises RuntimeError, TimeoutError."""
    loop = asyncio.get_running_loop()
    replies = [
        (await loop.create_connection(lambda: PausedReply(request, pause_at_bytes), "127.0.0.1", target.port))[1]
        for _ in range(count)
    ]
    async with asyncio.timeout(REPLY_SECONDS_MAX):
        begun = await asyncio.gather(*(reply.paused for reply in replies))
    if not all(begun):
        raise RuntimeError(f"{target.name} broke off a large reply: {replies[0].head[:300]!r}")
    return replies


async def finish_replies(target: Target, replies: list[PausedReply], bytes_min: int) -> None:
    """Read them to their ends. Raises RuntimeError, TimeoutError."""
    for reply in replies:
        reply.transport.resume_reading()
    async with asyncio.timeout(4 * REPLY_SECONDS_MAX):
        await asyncio.gather(*(reply.finished for reply in replies))
    for reply in replies:
        reply.transport.abort()
    if any(reply.read_bytes < bytes_min for reply in replies):
        raise RuntimeError(f"{target.name} lost the end of a large reply")


# One call at a time, blocking: the least noise between a request and its reply ---------------------------------------


@contextmanager
def blocking_connection(target: Target) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", target.port), timeout=REPLY_SECONDS_MAX) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection


def call_once(connection: socket.socket, request: bytes) -> bytes:
    """The whole reply, head and all. Raises RuntimeError unless it is a 200."""
    connection.sendall(request)
    data = b""
    while not _whole(data):
        piece = connection.recv(65536)
        if not piece:
            raise RuntimeError(f"the connection was closed after {data[:200]!r}")
        data += piece
    if not data.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"not a 200: {data[:600]!r}")
    return data


def alternate(targets: list[Target], calls: int, also: Callable[[], float]) -> dict[str, list[float]]:
    """Latencies in seconds per target, and what `also` says under "also", taking turns so that a drift meets all."""
    latencies: dict[str, list[float]] = {"also": [], **{target.name: [] for target in targets}}
    body = chat_body()
    requests = [target.request(body) for target in targets]
    with ExitStack() as stack:
        connections = [stack.enter_context(blocking_connection(target)) for target in targets]
        for _ in range(calls):
            for target, request, connection in zip(targets, requests, connections, strict=True):
                started = time.perf_counter()
                call_once(connection, request)
                latencies[target.name].append(time.perf_counter() - started)
                latencies["also"].append(also())
    return latencies


def _whole(data: bytes) -> bool:
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return False
    length = _length(data[: end + 4].lower())
    return data.endswith(b"0\r\n\r\n") if length == -2 else len(data) >= end + 4 + length


def _length(head: bytes) -> int:
    """The Content-Length of a lower-case head; -2 where the body is chunked."""
    start = head.find(b"\r\ncontent-length:")
    if start < 0:
        return -2
    return int(head[start + 17 : head.index(b"\r\n", start + 2)])
