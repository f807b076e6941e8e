"""The caller's side of a call: a body is read within its limits, and a reply ends as the flow says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from multidict import CIMultiDict

from gateway.core.usage_json import LargeReply
from gateway.errors import BodyTooLarge, Failure, MalformedRequest, RequestTimedOut, UnsupportedMediaType
from gateway.request.handle import Finish
from gateway.web import metered
from gateway.web.metered import Exchange
from gateway.web.server import Listener
from tests.support.behaviours import Completion
from tests.support.rawhttp import RawConnection, Reply, exchange, request
from tests.support.refusals import BODY, check_envelope
from tests.support.refusals import post as post_to
from tests.support.shop import Shop, until

BODY_BYTES_MAX = 1_000
Flow = Callable[[Exchange], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(flow: Flow, *, body_seconds: float = 5.0) -> AsyncIterator[int]:
    """A port whose requests are handled by `flow`; a Failure is answered with its status."""

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await flow(Exchange(request, body_bytes_max=BODY_BYTES_MAX, body_seconds=body_seconds))
        except Failure as failure:
            return web.Response(status=failure.status, text=type(failure).__name__)

    listener = Listener(
        handler, header_seconds=5, header_bytes_max=8_190, body_bytes_max=BODY_BYTES_MAX, keep_alive_seconds=5
    )
    port = await listener.open("127.0.0.1", 0)
    try:
        yield port
    finally:
        await listener.close(timeout_seconds=0.1)


async def echo(made: Exchange) -> web.StreamResponse:
    body = await made.read_body()
    assert isinstance(body, bytes)
    return await made.finish(Finish(200, CIMultiDict(), body, started=False))


def post(body: bytes, *headers: str) -> bytes:
    return request("POST", "/", *headers, body=body)


LONG = b"x" * (BODY_BYTES_MAX + 1)
CHUNKED = "Transfer-Encoding: chunked"


@pytest.mark.parametrize(
    ("data", "failure"),
    [
        (post(LONG[1:]), None),
        (post(b""), None),
        (post(b"{}", "Content-Type: Application/JSON ; charset=utf-8"), None),
        (post(b"{}", "Content-Encoding: Identity"), None),
        (post(b"{}", "Content-Type: text/plain"), UnsupportedMediaType),
        (post(b"{}", "Content-Type: application/jsonp"), UnsupportedMediaType),
        (post(b"{}", "Content-Encoding: gzip"), UnsupportedMediaType),
        (request("POST", "/", "Content-Length: 0"), UnsupportedMediaType),
        (post(LONG), BodyTooLarge),
        (post(b"3e9\r\n" + LONG + b"\r\n0\r\n\r\n", CHUNKED), BodyTooLarge),
        (post(b"1f4\r\n" + LONG[:500] + b"\r\n1f5\r\n" + LONG[:501] + b"\r\n0\r\n\r\n", CHUNKED), BodyTooLarge),
        (post(b"2\r\n{}\r\n", CHUNKED), RequestTimedOut),
        (post(b"{", "Content-Length: 2"), RequestTimedOut),
    ],
)
async def test_a_body_within_its_limits(data: bytes, failure: type[Failure] | None) -> None:
    async with serving(echo, body_seconds=0.05) as port:
        reply: Reply = await exchange(port, data)
    if failure is None:
        assert (reply.status, reply.body) == (200, data.partition(b"\r\n\r\n")[2])
    else:
        assert (reply.status, reply.body.decode()) == (failure.status, failure.__name__)


async def test_a_body_that_breaks_off_is_malformed() -> None:
    seen: list[type[BaseException]] = []

    async def flow(made: Exchange) -> web.StreamResponse:
        try:
            return await echo(made)
        except BaseException as error:
            seen.append(type(error))
            raise

    async with serving(flow) as port:
        connection = await RawConnection.to(port)
        await connection.send(post(b"{", "Content-Length: 2"))
        await asyncio.sleep(0.02)
        connection.close()
        async with asyncio.timeout(2):
            while not seen:
                await asyncio.sleep(0.005)
    assert seen == [MalformedRequest]


@pytest.mark.parametrize("is_broken", [False, True])
async def test_a_stream_ends_well_or_not_at_all(is_broken: bool) -> None:
    async def flow(made: Exchange) -> web.StreamResponse:
        await made.start(200, CIMultiDict({"Content-Type": "text/event-stream"}))
        await made.write(b"one ")
        return await made.finish(Finish(200, CIMultiDict(), b"two", started=True, is_broken=is_broken))

    async with serving(flow) as port:
        connection = await RawConnection.to(port)
        await connection.send(request("GET", "/", "Connection: close"))
        got = await connection.ended()
        connection.close()
    assert got.endswith(b"0\r\n\r\n") != is_broken
    assert (b"two" in got) != is_broken


async def test_a_client_that_left_before_the_head_is_finished_with() -> None:
    """Its stream was never begun here, and the flow ends it all the same."""
    statuses: list[int] = []
    arrived = asyncio.Event()

    async def flow(made: Exchange) -> web.StreamResponse:
        assert not made.gone()
        arrived.set()
        async with asyncio.timeout(2):
            while not made.gone():
                await asyncio.sleep(0.005)
        made.abort()
        response = await made.finish(Finish(200, CIMultiDict(), b"late", started=True))
        statuses.append(response.status)
        return response

    async with serving(flow) as port:
        connection = await RawConnection.to(port)
        await connection.send(request("GET", "/"))
        await arrived.wait()
        connection.close()
        async with asyncio.timeout(2):
            while not statuses:
                await asyncio.sleep(0.005)
    assert statuses == [200]


@pytest.mark.asyncio(loop_scope="module")
async def test_bodies_on_their_way_are_bounded_over_all_callers(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metered, "_GATHERED_BYTES_MAX", 0)  # the bound is then twice the largest body
    largest = shop.farebox.app.settings.body_bytes_max
    half = post_to(shop, b"x" * (largest - 1_000), f"Content-Length: {largest}")
    stalled = [await RawConnection.to(shop.farebox.app.port) for _ in range(2)]
    for connection in stalled:
        await connection.send(half)
    await until(lambda: metered._gathered_bytes == 2 * (largest - 1_000))
    third = await RawConnection.to(shop.farebox.app.port)
    third.writer.write(half)
    check_envelope(await third.reply(), 503, "overloaded")
    for connection in (*stalled, third):
        connection.close()
    await until(lambda: metered._gathered_bytes == 0)
    await shop.untouched()


@pytest.mark.asyncio(loop_scope="module")
async def test_after_a_crash_in_mid_reply_the_connection_is_dropped(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second head would be read as a part of the reply."""

    def crash(_: LargeReply) -> bytes:
        raise ZeroDivisionError

    monkeypatch.setattr(LargeReply, "finish", crash)
    shop.upstream.next(Completion(body_bytes_min=2**21))
    connection = await RawConnection.to(shop.farebox.app.port)
    await connection.send(post_to(shop, BODY))
    got = await connection.ended()
    connection.close()
    assert got.count(b"HTTP/1.1") <= 1
    assert not got.endswith(b"0\r\n\r\n")
    assert (await shop.event())["reason"] == "gateway_failed"
