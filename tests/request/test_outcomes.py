"""The outcome matrix: one test a row, for a JSON reply and for a stream, the charge worked out by hand to the nano.

Prices: 1 nano an input token, half of that if cached, 4 an output token. The prompt is 10 tokens to the upstream. What
an estimate makes of it: the body in quarters, 78 bytes or 92 with `"stream":true`. The default reply is 20 words,
"Say something." ten times: 149 bytes, 38 tokens by their size.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
import orjson
import pytest

from tests.support.behaviours import (
    BROKEN,
    EMPTY,
    ERROR_IN_200,
    HTML,
    RATE_LIMITED,
    UNAUTHORIZED,
    Behaviour,
    Choose,
    CloseBeforeHeaders,
    Completion,
    End,
    Form,
    RawStream,
    ResetBeforeHeaders,
    StallBeforeHeaders,
    Status,
    UsagePlace,
    failure,
)
from tests.support.call import Gate
from tests.support.completion import IMPOSSIBLE_USAGES, MISSING_USAGES, Usage, absent, changed, doubled, growing
from tests.support.gateway import MODEL, farebox
from tests.support.ledger_proxy import ledger_proxy
from tests.support.postgres import ScratchPostgres
from tests.support.shop import CREDIT_NANOS, ENDPOINT, Shop, client_noticed_gone, open_shop, settled, until, visit
from tests.support.upstream import FakeUpstream, closed_port

pytestmark = pytest.mark.asyncio(loop_scope="module")

FORMS: Mapping[str, dict[str, object]] = {"json": {}, "stream": {"stream": True}}
both_forms = pytest.mark.parametrize("form", FORMS)

EXACT = 10 + 4 * 20
PROMPT_ESTIMATE = {"json": 20, "stream": 23}
DONE = b"data: [DONE]\n\n"


async def check(shop: Shop, charge: int, basis: str, reason: str | None, label: str) -> dict[str, Any]:
    """The one call of this test was resolved so, once, and every book and counter says the same."""
    event = await shop.event()
    assert (event["cost_nanos"], event["charged_nanos"], event["shortfall_nanos"]) == (charge, charge, 0)
    assert (event["basis"], event["reason"]) == (basis, reason)
    assert event["resolution"] == ("voided" if basis == "none" else "settled")
    assert event["endpoint"] == ENDPOINT
    wallet = await shop.farebox.wallet()
    assert (wallet["balance_nanos"], wallet["held_nanos"]) == (CREDIT_NANOS - charge, 0)
    labels = {"endpoint": ENDPOINT, "model": MODEL, "outcome": label, "basis": basis}
    assert shop.count("farebox_calls_total", **labels) == 1
    assert shop.count("farebox_charged_nanos_total", model=MODEL) == charge
    if basis == "estimated":
        assert reason is not None
        assert shop.count("farebox_estimates_total", reason=reason) == 1
    return event


async def call(shop: Shop, form: str, behaviour: Behaviour, **members: object) -> tuple[int, Mapping[str, str], bytes]:
    """One whole exchange: status, headers and body."""
    shop.upstream.next(behaviour)
    async with shop.chat(**FORMS[form], **members) as response:
        return response.status, response.headers, await response.read()


def assert_cut_short(body: bytes, code: str) -> None:
    """A stream ends with an error event of ours and a well-formed end."""
    *_, error, end, rest = body.split(b"\n\n")
    assert orjson.loads(error.removeprefix(b"data: "))["error"]["code"] == code
    assert (end, rest) == (b"data: [DONE]", b"")


# 2xx with usage: exact -----------------------------------------------------------------------------------------------


@both_forms
async def test_usage_is_charged_exactly(shop: Shop, form: str) -> None:
    status, headers, _ = await call(shop, form, Completion())
    assert status == 200
    if form == "json":
        assert (headers["x-farebox-cost"], headers["x-farebox-balance"]) == ("0.00000009", "99.99999991")
    await check(shop, EXACT, "reported", None, "completed")


@both_forms
@pytest.mark.parametrize(("cached", "charge"), [(4, 88), (3, 88), (5, 88), (10, 85)])
async def test_cached_tokens_cost_half_and_round_to_even(shop: Shop, form: str, cached: int, charge: int) -> None:
    # (10 - cached) + cached / 2 + 80: 88, 88.5, 87.5 and 85.
    await call(shop, form, Completion(cached_tokens=cached))
    event = await check(shop, charge, "reported", None, "completed")
    assert event["usage"].get("cached_input") == cached


@both_forms
async def test_reasoning_is_inside_the_output(shop: Shop, form: str) -> None:
    await call(shop, form, Completion(reasoning_tokens=15))
    event = await check(shop, EXACT, "reported", None, "completed")
    assert event["usage"] == {"input": 10, "output": 20, "reasoning": 15}


@both_forms
async def test_all_choices_are_charged(shop: Shop, form: str) -> None:
    await call(shop, form, Completion(), n=3)
    await check(shop, 10 + 4 * 60, "reported", None, "completed")


@both_forms
async def test_a_reply_ended_by_its_cap_is_charged_exactly(shop: Shop, form: str) -> None:
    await call(shop, form, Completion(), max_tokens=7)
    await check(shop, 10 + 4 * 7, "reported", None, "completed")


@pytest.mark.parametrize("place", UsagePlace)
@pytest.mark.parametrize("wanted", [False, True])
async def test_usage_is_found_wherever_a_stream_puts_it(shop: Shop, place: UsagePlace, wanted: bool) -> None:
    members: dict[str, object] = {"stream_options": {"include_usage": True}} if wanted else {}
    await call(shop, "stream", Completion(usage_place=place), **members)
    await check(shop, EXACT, "reported", None, "completed")


@pytest.mark.parametrize("usage", [doubled, growing, changed(completion_tokens="20")], ids=["doubled", "growing", "text"])
@both_forms
async def test_odd_usage_that_is_true_is_exact(shop: Shop, form: str, usage: Usage) -> None:
    await call(shop, form, Completion(usage=usage))
    await check(shop, EXACT, "reported", None, "completed")


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
    await call(shop, "stream", behaviour)
    await check(shop, EXACT, "reported", None, "completed")


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
    status, _, _ = await call(shop, "json", behaviour)
    assert status == 200
    await check(shop, EXACT, "reported", None, "completed")


async def test_json_where_a_stream_was_asked_for_is_exact(shop: Shop) -> None:
    await call(shop, "stream", Completion(form=Form.JSON))
    await check(shop, EXACT, "reported", None, "completed")


# 2xx without usage, or with impossible usage -------------------------------------------------------------------------


@both_forms
@pytest.mark.parametrize("usage", MISSING_USAGES)
async def test_missing_usage_is_estimated_from_the_reply(shop: Shop, form: str, usage: str) -> None:
    await call(shop, form, Completion(usage=MISSING_USAGES[usage]))
    event = await check(shop, PROMPT_ESTIMATE[form] + 4 * 38, "estimated", "usage_missing", "completed")
    assert event["usage"] == {"input": PROMPT_ESTIMATE[form], "output": 38}


@both_forms
@pytest.mark.parametrize("usage", [name for name in IMPOSSIBLE_USAGES if name != "string"])
async def test_impossible_usage_is_charged_as_missing_and_counted(shop: Shop, form: str, usage: str) -> None:
    await call(shop, form, Completion(usage=IMPOSSIBLE_USAGES[usage]))
    await check(shop, PROMPT_ESTIMATE[form] + 4 * 38, "estimated", "usage_invalid", "completed")


async def test_an_estimate_stays_within_the_hold(shop: Shop) -> None:
    """An upstream that ignores the cap and says nothing of its usage. The output is lowered, so the cost is its price."""
    body = orjson.dumps({"choices": [{"index": 0, "message": {"content": "x" * 1_000}}]})
    await call(shop, "json", Status(200, body), max_tokens=1)
    # The hold is (93 + 256) + 4 * 1 = 353, the prompt 24: 82 tokens of the output's 250 fit.
    event = await check(shop, 24 + 4 * 82, "estimated", "usage_missing", "completed")
    assert event["usage"] == {"input": 24, "output": 82}


@pytest.mark.parametrize(("policy", "charge"), [("ceiling", (94 + 256) + 4 * 50), ("free", 0)])
async def test_missing_usage_by_policy(scratch: ScratchPostgres, policy: str, charge: int) -> None:
    """The ceiling is the whole hold: body and 256 for the template, and the cap."""
    async with open_shop(scratch, f"policy_{policy}", upstream={"missing_usage": policy}) as opened:
        for form in FORMS:
            for usage, reason in ((absent, "usage_missing"), (changed(total_tokens=1), "usage_invalid")):
                async with visit(opened) as shop:
                    await call(shop, form, Completion(usage=usage), max_tokens=50)
                    extra = 14 if form == "stream" and charge else 0
                    await check(shop, charge + extra, "estimated", reason, "completed")
            async with visit(opened) as shop:
                await call(shop, form, Completion(), max_tokens=50)
                await check(shop, EXACT, "reported", None, "completed")


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
    status, headers, body = await call(shop, form, behaviour)
    assert (status, body) == (behaviour.status, behaviour.body)
    assert headers["Content-Type"] == behaviour.content_type
    assert headers["openai-processing-ms"] == "7"
    assert headers.get("retry-after") == (behaviour.headers or {}).get("retry-after")
    assert headers["x-farebox-cost"] == "0.00"
    await check(shop, 0, "none", "upstream_refused", "refused")


@both_forms
@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(shop: Shop, form: str, status: int) -> None:
    location = {"location": f"{shop.upstream.url}/v1/elsewhere"}
    answered, headers, body = await call(shop, form, Status(status, b"", headers=location))
    assert (answered, orjson.loads(body)["error"]["code"]) == (502, "upstream_failed")
    assert "location" not in headers
    assert len(shop.upstream.log) == 1
    await check(shop, 0, "none", "upstream_refused", "refused")


@both_forms
@pytest.mark.parametrize("behaviour", [ResetBeforeHeaders(), CloseBeforeHeaders()], ids=["reset", "close"])
async def test_no_answer_is_free(shop: Shop, form: str, behaviour: Behaviour) -> None:
    status, headers, body = await call(shop, form, behaviour)
    assert (status, orjson.loads(body)["error"]["code"]) == (502, "upstream_unreachable")
    assert headers["x-farebox-cost"] == "0.00"
    await check(shop, 0, "none", "upstream_refused", "refused")


async def test_a_refused_connection_and_a_timeout_are_free(database_url: str, upstream: FakeUpstream) -> None:
    with closed_port() as port:
        for url, status, code in (
            (f"http://127.0.0.1:{port}/v1", 502, "upstream_unreachable"),
            (upstream.base_url, 504, "upstream_timed_out"),
        ):
            upstream.default = StallBeforeHeaders()
            async with farebox(database_url, [url], upstream={"first_byte_seconds": 0.2}) as running:
                shop = Shop(running, upstream, database_url, {})
                async with shop.chat(stream=True) as response:
                    document = await response.json()
                assert (response.status, document["error"]["code"]) == (status, code)
                await check(shop, 0, "none", "upstream_refused", "refused")


# The upstream breaks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [End.CLOSE, End.RESET])
@pytest.mark.parametrize(
    ("events", "tokens"), [(0, None), (1, None), (2, 1), (5, 8)], ids=["no event", "no text", "one word", "four words"]
)
async def test_a_stream_that_breaks_is_charged_for_what_was_relayed(
    shop: Shop, end: End, events: int, tokens: int | None
) -> None:
    """Four words are 29 bytes: 8 tokens by their size."""
    status, _, body = await call(shop, "stream", Completion(end=end, end_after_events=events))
    assert status == 200
    assert_cut_short(body, "upstream_broke")
    assert body.count(b"data: ") == events + 2
    if tokens is None:
        await check(shop, 0, "none", "upstream_broke", "upstream_broke")
    else:
        await check(shop, 23 + 4 * tokens, "estimated", "upstream_broke", "upstream_broke")


@pytest.mark.parametrize("end", [End.ERROR, End.ERROR_DONE])
@pytest.mark.parametrize(("events", "tokens"), [(1, None), (5, 8)], ids=["no text", "four words"])
async def test_an_error_event_is_charged_for_what_was_relayed(
    shop: Shop, end: End, events: int, tokens: int | None
) -> None:
    """The upstream's own words end the stream, and its error text is no output."""
    _, _, body = await call(shop, "stream", Completion(end=end, end_after_events=events))
    assert b"The engine stopped while answering." in body
    assert body.endswith(DONE) == (end is End.ERROR_DONE)
    assert body.count(b"data: ") == events + 1 + (end is End.ERROR_DONE)
    if tokens is None:
        await check(shop, 0, "none", "upstream_broke", "upstream_broke")
    else:
        await check(shop, 23 + 4 * tokens, "estimated", "upstream_broke", "upstream_broke")


