"""The official Node SDK against the whole gateway. tests/clients/node/client.mjs plays the customer."""

import re
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import orjson
import pytest
import pytest_asyncio

from gateway.core.money import format_nanos
from tests.support.behaviours import Completion, failure
from tests.support.call import Gate, Served
from tests.support.gateway import FREE_MODEL, MODEL, make_wallet
from tests.support.node import HERE, NodeClient, node
from tests.support.shop import CREDIT_NANOS, Shop, settled

__all__ = ["node"]
pytestmark = pytest.mark.asyncio(loop_scope="module")

SOON = {"retry_after_ms": "1"}
Run = Callable[..., Awaitable[dict[str, Any]]]


@pytest_asyncio.fixture(loop_scope="module")
async def run(node: NodeClient, shop: Shop) -> Run:
    """Run scenarios with this test's key, or another; what the client printed, by scenario."""

    async def play(*scenarios: str, key: str | None = None) -> dict[str, Any]:
        return await node.play(*scenarios, base_url=shop.farebox.base_url, key=key or shop.farebox.key, MODEL=MODEL)

    return play


def cost(served: Served) -> int:
    """Nanos, by the test model's rates."""
    return served.prompt_tokens + 4 * served.completion_tokens


async def assert_charged(shop: Shop, *served: Served) -> None:
    """Exactly these calls were charged, once each; nothing is held."""
    await settled(shop.farebox)
    events = await shop.farebox.usage()
    charges = [event["charged_nanos"] for event in events if event["resolution"] == "settled"]
    assert sorted(charges) == sorted(map(cost, served))
    wallet = await shop.farebox.wallet()
    assert (wallet["balance_nanos"], wallet["held_nanos"]) == (CREDIT_NANOS - sum(map(cost, served)), 0)


async def test_calls(shop: Shop, run: Run) -> None:
    shop.upstream.default = Completion(output_tokens=4)
    seen = await run("plain", "stream", "stream_with_usage", "tools", "tools_stream", "with_response")
    plain, stream, usage, tools, tools_stream, raw = shop.upstream.log
    assert seen["plain"]["text"].split() == ["Say", "something."] * 2
    assert seen["plain"]["usage"]["prompt_tokens"] == plain.prompt_tokens
    assert seen["plain"]["request_id"] == plain.request_id
    assert stream.asked is not None
    assert stream.asked.include_usage, "the gateway asked for it"
    assert seen["stream"] == {
        "text": seen["plain"]["text"], "finish_reason": "stop", "usages": [], "without_choices": 0
    }  # fmt: skip
    assert seen["stream_with_usage"]["text"] == seen["plain"]["text"]
    assert [one["completion_tokens"] for one in seen["stream_with_usage"]["usages"]] == [4]
    assert seen["stream_with_usage"]["without_choices"] == 1
    assert seen["tools"] == seen["tools_stream"] == {"name": "weather"}
    headers = seen["with_response"]["headers"]
    assert headers["x-farebox-cost"] == format_nanos(cost(raw))
    assert headers["x-farebox-hold"] == headers["x-request-id"] == seen["with_response"]["request_id"] == raw.request_id
    spent = sum(map(cost, shop.upstream.log))
    assert Decimal(headers["x-farebox-balance"]) == Decimal(CREDIT_NANOS - spent) / 10**9
    await assert_charged(shop, plain, stream, usage, tools, tools_stream, raw)


async def test_models(run: Run) -> None:
    seen = await run("models_list", "models_retrieve")
    assert seen["models_list"] == {"ids": [FREE_MODEL, MODEL]}
    assert (seen["models_retrieve"]["id"], seen["models_retrieve"]["object"]) == (MODEL, "model")


async def test_refusals_are_the_sdks_own_errors(shop: Shop, run: Run) -> None:
    seen = await run("unknown_key", "unknown_model", "bad_request")
    told = {name: (error["class"], error["status"], error["code"]) for name, error in seen.items()}
    assert told == {
        "unknown_key": ("AuthenticationError", 401, "invalid_api_key"),
        "unknown_model": ("NotFoundError", 404, "model_not_found"),
        "bad_request": ("BadRequestError", 400, "invalid_request"),
    }
    assert all(error["request_id"] for error in seen.values())
    await shop.untouched()


async def test_insufficient_funds_are_told_once_and_not_tried_again(shop: Shop, run: Run) -> None:
    _, key = await make_wallet(shop.farebox.app.database, "0.00000001")
    error = (await run("plain", key=key))["plain"]
    assert (error["class"], error["status"], error["code"]) == ("APIError", 402, "insufficient_funds")
    assert error["available"] == "0.00000001"
    assert Decimal(error["required"]) > Decimal(error["available"])
    assert error["should_retry"] == "false"
    assert shop.count("farebox_refused_total", step="refused", code="insufficient_funds") == 1
    assert not shop.upstream.log


async def test_only_the_attempt_that_answered_is_charged(shop: Shop, run: Run) -> None:
    shop.upstream.next(failure(500, **SOON), failure(500, **SOON), Completion())
    assert (await run("plain"))["plain"]["text"]
    assert len(shop.upstream.log) == 3
    await assert_charged(shop, shop.upstream.log[-1])
    assert len(await shop.farebox.usage()) == 3


async def test_an_abort_in_the_middle_of_a_stream_is_charged_for_what_was_used(shop: Shop, run: Run) -> None:
    gate = Gate()
    shop.upstream.default = Completion(gate=gate, gate_at_event=5)
    # The client is gone when the process has ended; only then does the upstream go on.
    assert (await run("abort"))["abort"]["first"]["role"] == "assistant"
    gate.open()
    served = await (await shop.upstream.received()).finished()
    assert served.completed, "the upstream was read to its end for the exact usage"
    await assert_charged(shop, served)


async def test_the_lock_file_pins_the_sdk_and_names_no_host() -> None:
    lock = (HERE / "package-lock.json").read_text()
    package = orjson.loads((HERE / "package.json").read_text())
    assert orjson.loads(lock)["packages"]["node_modules/openai"]["version"] == package["dependencies"]["openai"]
    assert '"integrity"' in lock
    assert not re.search(r"://|\"resolved\"", lock)
