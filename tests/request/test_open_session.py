"""How a session begins, or is refused: by a plain reply in OpenAI's envelope, with nothing held and nothing opened."""

from collections.abc import Mapping
from typing import Any

import aiohttp
import orjson
import pytest

from gateway.request.open_session import key_headers
from tests.support.gateway import make_wallet
from tests.support.realtime import (
    EXACT,
    REALTIME,
    TEXT_ONLY,
    FakeRealtime,
    fake,
    realtime_all_day,
    shop,
    talk,
)  # fmt: skip
from tests.support.refusals import UUID7
from tests.support.shop import Shop, settled

__all__ = ["fake", "realtime_all_day", "shop"]
pytestmark = pytest.mark.asyncio(loop_scope="module")

HANDSHAKE = {
    "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}  # fmt: skip


async def refused(shop: Shop, model: str = REALTIME, **headers: str) -> tuple[int, dict[str, Any], Mapping[str, str]]:
    """(status, error, headers) of a handshake that must fail."""
    sent = HANDSHAKE | {"Authorization": f"Bearer {shop.farebox.key}"} | headers
    async with shop.farebox.session.get(f"{shop.farebox.base_url}/realtime?model={model}", headers=sent) as response:
        error = orjson.loads(await response.read())["error"]
        assert UUID7.fullmatch(response.headers["x-request-id"])
        return response.status, error, response.headers


async def test_a_session_that_cannot_be_paid_or_priced(shop: Shop, fake: FakeRealtime) -> None:
    _, poor = await make_wallet(shop.farebox.app.database, "0.00001")
    _, narrow = await make_wallet(shop.farebox.app.database, "1", models=["other"])
    cases = [
        ({"Authorization": "Bearer fb-unknown"}, REALTIME, 401, "invalid_api_key"),
        ({"Authorization": f"Bearer {poor}"}, REALTIME, 402, "insufficient_funds"),
        ({"Authorization": f"Bearer {narrow}"}, REALTIME, 404, "model_not_found"),
        ({}, "no-such-model", 404, "model_not_found"),
        ({}, TEXT_ONLY, 404, "model_not_priced"),
        ({}, "", 400, "invalid_request"),
        ({}, "m" * 300, 400, "invalid_request"),
    ]
    for headers, model, status, code in cases:
        answer = await refused(shop, model, **headers)
        assert (answer[0], answer[1]["code"]) == (status, code)
    assert not fake.log
    assert await shop.farebox.open_holds() == 0
    assert await shop.farebox.usage() == []


async def test_a_gateway_that_takes_no_more(shop: Shop) -> None:
    gateway = shop.farebox.app.gateway
    gateway.stopping = True
    try:
        assert (await refused(shop))[1]["code"] == "stopping"
    finally:
        gateway.stopping = False
    most, gateway.calls_in_flight_max = gateway.calls_in_flight_max, 0
    try:
        assert (await refused(shop))[1]["code"] == "overloaded"
    finally:
        gateway.calls_in_flight_max = most


@pytest.mark.parametrize(("says", "status"), [(401, 401), (404, 404), (500, 404), (429, 404)])
async def test_an_upstream_that_refuses(shop: Shop, fake: FakeRealtime, says: int, status: int) -> None:
    """What another upstream may take is offered to the next one; here that is one of chat, which knows no such path."""
    fake.refuse_status = says
    answer = await refused(shop)
    assert (answer[0], answer[1]["code"]) == (status, "upstream_refused")
    await settled(shop.farebox)
    (event,) = await shop.farebox.usage()
    assert (event["resolution"], event["charged_nanos"]) == ("voided", 0)


async def test_who_is_asked_and_with_what(shop: Shop, fake: FakeRealtime) -> None:
    async with talk(shop, headers_more={"OpenAI-Beta": "realtime=v1", "x-farebox-receipt": "1"}) as mine:
        headers = mine.socket._response.headers
        await mine.respond()
    sent = fake.log[0].request.headers
    assert sent["Authorization"] == "Bearer sk-upstream-secret"
    assert shop.farebox.key not in str(sent)
    assert (sent["OpenAI-Beta"], sent["X-Request-Id"]) == ("realtime=v1", headers["x-farebox-hold"])
    assert "x-farebox-receipt" not in sent
    assert fake.log[0].request.query_string == f"model={REALTIME}"
    assert headers["x-farebox-billing-source"] == "balance"


async def test_the_key_of_a_browser(shop: Shop, fake: FakeRealtime) -> None:
    offered = ["realtime", f"openai-insecure-api-key.{shop.farebox.key}", "openai-beta.realtime-v1"]
    url = f"{shop.farebox.base_url}/realtime?model={REALTIME}"
    async with shop.farebox.session.ws_connect(url, protocols=offered) as socket:
        assert socket.protocol == "realtime"
        await socket.send_str('{"type":"response.create"}')
        await fake.log[0].until("response.create")
    await settled(shop.farebox)
    assert [event["charged_nanos"] for event in await shop.farebox.usage()] == [EXACT]
    sent = fake.log[0].request.headers["Sec-WebSocket-Protocol"]
    assert [name.strip() for name in sent.split(",")] == ["realtime", "openai-beta.realtime-v1"]


async def test_a_header_is_asked_before_a_subprotocol(shop: Shop) -> None:
    protocols = ["realtime", "openai-insecure-api-key.fb-two"]
    assert key_headers({}, protocols)["Authorization"] == "Bearer fb-two"
    assert key_headers({"api-key": "fb-one"}, protocols) == {"api-key": "fb-one"}
    assert key_headers({}, []) == {}


async def test_a_client_that_leaves_during_the_handshake_leaves_nothing_held(shop: Shop, fake: FakeRealtime) -> None:
    for _ in range(5):
        async with aiohttp.ClientSession() as session:
            url = f"{shop.farebox.base_url}/realtime?model={REALTIME}"
            headers = HANDSHAKE | {"Authorization": f"Bearer {shop.farebox.key}"}
            async with session.get(url, headers=headers) as response:
                assert response.status == 101
                response.close()
    await settled(shop.farebox)
    assert await shop.farebox.open_holds() == 0
    assert {event["charged_nanos"] for event in await shop.farebox.usage()} <= {0}
