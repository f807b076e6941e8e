"""The official Python SDK against the whole gateway: only its base_url and key are changed, as a customer does it."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from gateway.core.money import format_nanos
from gateway.db import wallets
from tests.support.behaviours import BROKEN, RATE_LIMITED, UNAUTHORIZED, Completion, End, failure
from tests.support.call import Gate, Served
from tests.support.gateway import FREE_MODEL, MODEL, Farebox, make_wallet
from tests.support.shop import CREDIT_NANOS, Shop, settled, until
from tests.support.upstream import FakeUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

SAY: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say something."}]
SAID = "Say something. Say something."
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"text": {"type": "string"}}}},
}
# The SDK waits this long before it tries again, and not half a second.
SOON = {"retry_after_ms": "1"}


@pytest_asyncio.fixture(loop_scope="module")
async def client(gateway: Farebox) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=gateway.base_url, api_key=gateway.key) as opened:
        yield opened


def cost(served: Served) -> int:
    """Nanos, by the test model's rates."""
    return served.prompt_tokens + 4 * served.completion_tokens


async def assert_charged(gateway: Farebox, *served: Served) -> None:
    """Exactly these calls were charged, once each, by reported usage; nothing is held."""
    await settled(gateway)
    events = await gateway.usage()
    charges = [event["charged_nanos"] for event in events if event["resolution"] == "settled"]
    assert sorted(charges) == sorted(map(cost, served))
    assert {event["basis"] for event in events if event["resolution"] == "settled"} <= {"reported"}
    wallet = await gateway.wallet()
    assert (wallet["balance_nanos"], wallet["held_nanos"]) == (CREDIT_NANOS - sum(map(cost, served)), 0)


# Calls that go well --------------------------------------------------------------------------------------------------


async def test_a_plain_call(gateway: Farebox, upstream: FakeUpstream, client: AsyncOpenAI) -> None:
    upstream.default = Completion(output_tokens=4)
    reply = await client.chat.completions.create(model=MODEL, messages=SAY)
    served = await upstream.received()
    assert reply.choices[0].message.content is not None
    assert reply.choices[0].message.content.split() == SAID.split()
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (served.prompt_tokens, 4)
    assert reply._request_id == served.request_id, "the id that both sides of the gateway know the call by"
    await assert_charged(gateway, served)


async def test_the_synchronous_client(gateway: Farebox, upstream: FakeUpstream) -> None:
    def calls() -> tuple[str | None, str, list[str]]:
        with OpenAI(base_url=gateway.base_url, api_key=gateway.key) as client:
            reply = client.chat.completions.create(model=MODEL, messages=SAY)
            chunks = client.chat.completions.create(model=MODEL, messages=SAY, stream=True)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            return reply.choices[0].message.content, text, [model.id for model in client.models.list()]

    whole, streamed, models = await asyncio.to_thread(calls)
    assert whole == streamed
    assert models == [FREE_MODEL, MODEL]
    await assert_charged(gateway, *upstream.log)


async def test_a_stream_shows_no_usage_that_was_not_asked_for(
    gateway: Farebox, upstream: FakeUpstream, client: AsyncOpenAI
) -> None:
    stream = await client.chat.completions.create(model=MODEL, messages=SAY, stream=True)
    chunks = [chunk async for chunk in stream]
    served = await upstream.received()
    assert served.asked is not None
    assert served.asked.include_usage, "the gateway asked for it"
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert sum(bool(chunk.choices[0].delta.content) for chunk in chunks) == served.completion_tokens
    await assert_charged(gateway, served)


