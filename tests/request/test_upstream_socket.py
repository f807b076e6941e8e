"""The wire of a session: how it is opened and not opened, and how either side ends it."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from multidict import CIMultiDict

from gateway.errors import UpstreamTimedOut, UpstreamUnreachable
from gateway.request.admit import Route
from gateway.request.upstream_socket import ABNORMAL, Dialler, Socket
from gateway.settings import UpstreamSettings
from tests.support.realtime import FakeRealtime


@pytest.fixture
async def far() -> AsyncIterator[FakeRealtime]:
    async with FakeRealtime() as fake:
        yield fake


@pytest.fixture
async def dialler() -> AsyncIterator[Dialler]:
    connector = aiohttp.TCPConnector()
    yield Dialler(connector, frame_bytes_max=4_096)
    await connector.close()


async def dial(dialler: Dialler, base_url: str, seconds: float = 5.0, **settings: Any) -> Socket:
    upstream = UpstreamSettings(name="up", base_url=base_url, first_byte_seconds=seconds, **settings)
    headers = CIMultiDict({"Authorization": "Bearer x"})
    return await dialler.dial(Route(upstream, "a b&c"), "/realtime", list(headers.items()), ["realtime"])


async def test_frames_go_both_ways(far: FakeRealtime, dialler: Dialler) -> None:
    ours = await dial(dialler, far.base_url)
    live = await far.live()
    assert live.request.query_string == "model=a b%26c"
    assert live.request.headers["Authorization"] == "Bearer x"
    assert b"session.created" in (await ours.receive()).data
    await ours.send(b'{"type":"x"}')
    assert (await live.until("x")) == {"type": "x"}
    await live.socket.send_bytes(b"\x00")
    assert await ours.receive() == (b"\x00", False, None, "")
    await ours.close(1000)
    await live.finished()
    assert live.close_code == 1000


@pytest.mark.parametrize(("code", "seen"), [(1005, 1011), (1006, 1011), (99, 1011), (1012, 1012), (4999, 4999)])
async def test_only_codes_that_may_be_sent_are_sent(far: FakeRealtime, dialler: Dialler, code: int, seen: int) -> None:
    ours = await dial(dialler, far.base_url)
    await ours.close(code, "because " * 40)
    live = await far.live()
    await live.finished()
    assert live.close_code == seen


async def test_how_the_other_side_ends(far: FakeRealtime, dialler: Dialler) -> None:
    for number, ending in enumerate(("closed", "closed without a code", "gone", "too large")):
        ours = await dial(dialler, far.base_url)
        live = await far.live(number + 1)
        await ours.receive()
        transport = live.request.transport
        assert transport is not None
        if ending == "closed":
            closing = asyncio.gather(live.socket.close(code=4001, message=b"why"))
            assert (await ours.receive())[2:] == (4001, "why")
            ours.abort()
            await closing
        elif ending == "closed without a code":
            transport.write(b"\x88\x00")
            assert (await ours.receive()).close_code == 1005
        elif ending == "gone":
            transport.abort()
            assert (await ours.receive()).close_code == ABNORMAL
        else:
            await live.socket.send_str("x" * 5_000)
            assert (await ours.receive()).close_code == ABNORMAL
        await ours.close(1000)


@pytest.mark.parametrize(("status", "told"), [(401, 401), (429, 429), (500, 502), (200, 502)])
async def test_an_upstream_that_refuses(far: FakeRealtime, dialler: Dialler, status: int, told: int) -> None:
    far.refuse_status = status
    with pytest.raises(UpstreamUnreachable) as refused:
        await dial(dialler, far.base_url)
    assert (refused.value.status, refused.value.code) == (told, "upstream_refused")


async def test_an_upstream_that_is_not_there_or_says_nothing(dialler: Dialler) -> None:
    with pytest.raises(UpstreamUnreachable):
        await dial(dialler, "http://127.0.0.1:1/v1")
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(UpstreamTimedOut):
        await dial(dialler, f"http://127.0.0.1:{silent.getsockname()[1]}/v1", 0.1)


async def test_azure_names_its_deployment(far: FakeRealtime, dialler: Dialler) -> None:
    ours = await dial(dialler, far.base_url, kind="azure", api_version="2025-04-01-preview")
    request = (await far.live()).request
    assert request.path == "/v1/openai/realtime"
    assert dict(request.query) == {"api-version": "2025-04-01-preview", "deployment": "a b&c"}
    await ours.close(1000)
