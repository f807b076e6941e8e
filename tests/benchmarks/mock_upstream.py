"""A light upstream, in a process of its own, several times faster than any relay in front of it.

HTTP/1.1 with keep-alive and pipelining, parsed by hand: bodies with a Content-Length, or chunked and not pipelined.
A body is read and forgotten but for its first bytes. What it answers:
- a chat completion of about 580 bytes with its usage;
- `"stream":true`: 100 SSE events, each its own write, the usage chunk where asked for, and `[DONE]`;
- the model `HELD_MODEL`: one event, then silence until the client leaves or HELD_SECONDS_MAX have passed;
- the model `LARGE_MODEL`: a completion of 20 MB; and the paths of `rows.py`.

Prints `listening PORT` and serves until it is terminated.
"""

import asyncio
import json
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple, cast

import uvloop

from tests.benchmarks.rows import LARGE_MODEL, Reply, large_reply, replies

MODEL = "bench-chat"
HELD_MODEL = "bench-held"
STREAM_EVENTS = 100
HELD_SECONDS_MAX = 120.0
# All that a row sends, and enough of a body to read the model and the switches from.
REQUEST_BYTES_MAX = 64 * 1024 * 1024
BODY_BYTES_KEPT = 65_536
HEAD_BYTES_MAX = 65_536

USAGE = {
    "prompt_tokens": 88,
    "completion_tokens": 40,
    "total_tokens": 128,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
}
STREAM_USAGE = {**USAGE, "completion_tokens": STREAM_EVENTS, "total_tokens": 88 + STREAM_EVENTS}


def _dump(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _reply() -> bytes:
    message = {"role": "assistant", "content": "A relay carries what it is given. " * 3, "refusal": None}
    body = _dump(
        {
            "id": "chatcmpl-0123456789abcdef0123456789ab",
            "object": "chat.completion",
            "created": 1_760_000_000,
            "model": MODEL,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
            "usage": USAGE,
            "service_tier": "default",
            "system_fingerprint": None,
        }
    )
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _piece(data: bytes) -> bytes:
    """One SSE event in one HTTP chunk."""
    event = b"data: " + data + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


def _chunk(**fields: object) -> bytes:
    head = {"id": "chatcmpl-0123456789abcdef0123456789ab", "object": "chat.completion.chunk"}
    return _piece(_dump({**head, "created": 1_760_000_000, "model": MODEL, **fields}))


REPLY = _reply()
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = _chunk(choices=[{"index": 0, "delta": {"content": " word"}, "logprobs": None, "finish_reason": None}])
USAGE_EVENT = _chunk(choices=[], usage=STREAM_USAGE)
DONE = _piece(b"[DONE]") + b"0\r\n\r\n"
REFUSAL = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


def _pieces(reply: Reply) -> tuple[bytes, ...]:
    """The HTTP of a reply, in the pieces in which it is written."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {reply.content_type}\r\n".encode()
    if not reply.is_chunked:
        first = head + b"content-length: %d\r\n\r\n" % sum(map(len, reply.pieces)) + reply.pieces[0]
        return first, *reply.pieces[1:]
    head += b"transfer-encoding: chunked\r\n\r\n"
    return head, *(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in reply.pieces), b"0\r\n\r\n"


REPLIES = {path: _pieces(reply) for path, reply in replies().items()}
LARGE_REPLY = _pieces(large_reply())


class Asked(NamedTuple):
    """A request: its path, and the beginning of its body."""

    path: bytes
    body: bytes


class Upstream(asyncio.Protocol):
    """One connection. While a stream is being sent, later requests wait in `pending`."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.buffer = b""
        self.path = b""
        self.body = b""  # the beginning of the one that is being read
        self.tail = b""
        self.missing = 0  # how much of it is still to come; -1 for as much as its last chunk says
        self.pending: deque[Asked] = deque()
        self.stream: Iterator[bytes] | None = None
        self.held: asyncio.TimerHandle | None = None
        self.writable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.stream = None
        if self.held is not None:
            self.held.cancel()

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        if self.stream is not None:
            self.pump()

    def data_received(self, data: bytes) -> None:
        while data:
            data = self.take_body(data) if self.path else self.take_head(data)
        self.answer()

    def take_head(self, data: bytes) -> bytes:
        """What follows the head, if all of it is here."""
        self.buffer += data
        head_end = self.buffer.find(b"\r\n\r\n")
        if head_end < 0:
            if len(self.buffer) > HEAD_BYTES_MAX:
                self.refuse()
            return b""
        head, rest = self.buffer[: head_end + 4], self.buffer[head_end + 4 :]
        self.buffer = self.body = self.tail = b""
        length = _content_length(head)
        if length is None or length > REQUEST_BYTES_MAX:
            self.refuse()
            return b""
        self.path, self.missing = head.split(b" ", 2)[1].partition(b"?")[0], length
        return rest if length else self.take_body(rest)

    def take_body(self, data: bytes) -> bytes:
        """What follows the body, if all of it is here."""
        if len(self.body) < BODY_BYTES_KEPT:
            self.body += data[: BODY_BYTES_KEPT if self.missing < 0 else min(self.missing, BODY_BYTES_KEPT)]
        if self.missing < 0:
            self.tail = (self.tail + data)[-5:]
            if self.tail != b"0\r\n\r\n":
                return b""
            rest = b""
        else:
            rest, self.missing = data[self.missing :], max(0, self.missing - len(data))
            if self.missing:
                return b""
        self.pending.append(Asked(self.path, self.body))
        self.path = b""
        return rest

    def refuse(self) -> None:
        self.transport.write(REFUSAL)
        self.transport.close()

    def answer(self) -> None:
        """Answer what is pending, up to and including the first stream."""
        while self.pending and self.stream is None and self.held is None:
            path, body = self.pending.popleft()
            if (pieces := REPLIES.get(path)) is not None:
                self.begin(iter(pieces))
            elif LARGE_MODEL.encode() in body:
                self.begin(iter(LARGE_REPLY))
            elif b'"stream":true' not in body:
                self.transport.write(REPLY)
            elif HELD_MODEL.encode() in body:
                self.transport.write(STREAM_HEAD + EVENT)
                self.held = self.loop.call_later(HELD_SECONDS_MAX, self.let_go)
            else:
                self.begin(_stream(usage=b'"include_usage":true' in body))

    def begin(self, stream: Iterator[bytes]) -> None:
        self.stream = stream
        self.pump()

    def pump(self) -> None:
        """Write one event per turn of the loop, so that each is a segment of its own and streams take turns."""
        if self.stream is None or not self.writable:
            return
        piece = next(self.stream, None)
        if piece is None:
            self.stream = None
            self.answer()
        else:
            self.transport.write(piece)
            self.loop.call_soon(self.pump)

    def let_go(self) -> None:
        self.held = None
        self.transport.write(DONE)
        self.answer()


def _stream(*, usage: bool) -> Iterator[bytes]:
    yield STREAM_HEAD + EVENT
    for _ in range(STREAM_EVENTS - 1):
        yield EVENT
    if usage:
        yield USAGE_EVENT
    yield DONE


def _content_length(head: bytes) -> int | None:
    """-1 for a chunked body, None where its length is not plainly given."""
    lower = head.lower()
    start = lower.find(b"\r\ncontent-length:")
    if start < 0:
        return 0 if b"\r\ntransfer-encoding:" not in lower else -1
    start += len(b"\r\ncontent-length:")
    digits = lower[start : lower.index(b"\r\n", start)].strip()
    return int(digits) if digits.isdigit() and len(digits) < 8 else None


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0, backlog=4096)
    print(f"listening {server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