@pytest.mark.parametrize("end", [End.CLOSE, End.RESET])
async def test_half_a_json_reply_is_free(shop: Shop, end: End) -> None:
    status, headers, body = await call(shop, "json", Completion(end=end))
    assert (status, orjson.loads(body)["error"]["code"]) == (502, "upstream_broke")
    assert headers["x-farebox-cost"] == "0.00"
    await check(shop, 0, "none", "upstream_broke", "upstream_broke")


async def test_an_error_in_a_200_is_free_and_passed_on(shop: Shop) -> None:
    status, _, body = await call(shop, "json", ERROR_IN_200)
    assert (status, body) == (200, ERROR_IN_200.body)
    await check(shop, 0, "none", "upstream_broke", "upstream_broke")


@pytest.mark.parametrize(
    "behaviour",
    [EMPTY, Status(200, HTML.body, HTML.content_type), Status(200, b"not json"), Status(204)],
    ids=["empty", "HTML", "text", "204"],
)
async def test_a_reply_that_is_no_json_is_free_and_passed_on(shop: Shop, behaviour: Status) -> None:
    status, _, body = await call(shop, "json", behaviour)
    assert (status, body) == (behaviour.status, behaviour.body)
    await check(shop, 0, "none", "upstream_broke", "upstream_broke")


