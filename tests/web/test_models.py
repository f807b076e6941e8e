"""The list of models: what this key may use, and nothing that it may not."""

from typing import Any

import orjson
import pytest

from tests.support.gateway import FREE_MODEL, MODEL, make_wallet
from tests.support.rawhttp import exchange, request
from tests.support.refusals import UUID7, check_envelope
from tests.support.shop import Shop

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def get(shop: Shop, path: str, key: str | None = None) -> Any:
    reply = await exchange(shop.farebox.app.port, request("GET", f"/v1/models{path}", key=key or shop.farebox.key))
    assert UUID7.fullmatch(reply.headers["x-request-id"])
    return reply


async def test_the_list_is_openais(shop: Shop) -> None:
    listed = orjson.loads((await get(shop, "")).body)
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == [FREE_MODEL, MODEL]
    for model in listed["data"]:
        assert set(model) == {"id", "object", "created", "owned_by"}
        assert (model["object"], type(model["created"])) == ("model", int)
        # Stored when the test began: seconds, and not milliseconds.
        assert 1_700_000_000 < model["created"] < 10_000_000_000
        assert orjson.loads((await get(shop, f"/{model['id']}")).body) == model


@pytest.mark.parametrize(
    ("path", "status"), [(f"/{MODEL}", 200), ("/test%2Dmodel", 200), ("/nope", 404), ("/", 404), (f"/{MODEL}/", 404)]
)
async def test_one_model_by_its_name(shop: Shop, path: str, status: int) -> None:
    reply = await get(shop, path)
    if status == 404:
        check_envelope(reply, 404, "model_not_found", "model")
    else:
        assert (reply.status, orjson.loads(reply.body)["id"]) == (200, MODEL)


async def test_a_key_sees_only_what_it_may_use(shop: Shop) -> None:
    _, key = await make_wallet(shop.farebox.app.database, "0", models=[FREE_MODEL, "not-there"])
    listed = orjson.loads((await get(shop, "", key)).body)
    assert [model["id"] for model in listed["data"]] == [FREE_MODEL]
    check_envelope(await get(shop, f"/{MODEL}", key), 404, "model_not_found", "model")
    check_envelope(await get(shop, "", "fb-nobody"), 401, "invalid_api_key")
    check_envelope(await get(shop, f"/{MODEL}", "fb-nobody"), 401, "invalid_api_key")