async def test_a_stream_shows_the_usage_that_was_asked_for(
    gateway: Farebox, upstream: FakeUpstream, client: AsyncOpenAI
) -> None:
    stream = await client.chat.completions.create(
        model=MODEL, messages=SAY, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    served = await upstream.received()
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    last = chunks[-1]
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == served.completion_tokens
    await assert_charged(gateway, served)


@pytest.mark.parametrize("stream", [False, True])
async def test_tools(gateway: Farebox, upstream: FakeUpstream, client: AsyncOpenAI, stream: bool) -> None:
    upstream.default = Completion(output_tokens=4)
    asked: dict[str, Any] = {"model": MODEL, "messages": SAY, "tools": [WEATHER], "tool_choice": "required"}
    if stream:
        async with client.chat.completions.stream(**asked) as events:
            reply = await events.get_final_completion()
    else:
        reply = await client.chat.completions.create(**asked)
    calls = reply.choices[0].message.tool_calls
    assert calls
    assert reply.choices[0].finish_reason == "tool_calls"
    assert calls[0].type == "function"
    assert calls[0].function.name == "weather"
    assert "something." in calls[0].function.arguments
    await assert_charged(gateway, await upstream.received())


async def test_raw_response_headers_tell_cost_balance_and_hold(
    gateway: Farebox, upstream: FakeUpstream, client: AsyncOpenAI
) -> None:
    raw = await client.chat.completions.with_raw_response.create(model=MODEL, messages=SAY)
    served = await upstream.received()
    assert raw.headers["x-farebox-cost"] == format_nanos(cost(served))
    assert Decimal(raw.headers["x-farebox-balance"]) == Decimal(CREDIT_NANOS - cost(served)) / 10**9
    assert raw.headers["x-farebox-billing-source"] == "balance"
    assert raw.headers["x-farebox-hold"] == raw.request_id == served.request_id
    assert raw.headers["x-farebox-upstream-request-id"] == "req_1"
    assert raw.parse().choices[0].finish_reason == "stop"


async def test_a_stream_names_its_hold_before_its_first_byte(
    gateway: Farebox, upstream: FakeUpstream, client: AsyncOpenAI
) -> None:
    asked = client.chat.completions.with_streaming_response.create(model=MODEL, messages=SAY, stream=True)
    async with asked as response:
        assert response.headers["x-farebox-hold"] == response.request_id
        assert "x-farebox-cost" not in response.headers, "nobody knows it yet"
        lines = [line async for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    await assert_charged(gateway, await upstream.received())


async def test_models(client: AsyncOpenAI) -> None:
    page = await client.models.list()
    assert {model.id for model in page.data} == {MODEL, FREE_MODEL}
    model = await client.models.retrieve(MODEL)
    assert (model.id, model.object) == (MODEL, "model")
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("no-such-model")


async def test_a_lowered_cap_is_told(gateway: Farebox, upstream: FakeUpstream) -> None:
    # 1,000 nanos: the prompt's bound and some output, far from the model's maximum.
    _, key = await make_wallet(gateway.app.database, "0.000001")
    upstream.default = Completion(output_tokens=10_000)
    async with AsyncOpenAI(base_url=gateway.base_url, api_key=key) as client:
        raw = await client.chat.completions.with_raw_response.create(model=MODEL, messages=SAY)
    cap = int(raw.headers["x-farebox-output-cap"])
    usage = raw.parse().usage
    assert usage is not None
    assert usage.completion_tokens == cap


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_with_an_idempotency_key_is_charged_once(
    gateway: Farebox, upstream: FakeUpstream, client: AsyncOpenAI, stream: bool
) -> None:
    async def text(temperature: float = 1.0) -> str:
        reply: Any = await client.chat.completions.create(
            model=MODEL,
            messages=SAY,
            stream=stream,
            temperature=temperature,
            extra_headers={"Idempotency-Key": "invoice-7"},
        )
        if stream:
            return "".join([chunk.choices[0].delta.content or "" async for chunk in reply])
        return str(reply.choices[0].message.content)

    gate = Gate()
    upstream.default = Completion(gate=gate)
    first = asyncio.create_task(text())
    await gate.arrived()
    # It is told to wait, and does: the SDK tries a 409 again.
    again = asyncio.create_task(text())
    await until(lambda: gateway.app.metrics.idempotency.labels("running").value > 0)
    gate.open()
    assert await again == await first == await text()
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        await text(0.5)
    assert caught.value.code == "idempotency_key_reused"
    (served,) = upstream.log
    await assert_charged(gateway, served)


# Refusals and failures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "kind", "code"),
    [
        ({"model": "no-such-model"}, openai.NotFoundError, "model_not_found"),
        ({"messages": []}, openai.BadRequestError, "invalid_request"),
        ({"n": 0}, openai.BadRequestError, "invalid_request"),
        ({"max_completion_tokens": -1}, openai.BadRequestError, "invalid_request"),
    ],
)
async def test_what_is_refused_is_the_sdks_own_error(
    gateway: Farebox,
    upstream: FakeUpstream,
    client: AsyncOpenAI,
    members: dict[str, Any],
    kind: type[openai.APIStatusError],
    code: str,
) -> None:
    with pytest.raises(kind) as caught:
        await client.chat.completions.create(**{"model": MODEL, "messages": SAY} | members)
    assert caught.value.code == code
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id
    assert not upstream.log
    assert await gateway.usage() == []


async def test_an_unknown_key(gateway: Farebox, upstream: FakeUpstream) -> None:
    async with AsyncOpenAI(base_url=gateway.base_url, api_key="fb-unknown") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.chat.completions.create(model=MODEL, messages=SAY)
    assert caught.value.code == "invalid_api_key"
    assert not upstream.log


async def test_a_suspended_wallet(gateway: Farebox, upstream: FakeUpstream, client: AsyncOpenAI) -> None:
    await wallets.set_status(gateway.app.database, gateway.wallet_id, "suspended")
    with pytest.raises(openai.PermissionDeniedError) as caught:
        await client.chat.completions.create(model=MODEL, messages=SAY)
    assert caught.value.code == "wallet_suspended"
    assert not upstream.log


async def test_insufficient_funds_are_told_once_and_not_tried_again(
    shop: Shop, gateway: Farebox, upstream: FakeUpstream
) -> None:
    _, key = await make_wallet(gateway.app.database, "0.00000001")
    async with AsyncOpenAI(base_url=gateway.base_url, api_key=key) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(model=MODEL, messages=SAY)
    assert caught.value.status_code == 402
    assert caught.value.code == "insufficient_funds"
    body = caught.value.body
    assert isinstance(body, dict)
    assert body["available"] == "0.00000001"
    assert Decimal(body["required"]) > Decimal(body["available"])
    assert body["affordable_output_tokens"] == 0
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert shop.count("farebox_refused_total", step="refused", code="insufficient_funds") == 1
    assert not upstream.log


@pytest.mark.parametrize("stream", [False, True])
async def test_a_retry_is_a_call_of_its_own_and_only_the_one_that_answered_is_charged(
    gateway: Farebox, upstream: FakeUpstream, client: AsyncOpenAI, stream: bool
) -> None:
    upstream.next(failure(500, **SOON), failure(500, **SOON), Completion())
    reply: Any = await client.chat.completions.create(model=MODEL, messages=SAY, stream=stream)
    if stream:
        assert [chunk async for chunk in reply]
    await settled(gateway)
    events = await gateway.usage()
    assert sorted(event["resolution"] for event in events) == ["settled", "voided", "voided"]
    assert len({event["hold_id"] for event in events}) == len(upstream.log) == 3
    await assert_charged(gateway, upstream.log[-1])


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        (RATE_LIMITED, openai.RateLimitError),
        (BROKEN, openai.InternalServerError),
        (UNAUTHORIZED, openai.AuthenticationError),
    ],
    ids=["rate limited", "broken", "our key refused"],
)
async def test_the_upstreams_refusal_reaches_the_caller_and_costs_nothing(
    gateway: Farebox, upstream: FakeUpstream, client: AsyncOpenAI, behaviour: Any, kind: type[openai.APIStatusError]
) -> None:
    upstream.default = behaviour
    with pytest.raises(kind):
        await client.with_options(max_retries=0).chat.completions.create(model=MODEL, messages=SAY)
    await assert_charged(gateway)
    assert [event["resolution"] for event in await gateway.usage()] == ["voided"]


