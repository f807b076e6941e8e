"""Azure's form of the API: the official SDK for Azure, pointed here, and what its paths mean."""

from typing import Any

import openai
import orjson
import pytest

from gateway.web.azure import deployment_of, other_names
from gateway.web.routes import METERED
from tests.support.behaviours import Completion
from tests.support.gateway import MODEL
from tests.support.rawhttp import Reply, exchange, request
from tests.support.refusals import MESSAGES, check_envelope
from tests.support.shop import EXACT, Shop

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHAT = "/chat/completions"


async def ask(shop: Shop, path: str, body: bytes, method: str = "POST") -> Reply:
    data = request(method, path, f"api-key: {shop.farebox.key}", body=body)
    return await exchange(shop.farebox.app.port, data)


@pytest.mark.parametrize("by_client", [False, True], ids=["model", "azure_deployment"])
async def test_the_sdk_for_azure(shop: Shop, by_client: bool) -> None:
    endpoint = f"http://127.0.0.1:{shop.farebox.app.port}"
    options: dict[str, Any] = {"azure_deployment": MODEL} if by_client else {}
    async with openai.AsyncAzureOpenAI(
        azure_endpoint=endpoint, api_key=shop.farebox.key, api_version="2024-10-21", max_retries=0, **options
    ) as client:
        shop.upstream.next(Completion())
        reply = await client.chat.completions.create(
            model="whatever" if by_client else MODEL, messages=[{"role": "user", "content": "Say something."}]
        )
    assert reply.choices[0].message.content
    served = shop.upstream.log[0]
    assert served.raw_path == f"/v1{CHAT}"
    assert orjson.loads(served.body)["model"] == MODEL
    await shop.resolved(EXACT, "reported", None, "completed")


@pytest.mark.parametrize(
    ("path", "members"),
    [
        (f"/openai/deployments/{MODEL}{CHAT}?api-version=2024-10-21", {}),
        (f"/openai/deployments/test%2Dmodel{CHAT}", {"model": "other"}),
        (f"/openai/v1{CHAT}", {"model": MODEL}),
    ],
)
async def test_the_path_names_the_model(shop: Shop, path: str, members: dict[str, object]) -> None:
    got = await ask(shop, path, orjson.dumps({"messages": MESSAGES, **members}))
    assert got.status == 200
    assert orjson.loads(shop.upstream.log[0].body)["model"] == MODEL
    await shop.event()


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", f"/openai/deployments/nobody{CHAT}", {"model": MODEL, "messages": MESSAGES}, 404, "model_not_found"),
        ("POST", f"/openai/deployments//{CHAT}", {}, 404, "unknown_path"),
        # It is the deployment "chat" that is asked for completions.
        ("POST", f"/openai/deployments{CHAT}", {}, 404, "model_not_found"),
        ("POST", "/openai/deployments/m/moderations", {}, 404, "unknown_path"),
        ("POST", f"/openai{CHAT}", {}, 404, "unknown_path"),
        ("POST", f"/openai/deployments/m{CHAT}/..", {}, 404, "unknown_path"),
        ("GET", f"/openai/deployments/{MODEL}{CHAT}", {}, 405, "method_not_allowed"),
        ("GET", "/openai/files", {}, 404, "unknown_path"),
        ("POST", f"/openai/deployments/{MODEL}{CHAT}", [], 400, "invalid_request"),
    ],
)
async def test_what_is_refused(shop: Shop, method: str, path: str, body: object, status: int, code: str) -> None:
    got = await ask(shop, path, orjson.dumps(body), method)
    check_envelope(got, status, code, "model" if code == "model_not_found" else None)
    await shop.untouched()


async def test_what_is_called_how() -> None:
    names = other_names(METERED)
    assert names["/openai/v1/chat/completions"] == (CHAT, METERED[CHAT])
    assert "/openai/moderations" in names
    assert "/openai/chat/completions" not in names
    assert deployment_of(f"/openai/deployments/a%2Fb{CHAT}", METERED) == ("a/b", CHAT, METERED[CHAT])
