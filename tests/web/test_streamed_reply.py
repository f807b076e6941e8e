"""A streamed reply, byte for byte as HTTP/1.1 wants it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from multidict import CIMultiDict

from gateway.web import whole_reply
from gateway.web.server import Listener
from gateway.web.streamed_reply import StreamedReply
from tests.support.rawhttp import RawConnection, exchange, request
from tests.support.shop import until

Act = Callable[[StreamedReply], Awaitable[None]]


@asynccontextmanager
async def streaming(act: Act, headers: dict[str, str] | None = None) -> AsyncIterator[int]:
    """A port that answers every request with a stream that `act` writes."""

    async def handler(given: web.BaseRequest) -> web.StreamResponse:
        reply = StreamedReply(given, 200, CIMultiDict(headers or {}))
        await act(reply)
        return reply

    listener = Listener(handler, header_seconds=5, header_bytes_max=8_190, body_bytes_max=100, keep_alive_seconds=5)
    port = await listener.open("127.0.0.1", 0)
    try:
        yield port
    finally:
        await listener.close(timeout_seconds=0.1)


def writes(*pieces: bytes, last: bytes = b"") -> Act:
    async def act(reply: StreamedReply) -> None:
        for piece in pieces:
            await reply.write(piece)
        await reply.write_eof(last)

    return act


async def test_the_bytes_on_the_wire() -> None:
    async with streaming(writes(b"data: a\n\n", b"", b"data: bb\n\n", last=b"end"), {"Content-Type": "a/b"}) as port:
        connection = await RawConnection.to(port)
        await connection.send(request("GET", "/", "Connection: close"))
        head, _, body = (await connection.ended()).partition(b"\r\n\r\n")
        connection.close()
    lines = head.split(b"\r\n")
    assert [line for line in lines if not line.startswith(b"Date: ")] == [
        b"HTTP/1.1 200 OK",
        b"Content-Type: a/b",
        b"Transfer-Encoding: chunked",
        b"Connection: close",
    ]
    assert body == b"9\r\ndata: a\n\n\r\na\r\ndata: bb\n\n\r\n3\r\nend\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    "pieces",
    [(), (b"x",), (b"x" * 65_536, b"y" * 65_537), (bytes(range(256)) * 10_000,)],
    ids=["none", "one", "joined and not", "large"],
)
async def test_a_connection_is_used_again_after_a_stream_of_any_size(pieces: Sequence[bytes]) -> None:
    async with streaming(writes(*pieces)) as port:
        connection = await RawConnection.to(port)
        for _ in range(3):
            await connection.send(request("GET", "/"))
            assert (await connection.reply()).body == b"".join(pieces)
        connection.close()


async def test_the_head_does_not_wait_for_the_first_piece() -> None:
    go_on = asyncio.Event()

    async def act(reply: StreamedReply) -> None:
        await go_on.wait()
        await reply.write_eof()

    async with streaming(act) as port:
        connection = await RawConnection.to(port)
        await connection.send(request("GET", "/"))
        async with asyncio.timeout(5):
            assert (await connection.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        go_on.set()
        assert await connection.reader.readexactly(5) == b"0\r\n\r\n"
        connection.close()


async def test_the_end_is_sent_once() -> None:
    async def act(reply: StreamedReply) -> None:
        await reply.write_eof(b"a")
        await reply.write_eof(b"b")

    async with streaming(act) as port:
        assert (await exchange(port, request("GET", "/"))).body == b"a"


async def test_a_line_break_in_a_header_is_no_header() -> None:
    failed: list[Exception] = []

    async def handler(given: web.BaseRequest) -> web.StreamResponse:
        try:
            return StreamedReply(given, 200, CIMultiDict({"X": "a\r\nSet-Cookie: b"}))
        except ValueError as error:
            failed.append(error)
            return web.Response(status=500)

    listener = Listener(handler, header_seconds=5, header_bytes_max=8_190, body_bytes_max=100, keep_alive_seconds=5)
    port = await listener.open("127.0.0.1", 0)
    assert (await exchange(port, request("GET", "/"))).status == 500
    await listener.close(timeout_seconds=0.1)
    assert failed


async def test_a_client_that_left_is_noticed() -> None:
    noticed: list[Exception] = []

    async def act(reply: StreamedReply) -> None:
        try:
            while True:
                await reply.write(b"x" * 1_000)
                await asyncio.sleep(0)
        except ConnectionError as error:
            noticed.append(error)
            raise

    async with streaming(act) as port:
        connection = await RawConnection.to(port)
        await connection.send(request("GET", "/"))
        await connection.reader.readexactly(100)
        connection.close()
        await until(lambda: bool(noticed))


async def test_a_client_that_does_not_read_its_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_reply, "READ_SECONDS_MAX", 0.1)
    ended: list[Exception] = []

    async def act(reply: StreamedReply) -> None:
        try:
            await reply.write_eof(b"x" * 2**26)
        except ConnectionError as error:
            ended.append(error)
            raise

    async with streaming(act) as port:
        connection = await RawConnection.to(port)
        await connection.send(request("GET", "/"))
        await until(lambda: bool(ended))
        connection.close()