async def test_a_stream_that_breaks_off_raises(gateway: Farebox, upstream: FakeUpstream, client: AsyncOpenAI) -> None:
    upstream.default = Completion(end=End.CLOSE, end_after_events=4)
    stream = await client.chat.completions.create(model=MODEL, messages=SAY, stream=True)
    with pytest.raises(openai.APIError) as caught:
        await anext(chunk async for chunk in stream if chunk.choices[0].finish_reason)
    assert caught.value.code == "upstream_broke"
    await settled(gateway)
    (event,) = await gateway.usage()
    assert (event["basis"], event["reason"]) == ("estimated", "upstream_broke")


async def test_a_client_that_leaves_pays_for_what_was_used(
    gateway: Farebox, upstream: FakeUpstream, client: AsyncOpenAI
) -> None:
    gate = Gate()
    upstream.default = Completion(gate=gate, gate_at_event=5)
    async with await client.chat.completions.create(model=MODEL, messages=SAY, stream=True) as stream:
        async for _ in stream:
            break
    gate.open()
    served = await (await upstream.received()).finished()
    assert served.completed, "the upstream was read to its end for the exact usage"
    await assert_charged(gateway, served)


async def test_a_gateway_that_stops_says_so_and_the_sdk_tries_again(gateway: Farebox, client: AsyncOpenAI) -> None:
    gateway.app.gateway.stopping = True
    with pytest.raises(openai.InternalServerError) as caught:
        await client.with_options(max_retries=0).chat.completions.create(model=MODEL, messages=SAY)
    assert caught.value.status_code == 503
    assert caught.value.response.headers["retry-after"] == "2"
    gateway.app.gateway.stopping = False
    await client.chat.completions.create(model=MODEL, messages=SAY)
