"""The outcome matrix for the Responses API, for a JSON reply and for a stream, the charge worked out to the nano.

Prices: 1 nano an input token, 4 an output token. The upstream counts 10 in and 20 out. What an estimate makes of it:
the body in quarters, and "Say something kind.", 19 bytes in four deltas, as 5 tokens.
"""

import asyncio
from typing import Any

import orjson
import pytest

from tests.support.gateway import make_wallet
from tests.support.responses import event, response_json
from tests.support.responses_shop import BODY, EXACT, FORMS, Shop, both_forms, open_all_day, shop
from tests.support.responses_upstream import Honest, Says
from tests.support.shop import settled, until

__all__ = ["open_all_day", "shop"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

ERROR = orjson.dumps({"error": {"message": "No.", "type": "server_error", "param": None, "code": "x"}})
ERROR_EVENT = event("error", 0, error={"type": "server_error", "code": "x", "message": "No.", "param": None})


def estimate_of(form: str) -> int:
    """The prompt, from the size of the body."""
    return -(-len(orjson.dumps({**BODY, **FORMS[form]})) // 4)


@both_forms
async def test_usage_is_charged_exactly_and_the_bytes_are_the_upstreams(shop: Shop, form: str) -> None:
    status, body = await shop.call(form, Honest())
    assert status == 200
    assert b'"output_tokens":20' in body
    if form == "stream":
        assert body.startswith(b"event: response.created\n")
        assert body.count(b"event: ") == 9
    await shop.resolved(EXACT, "reported", None)


@both_forms
async def test_a_large_reply_is_charged_exactly(shop: Shop, form: str) -> None:
    status, body = await shop.call(form, Honest(large_bytes=2**21))
    assert status == 200
    assert len(body) > 2**21
    await shop.resolved(EXACT, "reported", None)


@both_forms
async def test_an_incomplete_reply_is_charged_exactly(shop: Shop, form: str) -> None:
    await shop.call(form, Honest({"status": "incomplete"}), max_output_tokens=20)
    await shop.resolved(EXACT, "reported", None)


@both_forms
async def test_a_failed_reply_is_charged_what_it_used(shop: Shop, form: str) -> None:
    failed = {"status": "failed", "error": {"code": "server_error", "message": "No."}}
    status, body = await shop.call(form, Honest(failed))
    assert (status, b'"failed"' in body) == (200, True)
    await shop.resolved(EXACT, "reported", "upstream_broke")


@both_forms
async def test_missing_usage_is_estimated(shop: Shop, form: str) -> None:
    await shop.call(form, Honest(usage=None))
    await shop.resolved(estimate_of(form) + 4 * 5, "estimated", "usage_missing")


@both_forms
async def test_impossible_usage_is_estimated(shop: Shop, form: str) -> None:
    await shop.call(form, Honest(usage={"input_tokens": 10, "output_tokens": -1, "total_tokens": 9}))
    await shop.resolved(estimate_of(form) + 4 * 5, "estimated", "usage_invalid")


@both_forms
@pytest.mark.parametrize("status", [400, 404, 429, 500])
async def test_a_refusal_is_free_and_passed_on(shop: Shop, form: str, status: int) -> None:
    assert await shop.call(form, Says(status, ERROR)) == (status, ERROR)
    await shop.resolved(0, "none", "upstream_refused")


async def test_a_stream_that_fails_before_output_is_free(shop: Shop) -> None:
    begun = event("response.created", 0, response=response_json(status="in_progress"))
    data = begun + ERROR_EVENT
    assert await shop.call("stream", Says(200, data, "text/event-stream")) == (200, data)
    await shop.resolved(0, "none", "upstream_broke")


async def test_a_stream_that_breaks_is_charged_for_what_was_relayed(shop: Shop) -> None:
    _, body = await shop.call("stream", Honest(after_events=5))
    # Two deltas of 13 bytes in all, then an end that the SDKs raise.
    *_, error, rest = body.split(b"\n\n")
    assert error.startswith(b"event: error\ndata: ")
    assert orjson.loads(error.partition(b"data: ")[2])["error"]["code"] == "upstream_broke"
    assert rest == b""
    await shop.resolved(estimate_of("stream") + 4 * 4, "estimated", "upstream_broke")


async def test_a_client_that_leaves_is_charged_for_what_was_relayed(shop: Shop) -> None:
    shop.upstream.next(Honest(after_events=5, stall=True))
    async with shop.post(stream=True) as response:
        await response.content.readuntil(b"something")
        response.close()
    await until(lambda: shop.upstream.log[0].left)
    await shop.resolved(estimate_of("stream") + 4 * 4, "estimated", "client_gone")


async def test_a_client_that_leaves_near_the_end_is_charged_exactly(shop: Shop) -> None:
    shop.upstream.next(Honest(pause_seconds=0.01))
    async with shop.post(stream=True) as response:
        await response.content.readuntil(b"something")
        response.close()
    await shop.resolved(EXACT, "reported", "client_gone")


async def test_compacting_is_charged(shop: Shop) -> None:
    async with shop.post("/compact") as response:
        assert (await response.json())["object"] == "response.compaction"
    await settled(shop.running)
    (found,) = await shop.running.usage(shop.wallet_id)
    assert (found["charged_nanos"], found["endpoint"]) == (EXACT, "responses.compact")


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({"model": "unknown"}, "model_not_found"),
        ({"tools": [{"type": "web_search"}]}, "not_metered"),
        ({"tools": [{"type": "web_search"}], "max_tool_calls": 2}, "model_not_priced"),
        ({"max_output_tokens": 10**6}, "output_cap_too_large"),
    ],
)
async def test_a_refusal_of_ours_sends_nothing(shop: Shop, members: dict[str, Any], code: str) -> None:
    async with shop.post(**members) as response:
        assert (await response.json())["error"]["code"] == code
    assert not shop.upstream.log
    assert await shop.running.usage(shop.wallet_id) == []


async def test_a_cap_is_lowered_to_what_the_funds_cover(shop: Shop) -> None:
    _, key = await make_wallet(shop.app.database, "0.000001")
    headers = shop.running.headers(key)
    url = f"{shop.running.base_url}/responses"
    async with shop.running.session.post(url, data=orjson.dumps(BODY), headers=headers) as response:
        cap = int(response.headers["x-farebox-output-cap"])
        await asyncio.wait_for(response.read(), 5)
    # 1,000 nanos less 48 bytes and 256 of the template, at 4 nanos a token.
    assert shop.upstream.log[0].body["max_output_tokens"] == cap == (1_000 - len(orjson.dumps(BODY)) - 256) // 4
