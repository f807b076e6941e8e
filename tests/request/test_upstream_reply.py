"""How a reply is read: any framing, cut anywhere, in bounded memory, and which connections are used again."""

import asyncio

import aiohttp
import pytest
from aiohttp.connector import Connection

from gateway.request.upstream import post
from gateway.request.upstream_reply import UNTAKEN_BYTES_MAX, Reply
from tests.support.scripted import BODY, OK, scripted, whole
from tests.support.shop import until

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 11\r\n\r\nhello world"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;note=1\r\nhello\r\n6\r\n world\r\n0\r\nX-Trailer: t\r\n\r\n"
)
ENDLESS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Wire:
    """What Reply asks of aiohttp's Connection and its transport, without a socket: it is fed by hand."""

    def __init__(self) -> None:
        self.parser: Reply | None = None
        self.paused = 0
        self.closed = self.released = False

    @property
    def protocol(self) -> "Wire":
        return self

    @property
    def transport(self) -> "Wire":
        return self

    def set_parser(self, parser: Reply | None, payload: None) -> None:
        assert payload is None
        self.parser = parser

    def pause_reading(self) -> None:
        self.paused += 1

    def resume_reading(self) -> None:
        self.paused -= 1

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True

    def release(self) -> None:
        self.released = True


def on_a_wire() -> tuple[Reply, Wire]:
    wire = Wire()
    return Reply(wire), wire  # type: ignore[arg-type]


@pytest.mark.parametrize("raw", [PLAIN, CHUNKED], ids=["length", "chunked"])
async def test_a_reply_is_the_same_wherever_its_bytes_are_cut(raw: bytes) -> None:
    for cut in range(len(raw) + 1):
        reply, wire = on_a_wire()
        for piece in (raw[:cut], raw[cut:]):
            assert not piece or reply.feed_data(piece) == (False, b"")
        await reply.head()
        assert (reply.status, dict(reply.headers)["Content-Type"]) == (200, "a/b")
        assert await reply.read() == b"hello world"
        assert await reply.read() == b""
        reply.release()
        assert (wire.released, wire.closed, wire.parser) == (True, False, None)


async def test_what_came_in_several_chunks_is_read_as_one() -> None:
    reply, _ = on_a_wire()
    reply.feed_data(ENDLESS + b"1\r\na\r\n" * 100)
    assert await reply.read() == b"a" * 100


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\na", b"a"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na", b"a"),
        (OK + OK, b"{}"),
        (b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\n", b""),
    ],
    ids=["close", "HTTP/1.0", "two replies", "more than none"],
)
async def test_a_connection_is_not_used_again(raw: bytes, body: bytes) -> None:
    reply, wire = on_a_wire()
    reply.feed_data(raw)
    assert await reply.read() == body
    reply.release()
    assert (wire.released, wire.closed) == (False, True)


async def test_a_reply_without_a_length_ends_with_its_connection() -> None:
    reply, wire = on_a_wire()
    reply.feed_data(b"HTTP/1.1 200 OK\r\n\r\nall")
    reply.feed_eof()
    assert await reply.read() == b"all"
    assert await reply.read() == b""
    reply.release()
    assert wire.closed


@pytest.mark.parametrize("raw", [PLAIN[:-1], CHUNKED[:-2], CHUNKED[:-30]], ids=["length", "last line", "chunk"])
async def test_a_reply_that_breaks_off_gives_what_came_and_then_fails(raw: bytes) -> None:
    reply, wire = on_a_wire()
    reply.feed_data(raw)
    reply.feed_eof()
    assert b"hello world".startswith(await reply.read())
    with pytest.raises(aiohttp.ClientPayloadError):
        await reply.read()
    reply.release()
    assert wire.closed


async def test_a_body_that_nobody_takes_stops_the_socket() -> None:
    reply, wire = on_a_wire()
    sent = 0
    while not wire.paused:
        reply.feed_data((ENDLESS if not sent else b"") + b"1000\r\n" + b"x" * 0x1000 + b"\r\n")
        sent += 0x1000
    assert sent <= UNTAKEN_BYTES_MAX + 2 * 0x1000
    assert len(await reply.read()) == sent
    assert wire.paused == 0


@pytest.mark.parametrize(
    ("before", "again"),
    [
        (b"HTTP/1.1 200 ", b"OK" * 500),
        (b"HTTP/1.1 200 OK\r\nX: ", b"x" * 1_000),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 40),
        (ENDLESS + b"0\r\nX: ", b"x" * 1_000),
        (ENDLESS + b"1;", b"x" * 1_000),
    ],
    ids=["reason", "header", "interim", "trailer", "extension"],
)
async def test_what_has_no_end_fails(before: bytes, again: bytes) -> None:
    reply, _ = on_a_wire()
    reply.feed_data(before)
    fed = 0
    while not reply.feed_data(again)[0]:
        fed += len(again)
        assert fed < 2 * UNTAKEN_BYTES_MAX
    with pytest.raises(aiohttp.ClientPayloadError):
        await (reply.read() if reply.status else reply.head())


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
        b"HTTP/1.1 000 No\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 300 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    ],
    ids=["two lengths", "folded", "line break", "no status", "many headers", "negative"],
)
async def test_a_head_that_could_be_read_in_two_ways_fails(raw: bytes) -> None:
    reply, wire = on_a_wire()
    assert reply.feed_data(raw)[0]
    with pytest.raises(aiohttp.ClientPayloadError):
        await reply.head()
    reply.release()
    assert wire.closed


async def test_a_connection_without_a_protocol_is_no_connection() -> None:
    async with scripted() as (_, connector, target):
        connection = await target.connect(connector)
        connection.close()
        with pytest.raises(aiohttp.ServerDisconnectedError):
            Reply(connection)
        assert isinstance(connection, Connection)


async def test_a_large_reply_waits_in_the_socket_and_not_here() -> None:
    """Over real sockets: what is not read is not taken from the upstream either."""
    body = b"x" * 2**25
    async with scripted(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)) as (
        _,
        connector,
        target,
    ):
        reply = await post(connector, target, [], BODY)
        await until(lambda: reply._is_paused)
        await asyncio.sleep(0.05)
        assert sum(map(len, reply._chunks)) < 2 * UNTAKEN_BYTES_MAX + 2**18
        assert await whole(reply) == body
