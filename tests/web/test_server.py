"""Listening sockets: what is not HTTP, what comes too slowly, and every way in which a good request may come."""

import asyncio
import os
import socket
import time

import pytest
from aiohttp import web

from gateway.web import server
from gateway.web.server import Listener, bind
from tests.support.rawhttp import RawConnection, exchange, request
from tests.support.refusals import BODY, PATH, STRICT_BODY_BYTES_MAX, check_envelope, check_refused, post
from tests.support.shop import EXACT, Shop, until

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


async def said_hello(_: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text="hello")


def plain_listener() -> Listener:
    return Listener(said_hello, header_seconds=5, header_bytes_max=8_190, body_bytes_max=100, keep_alive_seconds=5)


async def test_a_listener_that_retires_drops_no_connection() -> None:
    """Those that are open have one more reply, which says that it is the last; others share the door and keep it."""
    sockets = bind("127.0.0.1", 0)
    port = int(sockets[0].getsockname()[1])
    first, second = plain_listener(), plain_listener()
    first.open_on([socket.socket(fileno=os.dup(sockets[0].fileno()))])
    connections = [await RawConnection.to(port) for _ in range(3)]
    for connection in connections[:2]:
        await connection.send(request("GET", "/"))
        assert (await connection.reply()).headers.get("connection") != "close"
    await until(lambda: first.connections == 3)
    first.retire()
    waiting = await RawConnection.to(port)
    await waiting.send(request("GET", "/"))
    for connection in connections:
        await connection.send(request("GET", "/"))
        reply = await connection.reply()
        assert (reply.body, reply.headers["connection"]) == (b"hello", "close")
        assert await connection.ended() == b""
        connection.close()
    await until(lambda: first.connections == 0)
    # Nobody had taken it; it waited in the queue that all share.
    second.open_on(sockets)
    assert (await waiting.reply()).body == b"hello"
    waiting.close()
    for listener in (first, second):
        await listener.close(timeout_seconds=0.5)


async def test_a_burst_is_shared_out() -> None:
    """Whoever takes one connection leaves the next to the others."""
    sockets = bind("127.0.0.1", 0)
    port = int(sockets[0].getsockname()[1])
    listeners = [plain_listener() for _ in range(3)]
    for listener in listeners:
        listener.open_on([socket.socket(fileno=os.dup(sockets[0].fileno()))])
    connections = await asyncio.gather(*(RawConnection.to(port) for _ in range(60)))
    await until(lambda: sum(listener.connections for listener in listeners) == 60)
    assert min(listener.connections for listener in listeners) >= 10
    for connection in connections:
        connection.close()
    for listener in listeners:
        await listener.close(timeout_seconds=0.5)
    sockets[0].close()


async def test_a_door_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as for want of descriptors: without a pause it would be tried all the time."""
    monkeypatch.setattr(server, "FAILED_ACCEPT_SECONDS", 0.05)
    (listening,) = bind("127.0.0.1", 0)
    tried = 0

    class Failing(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            nonlocal tried
            tried += 1
            if tried <= 3:
                raise OSError(24, "Too many open files")
            return super().accept()

    listener = plain_listener()
    listener.open_on([Failing(fileno=listening.detach())])
    connection = await RawConnection.to(listener._shared[0].getsockname()[1])
    await connection.send(request("GET", "/"))
    began = time.monotonic()
    assert (await connection.reply()).body == b"hello"
    assert time.monotonic() - began > 0.1
    connection.close()
    await listener.close(timeout_seconds=0.5)
    assert tried == 4


async def test_every_address_of_a_host_has_the_same_port() -> None:
    sockets = bind("", 0)
    assert len({listening.getsockname()[1] for listening in sockets}) == 1
    with pytest.raises(OSError, match="in use"):
        bind("127.0.0.1", sockets[0].getsockname()[1])
    for listening in sockets:
        listening.close()
