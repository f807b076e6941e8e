"""Listening sockets: what is not HTTP, what comes too slowly, and every way in which a good request may come."""

import asyncio

import pytest
from aiohttp import web

from gateway.web.server import Listener
from tests.support.rawhttp import RawConnection, exchange, request
from tests.support.refusals import BODY, PATH, STRICT_BODY_BYTES_MAX, check_envelope, check_refused, post
from tests.support.shop import EXACT, Shop

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    "headers",
    [
        ["Transfer-Encoding: chunked", "Content-Length: 78"],
        ["Transfer-Encoding: chunked, identity"],
        ["Content-Length: 78", "Content-Length: 5"],
        ["Content-Length: -78"],
        ["Content-Length: 99999999999999999999999"],
        ["Content-Length: 78 ", "Bad Header: x"],
        ["X-Nul: \x00"],
        ["X-Huge: " + "x" * 70_000],
        [f"X-{number}: x" for number in range(1_000)],
    ],
    ids=lambda headers: headers[0][:40],
)
async def test_a_head_that_is_no_http(shop: Shop, headers: list[str]) -> None:
    reply = await check_refused(shop, post(shop, BODY, *headers), 400, "invalid_http")
    assert shop.farebox.key.encode() not in reply.body


async def test_bytes_that_are_no_http(shop: Shop) -> None:
    for data in (b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"):
        await check_refused(shop, data, 400, "invalid_http")
    await check_refused(shop, request("GET", "/v1/models?" + "x" * 70_000), 400, "invalid_http")
    await check_refused(shop, post(shop, b"zz\r\n", "Transfer-Encoding: chunked"), 400, "invalid_http")


async def test_any_way_of_sending_a_body(shop: Shop) -> None:
    """Chunked, over HTTP/1.0, in two writes, after a 100, pipelined: each is served and charged."""
    chunked = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\nX-Trailer: x\r\n\r\n"
    port = shop.farebox.app.port
    assert (await exchange(port, post(shop, chunked, "Transfer-Encoding: chunked"))).status == 200
    old = request("POST", PATH, body=BODY, key=shop.farebox.key, version="HTTP/1.0")
    assert (await exchange(port, old)).status == 200
    connection = await RawConnection.to(port)
    head = post(shop, BODY, "Expect: 100-continue")[: -len(BODY)]
    await connection.send(head)
    assert (await connection.reply()).status == 100
    await connection.send(BODY[:5])
    await asyncio.sleep(0.02)
    await connection.send(BODY[5:] + post(shop, BODY) + post(shop, BODY, "Connection: close"))
    assert [(await connection.reply()).status for _ in range(3)] == [200, 200, 200]
    assert await connection.ended() == b""
    connection.close()
    assert [event["charged_nanos"] for event in await shop.farebox.usage()] == [EXACT] * 5


async def test_no_100_for_what_is_refused(strict: Shop) -> None:
    for data in (
        post(strict, b"", "Expect: 100-continue", f"Content-Length: {STRICT_BODY_BYTES_MAX + 1}"),
        request("POST", PATH, "Expect: 100-continue", "Content-Length: 78", body=b"", key="fb-unknown"),
    ):
        assert (await exchange(strict.farebox.app.port, data)).status in (413, 401)


async def test_a_head_that_never_ends(strict: Shop) -> None:
    """Nothing at all, half of a head, or a byte now and then: the connection is dropped in time."""
    for drip in (b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"):
        connection = await RawConnection.to(strict.farebox.app.port)
        await connection.send(drip)
        if drip:
            for _ in range(4):
                await asyncio.sleep(0.05)
                await connection.send(b"X: x\r\n")
        assert await connection.ended() == b""
        connection.close()
    await strict.untouched()


async def test_a_second_head_that_never_ends(strict: Shop) -> None:
    connection = await RawConnection.to(strict.farebox.app.port)
    await connection.send(request("GET", "/v1/models", key=strict.farebox.key))
    assert (await connection.reply()).status == 200
    await connection.send(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert await connection.ended() == b""
    connection.close()
    await strict.untouched()


@pytest.mark.parametrize("headers", [["Content-Length: 78"], ["Transfer-Encoding: chunked"]])
async def test_a_body_that_never_ends(strict: Shop, headers: list[str]) -> None:
    connection = await RawConnection.to(strict.farebox.app.port)
    await connection.send(post(strict, b"", *headers))
    if "chunked" not in headers[0]:
        await connection.send(BODY[:5])
    reply = await connection.reply()
    check_envelope(reply, 408, "request_timed_out")
    assert reply.headers["x-should-retry"] == "false"
    connection.close()
    await strict.untouched()


async def test_a_body_that_is_cut_off(shop: Shop) -> None:
    connection = await RawConnection.to(shop.farebox.app.port)
    await connection.send(post(shop, BODY)[:-5])
    connection.close()
    await asyncio.sleep(0.05)
    await shop.untouched()
    assert shop.count("farebox_crashes_total") == 0


async def test_connections_leave_nothing_behind() -> None:
    """Neither those that asked something, early or late, nor those that never did, nor those that went on too long."""

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="hello")

    listener = Listener(handler, header_seconds=0.1, header_bytes_max=8_190, body_bytes_max=100, keep_alive_seconds=0.3)
    port = await listener.open("127.0.0.1", 0)
    connections = [await RawConnection.to(port) for _ in range(4)]
    for pause_seconds in (0, 0.15):
        await asyncio.sleep(pause_seconds)
        for connection in connections[: 2 if pause_seconds else 4]:
            await connection.send(request("GET", "/"))
            assert (await connection.reply()).body == b"hello"
    silent = await RawConnection.to(port)
    gone = await RawConnection.to(port)
    gone.close()
    connections[0].close()
    for connection in (*connections[1:], silent):
        assert await connection.ended() == b""
        connection.close()
    await asyncio.sleep(0.15)
    assert not listener._silent
    assert not listener._server.connections
    await listener.close(timeout_seconds=0.1)
