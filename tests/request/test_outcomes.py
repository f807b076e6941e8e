"""The outcome matrix: one test a row, for a JSON reply and for a stream, the charge worked out by hand to the nano.

Prices: 1 nano an input token, half of that if cached, 4 an output token. The prompt is 10 tokens to the upstream. What
an estimate makes of it: the body in quarters, 78 bytes or 92 with `"stream":true`. The default reply is 20 words,
"Say something." ten times: 149 bytes, 38 tokens by their size. Rows of what breaks or leaves: test_outcomes_broken.py.
"""

from collections.abc import Mapping

import orjson
import pytest

from tests.support.behaviours import (
    BROKEN,
    HTML,
    RATE_LIMITED,
    UNAUTHORIZED,
    Behaviour,
    CloseBeforeHeaders,
    Completion,
    Form,
    ResetBeforeHeaders,
    StallBeforeHeaders,
    Status,
    UsagePlace,
    failure,
)
from tests.support.completion import IMPOSSIBLE_USAGES, MISSING_USAGES, Usage, absent, changed, doubled, growing
from tests.support.gateway import MODEL
from tests.support.postgres import ScratchPostgres
from tests.support.shop import EXACT, FORMS, PROMPT_ESTIMATE, Shop, both_forms, open_shop, visit
from tests.support.upstream import closed_port

pytestmark = pytest.mark.asyncio(loop_scope="module")

# 2xx with usage: exact -----------------------------------------------------------------------------------------------


@both_forms
async def test_usage_is_charged_exactly(shop: Shop, form: str) -> None:
    status, headers, _ = await shop.call(form, Completion())
    assert status == 200
    if form == "json":
        assert (headers["x-farebox-cost"], headers["x-farebox-balance"]) == ("0.00000009", "99.99999991")
    await shop.resolved(EXACT, "reported", None, "completed")


@both_forms
@pytest.mark.parametrize(("cached", "charge"), [(4, 88), (3, 88), (5, 88), (10, 85)])
async def test_cached_tokens_cost_half_and_round_to_even(shop: Shop, form: str, cached: int, charge: int) -> None:
    # (10 - cached) + cached / 2 + 80: 88, 88.5, 87.5 and 85.
    await shop.call(form, Completion(cached_tokens=cached))
    event = await shop.resolved(charge, "reported", None, "completed")
    assert event["usage"].get("cached_input") == cached


@both_forms
async def test_reasoning_is_inside_the_output(shop: Shop, form: str) -> None:
    await shop.call(form, Completion(reasoning_tokens=15))
    event = await shop.resolved(EXACT, "reported", None, "completed")
    assert event["usage"] == {"input": 10, "output": 20, "reasoning": 15}


@both_forms
async def test_all_choices_are_charged(shop: Shop, form: str) -> None:
    await shop.call(form, Completion(), n=3)
    await shop.resolved(10 + 4 * 60, "reported", None, "completed")


@both_forms
async def test_a_reply_ended_by_its_cap_is_charged_exactly(shop: Shop, form: str) -> None:
    await shop.call(form, Completion(), max_tokens=7)
    await shop.resolved(10 + 4 * 7, "reported", None, "completed")


@pytest.mark.parametrize("place", UsagePlace)
@pytest.mark.parametrize("wanted", [False, True])
async def test_usage_is_found_wherever_a_stream_puts_it(shop: Shop, place: UsagePlace, wanted: bool) -> None:
    members: dict[str, object] = {"stream_options": {"include_usage": True}} if wanted else {}
    await shop.call("stream", Completion(usage_place=place), **members)
    await shop.resolved(EXACT, "reported", None, "completed")


ODD_USAGES: Mapping[str, Usage] = {"doubled": doubled, "growing": growing, "text": changed(completion_tokens="20")}


@pytest.mark.parametrize("usage", ODD_USAGES)
@both_forms
async def test_odd_usage_that_is_true_is_exact(shop: Shop, form: str, usage: str) -> None:
    await shop.call(form, Completion(usage=ODD_USAGES[usage]))
    await shop.resolved(EXACT, "reported", None, "completed")


