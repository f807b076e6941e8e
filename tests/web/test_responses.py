"""The paths of kept responses: these and no others, and nothing in an id or a query leads anywhere else."""

import orjson
import pytest

from tests.support.rawhttp import exchange, request
from tests.support.responses_shop import Shop, open_all_day, shop

__all__ = ["open_all_day", "shop"]

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/responses", 405, "method_not_allowed"),
        ("GET", "/v1/responses/", 404, "unknown_path"),
        ("POST", "/v1/responses/resp_1", 405, "method_not_allowed"),
        ("PUT", "/v1/responses/resp_1", 405, "method_not_allowed"),
        ("GET", "/v1/responses/resp_1/cancel", 405, "method_not_allowed"),
        ("POST", "/v1/responses/resp_1/input_items", 405, "method_not_allowed"),
        ("GET", "/v1/responses/input_tokens", 405, "method_not_allowed"),
        ("GET", "/v1/responses/compact", 405, "method_not_allowed"),
        ("GET", "/v1/responses/resp_1/", 404, "response_not_found"),
        ("GET", "/v1/responses/resp_1/other", 404, "unknown_path"),
        ("GET", "/v1/responses/resp_1/cancel/x", 404, "unknown_path"),
        ("GET", "/v1/responses/..", 404, "response_not_found"),
        ("GET", "/v1/responses/%2e%2e%2fmodels", 404, "response_not_found"),
        ("GET", "/v1/responses/resp_1%00", 404, "unknown_path"),
        ("GET", "/v1/responses/resp_1%20", 404, "unknown_path"),
        ("GET", "/v1/responses/" + "x" * 257, 404, "unknown_path"),
        ("GET", "/v1/responses/%F0%9F%98%80", 404, "unknown_path"),
        ("GET", "/v1/responses/resp_1?include[]=x", 404, "response_not_found"),
        ("DELETE", "/v1/responses/resp_1", 404, "response_not_found"),
    ],
)
async def test_a_path_is_ours_letter_for_letter(shop: Shop, method: str, path: str, status: int, code: str) -> None:
    reply = await exchange(shop.app.port, request(method, path, key=shop.key))
    assert (reply.status, orjson.loads(reply.body)["error"]["code"]) == (status, code)
    assert not shop.upstream.log


async def test_a_key_is_needed(shop: Shop) -> None:
    for method, below in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
        reply = await exchange(shop.app.port, request(method, f"/v1/responses/resp_1{below}"))
        assert (reply.status, orjson.loads(reply.body)["error"]["code"]) == (401, "invalid_api_key")


async def test_a_query_goes_upstream_as_it_is(shop: Shop) -> None:
    made = (await shop.made())["id"]
    for query in ("include[]=a&include[]=b", "after=%C3%A9", "x"):
        reply = await exchange(shop.app.port, request("GET", f"/v1/responses/{made}?{query}", key=shop.key))
        assert reply.status == 200
        assert shop.upstream.log[-1].path.partition("?")[2].replace("%5B%5D", "[]") == query