@pytest.mark.parametrize("chunks", [[b""], [b": waiting\n\n"]], ids=["empty", "comments"])
async def test_a_stream_without_any_event_is_free(shop: Shop, chunks: list[bytes]) -> None:
    _, _, body = await call(shop, "stream", RawStream(chunks))
    assert body == chunks[0]
    await check(shop, 0, "none", "upstream_broke", "upstream_broke")


async def test_a_silent_stream_is_ended_and_charged_for_what_was_relayed(
    database_url: str, upstream: FakeUpstream
) -> None:
    upstream.default = Completion(end=End.STALL, end_after_events=5)
    async with farebox(database_url, [upstream.base_url], upstream={"idle_seconds": 0.2}) as running:
        shop = Shop(running, upstream, database_url, {})
        async with shop.chat(stream=True) as response:
            assert_cut_short(await response.read(), "upstream_broke")
        await check(shop, 23 + 4 * 8, "estimated", "upstream_broke", "upstream_broke")
        assert (await upstream.received()).client_left


# The client leaves ---------------------------------------------------------------------------------------------------


async def leave_after(shop: Shop, form: str, events: int, gate: Gate) -> None:
    """Read so many events of a reply that waits at `gate`, and leave; return when the gateway has noticed."""
    if form == "json" or gate.reached.is_set() is False and events < 0:
        task = asyncio.ensure_future(_send(shop, form))
        await gate.arrived()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    else:
        response = await shop.chat(**FORMS[form])
        await gate.arrived()
        for _ in range(events):
            await response.content.readuntil(b"\n\n")
        response.close()
    await client_noticed_gone(shop.farebox)


async def _send(shop: Shop, form: str) -> None:
    async with shop.chat(**FORMS[form]) as response:
        await response.read()