@pytest.mark.parametrize(
    "behaviour",
    [
        Completion(done=False),
        Completion(final_blank_line=False),
        Completion(newline="\r\n", comment="waiting", bom=True, data_prefix="data:"),
        Completion(line_bytes_min=2**20),
        Completion(gzip=True),
        Completion(leading=b"\n\n\n"),
    ],
    ids=["no [DONE]", "no last blank line", "CRLF and comments", "1 MB line", "gzip", "leading blank lines"],
)
async def test_any_spelling_of_a_stream_is_exact(shop: Shop, behaviour: Completion) -> None:
    await shop.call("stream", behaviour)
    await shop.resolved(EXACT, "reported", None, "completed")


@pytest.mark.parametrize(
    "behaviour",
    [
        Completion(usage_first=True),
        Completion(body_bytes_min=2**21),
        Completion(body_bytes_min=2**21, usage_first=True, gzip=True),
        Completion(leading=b"\n" * 50, gzip=True),
        Completion(form=Form.SSE),
    ],
    ids=["usage first", "2 MB", "2 MB gzip", "leading blank lines", "a stream nobody asked for"],
)
async def test_any_spelling_of_a_reply_is_exact(shop: Shop, behaviour: Completion) -> None:
    if behaviour.form is Form.SSE:
        behaviour = Completion(form=Form.SSE, usage_place=UsagePlace.FINISH_CHUNK)
    status, _, _ = await shop.call("json", behaviour)
    assert status == 200
    await shop.resolved(EXACT, "reported", None, "completed")


async def test_json_where_a_stream_was_asked_for_is_exact(shop: Shop) -> None:
    await shop.call("stream", Completion(form=Form.JSON))
    await shop.resolved(EXACT, "reported", None, "completed")


# 2xx without usage, or with impossible usage -------------------------------------------------------------------------


@both_forms
@pytest.mark.parametrize("usage", MISSING_USAGES)
async def test_missing_usage_is_estimated_from_the_reply(shop: Shop, form: str, usage: str) -> None:
    await shop.call(form, Completion(usage=MISSING_USAGES[usage]))
    event = await shop.resolved(PROMPT_ESTIMATE[form] + 4 * 38, "estimated", "usage_missing", "completed")
    assert event["usage"] == {"input": PROMPT_ESTIMATE[form], "output": 38}


@both_forms
@pytest.mark.parametrize("usage", [name for name in IMPOSSIBLE_USAGES if name != "string"])
async def test_impossible_usage_is_charged_as_missing_and_counted(shop: Shop, form: str, usage: str) -> None:
    await shop.call(form, Completion(usage=IMPOSSIBLE_USAGES[usage]))
    await shop.resolved(PROMPT_ESTIMATE[form] + 4 * 38, "estimated", "usage_invalid", "completed")


async def test_an_estimate_stays_within_the_hold(shop: Shop) -> None:
    """An upstream ignores the cap and says nothing of its usage. The output is lowered, so the cost is its price."""
    body = orjson.dumps({"choices": [{"index": 0, "message": {"content": "x" * 1_000}}]})
    await shop.call("json", Status(200, body), max_tokens=1)
    # The hold is (93 + 256) + 4 * 1 = 353, the prompt 24: 82 tokens of the output's 250 fit.
    event = await shop.resolved(24 + 4 * 82, "estimated", "usage_missing", "completed")
    assert event["usage"] == {"input": 24, "output": 82}


