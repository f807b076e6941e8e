"""A reply in one write, byte for byte as HTTP/1.1 wants it; whatever is not plain is aiohttp's to frame."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import pytest
from aiohttp import web
from multidict import CIMultiDict

from gateway.web.server import Listener
from gateway.web.whole_reply import WholeReply, is_plain
from tests.support.rawhttp import RawConnection, exchange, request


@asynccontextmanager
async def serving(
    status: int, headers: Mapping[str, str], body: bytes, made: list[str] | None = None
) -> AsyncIterator[int]:
    """A port that answers so, as the metered path does. `made` is told which of the two ways was taken."""

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        plain = is_plain(request, status)
        if made is not None:
            made.append("whole" if plain else "aiohttp")
        if plain:
            return WholeReply(request, status, CIMultiDict(headers), body)
        return web.Response(status=status, headers=headers, body=body)

    listener = Listener(handler, header_seconds=5, header_bytes_max=8_190, body_bytes_max=100, keep_alive_seconds=5)
    port = await listener.open("127.0.0.1", 0)
    try:
        yield port
    finally:
        await listener.close(timeout_seconds=0.1)


@pytest.mark.parametrize(
    ("status", "reason"),
    [(200, "OK"), (201, "Created"), (402, "Payment Required"), (429, "Too Many Requests"), (599, "")],
)
async def test_the_bytes_on_the_wire(status: int, reason: str) -> None:
    headers = {"Content-Type": "application/json", "x-request-id": "r", "x-caf\u00e9": "\u20ac"}
    async with serving(status, headers, b'{"a":1}') as port:
        connection = await RawConnection.to(port)
        await connection.send(request("GET", "/", "Connection: close"))
        got = await connection.ended()
        connection.close()
    date = re.search(rb"Date: ([^\r]+)\r\n", got)
    assert date is not None
    assert abs((datetime.now(UTC) - parsedate_to_datetime(date[1].decode())).total_seconds()) < 5
    lines = [f"HTTP/1.1 {status} {reason}", "Content-Type: application/json", "x-request-id: r", "x-caf\u00e9: \u20ac"]
    lines += ["Content-Length: 7", "Connection: close", "", '{"a":1}']
    assert got.replace(date[0], b"") == "\r\n".join(lines).encode()


async def test_a_connection_is_kept_unless_it_is_to_be_closed() -> None:
    made: list[str] = []
    async with serving(200, {}, b"hello", made) as port:
        connection = await RawConnection.to(port)
        await connection.send(request("GET", "/") * 3 + request("GET", "/", "Connection: close"))
        replies = [await connection.reply() for _ in range(4)]
        assert [reply.body for reply in replies] == [b"hello"] * 4
        assert [reply.headers.get("Connection") for reply in replies] == [None, None, None, "close"]
        assert await connection.ended() == b""
        connection.close()
    assert made == ["whole"] * 4


@pytest.mark.parametrize("size_bytes", [0, 65_536, 65_537, 3_000_000])
async def test_a_body_of_any_size_is_whole(size_bytes: int) -> None:
    body = bytes(range(256)) * (size_bytes // 256) + b"x" * (size_bytes % 256)
    async with serving(200, {}, body) as port:
        reply = await exchange(port, request("GET", "/"))
        assert (reply.headers["Content-Length"], reply.body == body) == (str(size_bytes), True)


@pytest.mark.parametrize(
    ("method", "version", "status"),
    [("HEAD", "HTTP/1.1", 200), ("GET", "HTTP/1.0", 200), ("GET", "HTTP/1.1", 204), ("GET", "HTTP/1.1", 304)],
)
async def test_what_is_not_plain_is_left_to_aiohttp(method: str, version: str, status: int) -> None:
    made: list[str] = []
    async with serving(status, {}, b"" if status != 200 else b"hello", made) as port:
        connection = await RawConnection.to(port)
        await connection.send(request(method, "/", "Connection: close", version=version))
        got = await connection.ended()
        connection.close()
    head, _, body = got.partition(b"\r\n\r\n")
    assert made == ["aiohttp"]
    assert head.startswith(f"HTTP/1.{version[-1]} {status}".encode())
    assert body == (b"hello" if method == "GET" and status == 200 else b"")


@pytest.mark.parametrize("value", ["a\nSet-Cookie: x", "a\r\n\r\nHTTP/1.1 200 OK"])
@pytest.mark.parametrize("place", ["name", "value"])
async def test_a_line_break_in_a_header_sends_nothing_of_it(place: str, value: str) -> None:
    headers = {value: "x"} if place == "name" else {"x-evil": value}
    async with serving(200, headers, b"hello") as port:
        reply = await exchange(port, request("GET", "/"))
    assert reply.status == 500
    assert b"hello" not in reply.body
    assert not {"Set-Cookie", "x-evil"} & set(reply.headers)


async def test_a_client_that_left_costs_nothing() -> None:
    """The reply is settled already: no error, and the server goes on."""
    waiting, go = asyncio.Event(), asyncio.Event()
    failed: list[BaseException] = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        waiting.set()
        await go.wait()
        try:
            return WholeReply(request, 200, CIMultiDict(), b"hello")
        except BaseException as error:
            failed.append(error)
            raise

    listener = Listener(handler, header_seconds=5, header_bytes_max=8_190, body_bytes_max=100, keep_alive_seconds=5)
    port = await listener.open("127.0.0.1", 0)
    connection = await RawConnection.to(port)
    await connection.send(request("GET", "/"))
    await waiting.wait()
    connection.close()
    await asyncio.sleep(0.02)
    go.set()
    assert (await exchange(port, request("GET", "/"))).body == b"hello"
    assert not failed
    await listener.close(timeout_seconds=0.1)
