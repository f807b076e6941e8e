"""The table of paths is default-deny: what is not in it, letter for letter, goes nowhere."""

import orjson
import pytest

from gateway.web.routes import FORMS_ONLY, METERED
from tests.support.forms import CONTENT_TYPE, form_bytes
from tests.support.gateway import MODEL
from tests.support.rawhttp import exchange, request
from tests.support.refusals import BODY, PATH, check_envelope, check_refused
from tests.support.shop import Shop

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
async def test_a_wrong_method(shop: Shop, method: str) -> None:
    reply = await exchange(shop.farebox.app.port, request(method, PATH, body=BODY, key=shop.farebox.key))
    assert (reply.status, reply.headers["Allow"]) == (405, "POST")
    if method != "HEAD":
        check_envelope(reply, 405, "method_not_allowed")
    for path in ("/v1/models", f"/v1/models/{MODEL}"):
        if method not in ("GET", "HEAD"):
            await check_refused(shop, request(method, path, key=shop.farebox.key), 405, "method_not_allowed")
    await shop.untouched()


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/",
        "//",
        "/v1/chat",
        "/v1/embeddings/",
        "/v1/completions/x",
        "/v1/chat/completions/",
        "/v1/chat/completions/..",
        "/v1/chat/completions/../../models",
        "/v1/../v1/chat/completions",
        "/v1/%2e%2e/v1/chat/completions",
        "/v1/%2e%2e/",
        "/v1/./chat/completions",
        "//v1/chat/completions",
        "//v1",
        "/v1//chat/completions",
        "/v1/chat%2Fcompletions",
        "/v1/chat%2fcompletions",
        "/v1/%63hat/completions",
        "/v1/chat/completions%00",
        "/v1/chat/completions%20",
        "/v1/chat/completions;x=1",
        "/V1/chat/completions",
        "/v1\\chat\\completions",
        "/api/v1/chat/completions",
        "/v1/models/",
        "/v1/models/..",
        "/v1/models/%2e%2e/chat/completions",
        "http://127.0.0.1/v1/chat/completions",
        "*",
    ],
)
async def test_an_unknown_path(shop: Shop, path: str) -> None:
    for method in ("POST", "GET"):
        reply = await exchange(shop.farebox.app.port, request(method, path, body=BODY, key=shop.farebox.key))
        code = orjson.loads(reply.body)["error"]["code"]
        allowed = {(404, "unknown_path"), (400, "invalid_http")}
        if path.startswith("/v1/models/"):
            allowed |= {(404, "model_not_found"), (405, "method_not_allowed")}
        assert (reply.status, code) in allowed
    await shop.untouched()


@pytest.mark.parametrize(
    "path",
    ["/v1/files", "/v1/batches/b_1", "/v1/realtime/client_secrets", "/v1/realtime/calls", "/v1/vector_stores/v/search",
     "/v1/chat/completions/chatcmpl-1", "/v1/organization/costs?limit=1"],
)  # fmt: skip
async def test_a_known_path_without_a_meter_is_refused_by_name(shop: Shop, path: str) -> None:
    for method in ("POST", "GET", "DELETE"):
        reply = await exchange(shop.farebox.app.port, request(method, path, body=BODY, key=shop.farebox.key))
        check_envelope(reply, 403, "not_metered")
        message = orjson.loads(reply.body)["error"]["message"]
        assert message.startswith(path.partition("?")[0] + " is not served: ")
    await shop.untouched()


async def test_an_unknown_path_is_named(shop: Shop) -> None:
    reply = await exchange(shop.farebox.app.port, request("GET", "/v1/nothing?a=b", key=shop.farebox.key))
    check_envelope(reply, 404, "unknown_path")
    assert "Unknown path /v1/nothing. " in orjson.loads(reply.body)["error"]["message"]


async def test_every_metered_path_names_its_meter(shop: Shop) -> None:
    for path, endpoint in METERED.items():
        assert path.startswith("/")
        assert endpoint.name
        headers = [f"Content-Type: {CONTENT_TYPE}"] if path in FORMS_ONLY else []
        body = form_bytes(("n", "1")) if path in FORMS_ONLY else b"{}"
        data = request("POST", f"/v1{path}", *headers, body=body, key=shop.farebox.key)
        reply = await exchange(shop.farebox.app.port, data)
        check_envelope(reply, 400, "invalid_request", "input" if path == "/moderations" else "model")
    await shop.untouched()


async def test_a_query_is_no_part_of_the_path_and_stays_here(shop: Shop) -> None:
    data = request("POST", f"{PATH}?api-version=1", body=BODY, key=shop.farebox.key)
    assert (await exchange(shop.farebox.app.port, data)).status == 200
    assert shop.upstream.log[0].raw_path == PATH


async def test_refusals_are_counted_by_step(shop: Shop) -> None:
    await check_refused(shop, request("GET", "/v2", key=shop.farebox.key), 404, "unknown_path")
    await check_refused(shop, request("POST", PATH, body=BODY), 401, "invalid_api_key")
    assert shop.count("farebox_refused_total", step="refused", code="unknown_path") == 1
    assert shop.count("farebox_refused_total", step="refused", code="invalid_api_key") == 1
    assert shop.count("farebox_crashes_total") == 0