@pytest.mark.parametrize(("policy", "charge"), [("ceiling", (94 + 256) + 4 * 50), ("free", 0)])
async def test_missing_usage_by_policy(scratch: ScratchPostgres, policy: str, charge: int) -> None:
    """The ceiling is the whole hold: body and 256 for the template, and the cap."""
    async with open_shop(scratch, f"policy_{policy}", upstream={"missing_usage": policy}) as opened:
        for form in FORMS:
            for usage, reason in ((absent, "usage_missing"), (changed(total_tokens=1), "usage_invalid")):
                async with visit(opened) as shop:
                    await shop.call(form, Completion(usage=usage), max_tokens=50)
                    extra = 14 if form == "stream" and charge else 0
                    await shop.resolved(charge + extra, "estimated", reason, "completed")
            async with visit(opened) as shop:
                await shop.call(form, Completion(), max_tokens=50)
                await shop.resolved(EXACT, "reported", None, "completed")


# The upstream refuses, or cannot be asked ----------------------------------------------------------------------------


@both_forms
@pytest.mark.parametrize(
    "behaviour",
    [
        failure(400, "Bad request.", code="bad"),
        UNAUTHORIZED,
        failure(403),
        failure(404),
        failure(422),
        RATE_LIMITED,
        BROKEN,
        failure(529),
        HTML,
        Status(503, b"", "text/plain"),
    ],
    ids=lambda behaviour: str(behaviour.status),
)
async def test_a_refusal_of_the_upstream_is_free_and_passed_on(shop: Shop, form: str, behaviour: Status) -> None:
    status, headers, body = await shop.call(form, behaviour)
    assert (status, body) == (behaviour.status, behaviour.body)
    assert headers["Content-Type"] == behaviour.content_type
    assert headers["openai-processing-ms"] == "7"
    assert headers.get("retry-after") == (behaviour.headers or {}).get("retry-after")
    assert headers["x-farebox-cost"] == "0.00"
    await shop.resolved(0, "none", "upstream_refused", "refused")


@both_forms
@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(shop: Shop, form: str, status: int) -> None:
    location = {"location": f"{shop.upstream.url}/v1/elsewhere"}
    answered, headers, body = await shop.call(form, Status(status, b"", headers=location))
    assert (answered, orjson.loads(body)["error"]["code"]) == (502, "upstream_failed")
    assert "location" not in headers
    assert len(shop.upstream.log) == 1
    await shop.resolved(0, "none", "upstream_refused", "refused")


@both_forms
@pytest.mark.parametrize("behaviour", [ResetBeforeHeaders(), CloseBeforeHeaders()], ids=["reset", "close"])
async def test_no_answer_is_free(shop: Shop, form: str, behaviour: Behaviour) -> None:
    status, headers, body = await shop.call(form, behaviour)
    assert (status, orjson.loads(body)["error"]["code"]) == (502, "upstream_unreachable")
    assert headers["x-farebox-cost"] == "0.00"
    await shop.resolved(0, "none", "upstream_refused", "refused")


async def test_a_refused_connection_is_free(scratch: ScratchPostgres) -> None:
    with closed_port() as port:
        nobody = {"models": ("*",), "first_byte_seconds": 0.2}
        async with (
            open_shop(scratch, "nobody_there", urls=[f"http://127.0.0.1:{port}/v1"], upstream=nobody) as opened,
            visit(opened) as shop,
        ):
            # Both upstreams fail: one refuses the connection, the other says nothing for too long.
            status, _, body = await shop.call("stream", StallBeforeHeaders())
            assert (status, orjson.loads(body)["error"]["code"]) == (504, "upstream_timed_out")
            await shop.resolved(0, "none", "upstream_refused", "refused")
            await shop.upstream.idle()
            assert shop.upstream.log[0].client_left


@pytest.mark.parametrize(("tier", "counted"), [("default", 0), ("ultra", 1)])
async def test_a_tier_of_service_without_a_price_is_charged_as_asked_and_counted(
    shop: Shop, tier: str, counted: int
) -> None:
    counter = shop.farebox.app.metrics.unpriced_tiers.labels(MODEL)
    before = counter.value
    usage = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
    reply = {"object": "chat.completion", "choices": [], "service_tier": tier, "usage": usage}
    await shop.call("json", Status(200, orjson.dumps(reply)))
    await shop.resolved(EXACT, "reported", None, "completed")
    assert counter.value - before == counted
