"""A light upstream, in a process of its own, several times faster than any relay in front of it.

HTTP/1.1 with keep-alive and pipelining, parsed by hand: requests with a Content-Length only. What it answers:
- a chat completion of about 580 bytes with its usage;
- `"stream":true`: 100 SSE events, each its own write, the usage chunk where asked for, and `[DONE]`;
- the model `HELD_MODEL`: one event, then silence until the client leaves or HELD_SECONDS_MAX have passed.

Prints `listening PORT` and serves until it is terminated.
"""

import asyncio
import json
from collections import deque
from collections.abc import Iterator
from typing import cast

import uvloop

MODEL = "bench-chat"
HELD_MODEL = "bench-held"
STREAM_EVENTS = 100
HELD_SECONDS_MAX = 120.0
REQUEST_BYTES_MAX = 1024 * 1024

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


class Upstream(asyncio.Protocol):
    """One connection. While a stream is being sent, later requests wait in `pending`."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.buffer = b""
        self.pending: deque[bytes] = deque()
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
        self.buffer = self.buffer + data if self.buffer else data
        while self.buffer:
            head_end = self.buffer.find(b"\r\n\r\n")
            if head_end < 0:
                break
            body_start = head_end + 4
            length = _content_length(self.buffer[:body_start])
            if length is None:
                self.refuse()
                return
            if len(self.buffer) < body_start + length:
                break
            self.pending.append(self.buffer[body_start : body_start + length])
            self.buffer = self.buffer[body_start + length :]
        if len(self.buffer) > REQUEST_BYTES_MAX:
            self.refuse()
        self.answer()

    def refuse(self) -> None:
        self.transport.write(REFUSAL)
        self.transport.close()

    def answer(self) -> None:
        """Answer what is pending, up to and including the first stream."""
        while self.pending and self.stream is None and self.held is None:
            body = self.pending.popleft()
            if b'"stream":true' not in body:
                self.transport.write(REPLY)
            elif HELD_MODEL.encode() in body:
                self.transport.write(STREAM_HEAD + EVENT)
                self.held = self.loop.call_later(HELD_SECONDS_MAX, self.let_go)
            else:
                self.stream = _stream(usage=b'"include_usage":true' in body)
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
    """None where the length of the body is not plainly given."""
    lower = head.lower()
    start = lower.find(b"\r\ncontent-length:")
    if start < 0:
        return 0 if b"\r\ntransfer-encoding:" not in lower else None
    start += len(b"\r\ncontent-length:")
    digits = lower[start : lower.index(b"\r\n", start)].strip()
    return int(digits) if digits.isdigit() and len(digits) < 8 else None


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0, backlog=4096)
    print(f"listening {server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
