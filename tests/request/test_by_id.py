"""A kept response belongs to the wallet that made it: it may name it, for nothing, and nobody else can."""

from typing import Any

import orjson
import pytest

from gateway.clock import new_id
from gateway.db import keys
from gateway.db import responses as store
from tests.support.gateway import farebox, make_wallet
from tests.support.postgres import ScratchPostgres
from tests.support.responses_shop import BODY, EXACT, Shop, both_forms, open_all_day, shop
from tests.support.responses_upstream import FakeResponses, Honest
from tests.support.shop import CREDIT_NANOS, settled

__all__ = ["open_all_day", "shop"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

# method, below the id, what the reply has in it
CALLS = [
    ("GET", "", "output"),
    ("GET", "/input_items", "data"),
    ("POST", "/cancel", "status"),
    ("DELETE", "", "deleted"),
]


async def made_by(shop: Shop, form: str) -> str:
    if form == "json":
        return str((await shop.made())["id"])
    async with shop.post(stream=True) as response:
        body = await response.read()
    return str(orjson.loads(body.split(b"data: ")[1].split(b"\n")[0])["response"]["id"])


@both_forms
async def test_its_wallet_may_name_it_for_nothing(shop: Shop, form: str) -> None:
    response_id = await made_by(shop, form)
    for method, below, member in CALLS:
        async with shop.ask(method, response_id + below) as response:
            assert response.status == 200
            assert member in await response.json()
            assert "x-farebox-cost" not in response.headers
        asked = shop.upstream.log[-1]
        assert (asked.method, asked.path) == (method, f"/v1/responses/{response_id}{below}")
        assert asked.headers["Authorization"] == "Bearer sk-upstream-secret"
    await shop.resolved(EXACT, "reported", None)


@both_forms
@pytest.mark.parametrize(("method", "below"), [call[:2] for call in CALLS])
async def test_another_wallet_cannot(shop: Shop, form: str, method: str, below: str) -> None:
    response_id = await made_by(shop, form)
    _, stranger = await make_wallet(shop.app.database, "100")
    for key, name in ((stranger, response_id), (shop.key, "resp_unknown")):
        async with shop.ask(method, name + below, key) as response:
            error = (await response.json())["error"]
            assert (response.status, error["code"]) == (404, "response_not_found")
            assert error["message"] == f"Response with id '{name}' not found."
    assert len(shop.upstream.log) == 1, "nothing was sent"


async def test_another_key_of_the_wallet_may(shop: Shop) -> None:
    """Keys come and go; what a wallet made stays its own."""
    response_id = (await shop.made())["id"]
    other = keys.make_key()
    await keys.create(shop.app.database, other, new_id(), shop.wallet_id, name="other")
    async with shop.get(response_id, other) as response:
        assert response.status == 200


async def test_a_query_goes_along_and_a_replay_is_free(shop: Shop) -> None:
    response_id = (await shop.made())["id"]
    async with shop.get(response_id, stream="true", starting_after="2") as response:
        body = await response.read()
        assert response.headers["Content-Type"].startswith("text/event-stream")
    assert body.count(b"response.completed") == 2
    assert shop.upstream.log[-1].path.endswith("?stream=true&starting_after=2")
    await shop.resolved(EXACT, "reported", None)


@pytest.mark.parametrize(
    ("members", "status", "code"),
    [
        ({"previous_response_id": "resp_unknown"}, 404, "previous_response_not_found"),
        ({"conversation": "conv_1"}, 404, "response_not_found"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, 404, "response_not_found"),
    ],
)
async def test_nothing_is_sent_that_names_what_is_not_ones_own(
    shop: Shop, members: dict[str, Any], status: int, code: str
) -> None:
    for path in ("", "/compact", "/input_tokens"):
        async with shop.post(path, **members) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (status, code)
    assert not shop.upstream.log
    await settled(shop.running)
    assert await shop.running.usage(shop.wallet_id) == []


async def test_the_response_before_is_ones_own(shop: Shop) -> None:
    first = (await shop.made())["id"]
    _, stranger = await make_wallet(shop.app.database, "100")
    body = orjson.dumps({**BODY, "previous_response_id": first})
    url = f"{shop.running.base_url}/responses"
    async with shop.running.session.post(url, data=body, headers=shop.running.headers(stranger)) as response:
        assert response.status == 404
    await shop.made(previous_response_id=first)
    assert [asked.body.get("previous_response_id") for asked in shop.upstream.asked("POST")] == [None, first]
    await settled(shop.running)
    wallet = await shop.running.wallet(shop.wallet_id)
    assert wallet["balance_nanos"] == CREDIT_NANOS - 2 * EXACT


async def test_what_is_not_stored_is_nobodys(shop: Shop) -> None:
    response_id = (await shop.made(store=False))["id"]
    async with shop.get(response_id) as response:
        assert response.status == 404


async def test_input_tokens_are_counted_for_nothing(shop: Shop) -> None:
    # No bound is needed for what is only counted.
    async with shop.post("/input_tokens", tools=[{"type": "web_search"}]) as response:
        assert await response.json() == {"object": "response.input_tokens", "input_tokens": 11}
    async with shop.post("/input_tokens", model="unknown") as response:
        assert response.status == 404
    assert await shop.running.usage(shop.wallet_id) == []
    assert shop.upstream.log[0].body == {**BODY, "tools": [{"type": "web_search"}]}


async def test_a_large_reply_has_an_owner_too(shop: Shop) -> None:
    for stream in (False, True):
        shop.upstream.next(Honest(large_bytes=5 * 2**20))
        async with shop.post(stream=stream) as response:
            body = await response.read()
        assert len(body) > 5 * 2**20
        response_id = next(reversed(shop.upstream.kept))
        async with shop.get(response_id) as response:
            assert len(await response.read()) > 5 * 2**20


async def test_a_response_is_looked_for_where_it_was_made(scratch: ScratchPostgres) -> None:
    """Two upstreams: what the second made is asked of the second, and so is what goes on from it."""
    dsn = await scratch.clone("two_upstreams")
    async with (
        FakeResponses() as first,
        FakeResponses() as second,
        farebox(dsn, [first.base_url, second.base_url]) as running,
    ):
        shop = Shop(running, first, running.wallet_id, running.key)
        old = (await shop.made())["id"]
        await first._runner.cleanup()
        new = (await shop.made())["id"]
        async with shop.get(new) as response:
            assert response.status == 200
        async with shop.get(old) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (502, "upstream_unreachable")
        await shop.made(previous_response_id=new)
        async with shop.post(previous_response_id=old) as response:
            assert response.status == 502
        assert [len(upstream.log) for upstream in (first, second)] == [1, 3]
    await scratch.drop("two_upstreams")


async def test_a_response_is_forgotten_when_its_time_is_over(shop: Shop) -> None:
    response_id = (await shop.made())["id"]
    async with shop.app.database.connection() as connection:
        await connection.execute(
            "UPDATE response_owners SET created_at = now() - interval '31 days' WHERE wallet_id = $1", shop.wallet_id
        )
    async with shop.get(response_id) as response:
        assert response.status == 404
    assert await store.forget(shop.app.database, 100) == 1
