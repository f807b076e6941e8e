"""One POST over a pooled connection, against a server that says what it is told to, byte for byte."""

import asyncio

import aiohttp
import pytest
from yarl import URL

from gateway.request.upstream import Target, post
from tests.support.scripted import BODY, OK, scripted, whole
from tests.support.shop import until


async def test_head_and_body_are_what_was_given() -> None:
    async with scripted() as (script, connector, target):
        headers = [("X-One", "1"), ("x-one", "2"), ("X-Raw", "\udce9")]
        reply = await post(connector, target, headers, BODY)
        assert (reply.status, await whole(reply)) == (200, b"{}")
        port = target.head.rpartition(":")[2].strip()
        assert script.requests == [
            b"POST /v1/chat HTTP/1.1\r\nHost: 127.0.0.1:%s\r\nX-One: 1\r\nx-one: 2\r\nX-Raw: \xe9\r\n"
            b"Content-Length: 13\r\n\r\n%s" % (port.encode(), BODY)
        ]


async def test_a_large_body_arrives_whole() -> None:
    async with scripted() as (script, connector, target):
        body = b"x" * (2**19)
        assert await whole(await post(connector, target, [], body)) == b"{}"
        assert script.requests[0].endswith(body)


async def test_connections_are_kept_and_used_again() -> None:
    async with scripted() as (script, connector, target):
        for _ in range(3):
            assert await whole(await post(connector, target, [], BODY)) == b"{}"
        assert (script.connections, len(script.requests)) == (1, 3)


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\rb"])
async def test_a_line_break_in_a_header_sends_nothing(value: str) -> None:
    async with scripted() as (script, connector, target):
        with pytest.raises(aiohttp.ClientError):
            await post(connector, target, [("X", value)], BODY)
        assert script.connections == 0


async def test_what_a_connection_says_unasked_is_nobodys_reply() -> None:
    """A server that times an idle connection out may say so, and even keep it open."""
    async with scripted() as (script, connector, target):
        await whole(await post(connector, target, [], BODY))
        script.writers[0].write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        ((protocol, _),) = next(iter(connector._conns.values()))
        await until(lambda: protocol.should_close)
        reply = await post(connector, target, [], BODY)
        assert (reply.status, await whole(reply)) == (200, b"{}")
        assert script.connections == 2


async def test_interim_replies_are_passed_over() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    async with scripted(early + OK) as (_, connector, target):
        assert await whole(await post(connector, target, [], BODY)) == b"{}"


async def test_another_protocol_is_not_switched_to() -> None:
    switching = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"
    async with scripted(switching) as (_, connector, target):
        reply = await post(connector, target, [], BODY)
        assert reply.status == 101
        reply.close()
        assert not connector._acquired


@pytest.mark.parametrize(
    "broken",
    [b"", b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"HTTP/1.1 2"],
    ids=["nothing", "no HTTP", "bad length", "half a line"],
)
async def test_a_reply_without_a_head_fails_and_leaves_nothing(broken: bytes) -> None:
    async with scripted(broken) as (script, connector, target):
        asking = asyncio.ensure_future(post(connector, target, [], BODY))
        await until(lambda: bool(script.requests))
        script.writers[0].close()
        with pytest.raises((aiohttp.ClientError, OSError)):
            await asking
        assert not connector._acquired
        assert not connector._conns


async def test_a_reply_that_is_given_up_closes_its_connection() -> None:
    async with scripted(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab") as (_, connector, target):
        reply = await post(connector, target, [], BODY)
        reply.close()
        assert await reply.read() == b"ab"
        with pytest.raises(aiohttp.ClientConnectionError):
            await reply.read()
        assert not connector._acquired
        assert not connector._conns


async def test_a_cancelled_call_closes_its_connection() -> None:
    async with scripted(b"HTTP/1.1 ") as (script, connector, target):
        asking = asyncio.ensure_future(post(connector, target, [], BODY))
        await until(lambda: bool(script.requests))
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert not connector._acquired
        assert not connector._conns


async def test_a_body_that_is_still_on_its_way_is_not_followed_by_another_request() -> None:
    """An upstream may refuse before it has read everything."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await given_up.wait()
        writer.transport.abort()

    given_up = asyncio.Event()
    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with aiohttp.TCPConnector(limit=0) as connector:
        url = URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        reply = await post(connector, Target(url, authorization=None, connect_seconds=2.0), [], b"x" * 2**25)
        assert reply.status == 413
        reply.release()
        assert not connector._conns
        assert not connector._acquired
        given_up.set()
    server.close()
    await asyncio.sleep(0.01)


async def test_a_target_writes_its_host_as_urls_do() -> None:
    for url, expected in (
        (
            "https://api.example.com/v1/x?api-version=1",
            "POST /v1/x?api-version=1 HTTP/1.1\r\nHost: api.example.com\r\n",
        ),
        ("http://[::1]:8080/v1", "POST /v1 HTTP/1.1\r\nHost: [::1]:8080\r\n"),
    ):
        assert Target(URL(url), authorization=None, connect_seconds=1.0).head == expected
