"""What is asked about kept responses passes as it comes, in bounded memory, and fails as a call does."""

import asyncio
from collections.abc import Mapping

import orjson
import pytest
from aiohttp import web
from pydantic import SecretStr

from gateway.settings import UpstreamSettings
from tests.support.responses_shop import Shop, open_all_day, shop
from tests.support.shop import until
from tests.support.upstream import closed_port

__all__ = ["open_all_day", "shop"]

pytestmark = pytest.mark.asyncio(loop_scope="module")


def lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


async def answered(shop: Shop, reply: web.StreamResponse) -> tuple[int, dict[str, str], bytes]:
    """What a client gets where the upstream answers so."""
    response_id = (await shop.made())["id"]
    shop.upstream.by_id = reply
    try:
        async with shop.get(response_id) as response:
            return response.status, lower(response.headers), await response.read()
    finally:
        shop.upstream.by_id = None


async def test_an_error_is_the_upstreams_but_for_our_key(shop: Shop) -> None:
    text = b'{"error":{"message":"Bad key sk-upstream-secret"}}'
    status, headers, body = await answered(shop, web.Response(status=429, body=text, headers={"retry-after": "7"}))
    assert (status, headers["retry-after"]) == (429, "7")
    assert body == text.replace(b"sk-upstream-secret", b"***")


async def test_a_redirect_is_not_followed(shop: Shop) -> None:
    status, headers, body = await answered(shop, web.Response(status=307, headers={"location": "/v1/elsewhere"}))
    assert (status, orjson.loads(body)["error"]["code"]) == (502, "upstream_failed")
    assert "location" not in headers


async def test_headers_that_are_not_the_clients_stay_here(shop: Shop) -> None:
    reply = web.Response(body=b"{}", headers={"set-cookie": "a=b", "openai-organization": "org", "x-request-id": "up"})
    _, headers, _ = await answered(shop, reply)
    assert headers["x-farebox-upstream-request-id"] == "up"
    assert not {"set-cookie", "openai-organization", "x-farebox-hold"} & set(headers)
    sent = lower(shop.upstream.log[-1].headers)
    assert sent["x-request-id"]
    assert "fb-" not in str(sent)


async def test_an_upstream_that_is_not_there(shop: Shop) -> None:
    background = shop.app.gateway.kept.background
    response_id = (await shop.made(background=True))["id"]
    served = shop.app.catalogue.upstreams
    with closed_port() as port:
        away = UpstreamSettings(name="up0", base_url=f"http://127.0.0.1:{port}/v1", api_key=SecretStr("k"))
        shop.app.catalogue.upstreams = (away,)
        assert await shop.app.gateway.kept.passing.read(away, "GET", "/responses/x") is None
        async with shop.get(response_id) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (502, "upstream_unreachable")
        shop.app.catalogue.upstreams = ()
        async with shop.get(response_id) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (404, "response_not_found")
    shop.app.catalogue.upstreams = served
    assert background.upstream("up0") is not None
    shop.upstream.finish()
    async with shop.get(response_id) as response:
        assert response.status == 200


async def test_a_client_that_leaves_ends_the_replay(shop: Shop) -> None:
    async with shop.post(background=True, stream=True) as response:
        await response.read()
    response_id = next(reversed(shop.upstream.kept))
    shop.upstream.pause_seconds = 0.05
    async with shop.get(response_id, stream="true") as response:
        await response.content.readuntil(b"response.created")
        response.close()
    async with asyncio.timeout(5):
        await until(lambda: not len(shop.app.watch))
    shop.upstream.pause_seconds = 0.0
