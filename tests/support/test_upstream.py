"""The fake upstream is an OpenAI upstream to the official SDK, and breaks in exactly the way it is told to."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest
import yarl
from openai.types.chat import ChatCompletionUserMessageParam

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
    Wire,
)
from tests.support.call import Call, Gate, Served
from tests.support.completion import IMPOSSIBLE_USAGES, MISSING_USAGES, Usage, absent, doubled, growing, read_asked
from tests.support.upstream import FakeUpstream, closed_port

ONE_TWO: ChatCompletionUserMessageParam = {"role": "user", "content": "one two three"}
# 3 + 3 for the message + 13 bytes of text in quarters.
ONE_TWO_TOKENS = 3 + 3 + 4
TOOL: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as fake:
        yield fake


@pytest.fixture
async def sdk(upstream: FakeUpstream) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=upstream.base_url, api_key="sk-test", max_retries=0) as client:
        yield client


async def raw(upstream: FakeUpstream, **fields: object) -> tuple[aiohttp.ClientResponse, bytes]:
    """The whole reply without an SDK in between."""
    body = {"model": "m", "messages": [ONE_TWO], **fields}
    async with (
        aiohttp.ClientSession(auto_decompress=False) as session,
        session.post(f"{upstream.base_url}/chat/completions", json=body) as response,
    ):
        return response, await response.read()


def events(body: bytes) -> list[bytes]:
    return [line.removeprefix(b"data: ") for line in body.splitlines() if line.startswith(b"data: ")]


# The SDK -------------------------------------------------------------------------------------------------------------


async def test_sdk_plain(upstream: FakeUpstream, sdk: openai.AsyncOpenAI) -> None:
    reply = await sdk.chat.completions.create(model="gpt-x", messages=[ONE_TWO], n=2, max_completion_tokens=4)
    assert [choice.message.content for choice in reply.choices] == ["one two three one"] * 2
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (ONE_TWO_TOKENS, 8)
    served = await (await upstream.received()).finished()
    assert (served.method, served.raw_path, served.completed) == ("POST", "/v1/chat/completions", True)
    assert (served.prompt_tokens, served.completion_tokens, served.output_tokens_sent) == (ONE_TWO_TOKENS, 8, 8)
    assert served.headers["authorization"] == "Bearer sk-test"
    assert json.loads(served.body)["model"] == "gpt-x"
    assert upstream.tokens == (ONE_TWO_TOKENS, 8)


@pytest.mark.parametrize("include_usage", [True, False])
async def test_sdk_stream(upstream: FakeUpstream, sdk: openai.AsyncOpenAI, include_usage: bool) -> None:
    stream = await sdk.chat.completions.create(
        model="gpt-x",
        messages=[ONE_TWO],
        stream=True,
        stream_options={"include_usage": include_usage},
        extra_headers={"x-request-id": "req-mine"},
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert len(text.split()) == 20
    usages = [chunk.usage for chunk in chunks if chunk.usage]
    assert [(one.prompt_tokens, one.completion_tokens) for one in usages] == [(ONE_TWO_TOKENS, 20)] * include_usage
    served = await (await upstream.received()).finished()
    # A role chunk, the tokens, the finish chunk, perhaps the usage, and [DONE].
    assert served.events_sent == 1 + 20 + 1 + include_usage + 1
    assert (served.completed, served.client_left, served.request_id) == (True, False, "req-mine")
    assert len(served.usage_objects) == include_usage


async def test_sdk_tools(upstream: FakeUpstream, sdk: openai.AsyncOpenAI) -> None:
    upstream.default = Completion(tool_call=True)
    reply = await sdk.chat.completions.create(model="m", messages=[ONE_TWO], tools=[TOOL])
    assert reply.choices[0].message.tool_calls is not None
    assert reply.choices[0].finish_reason == "tool_calls"
    stream = await sdk.chat.completions.create(model="m", messages=[ONE_TWO], tools=[TOOL], stream=True)
    deltas = [chunk.choices[0].delta async for chunk in stream]
    names = [call.function.name for delta in deltas for call in delta.tool_calls or [] if call.function]
    assert names[0] == "look"


async def test_sdk_errors(upstream: FakeUpstream, sdk: openai.AsyncOpenAI) -> None:
    table: list[tuple[Behaviour, type[Exception]]] = [
        (UNAUTHORIZED, openai.AuthenticationError),
        (RATE_LIMITED, openai.RateLimitError),
        (BROKEN, openai.InternalServerError),
        (HTML, openai.InternalServerError),
        (ResetBeforeHeaders(), openai.APIConnectionError),
        (CloseBeforeHeaders(), openai.APIConnectionError),
    ]
    for behaviour, expected in table:
        upstream.next(behaviour)
        with pytest.raises(expected):
            await sdk.chat.completions.create(model="m", messages=[ONE_TWO])
    assert upstream.tokens == (0, 0)
    assert [served.client_left for served in upstream.log] == [False] * len(table)


async def test_sdk_leaves_mid_stream(upstream: FakeUpstream, sdk: openai.AsyncOpenAI) -> None:
    upstream.default = Completion(endless=True)
    stream = await sdk.chat.completions.create(model="m", messages=[ONE_TWO], stream=True)
    async for _ in stream:
        break
    await stream.close()
    served = await (await upstream.received()).finished()
    assert served.client_left
    assert not served.completed


class NeverEnds:
    """Everything is said, but the body is not ended."""

    async def reply(self, call: Call) -> None:
        await call.start("text/event-stream")
        await call.send(b"data: [DONE]\n\n", last=True)
        await call.stall()


async def test_leaving_after_done_is_no_leaving(upstream: FakeUpstream) -> None:
    upstream.default = NeverEnds()
    async with aiohttp.ClientSession() as session:
        response = await session.post(f"{upstream.base_url}/chat/completions", json={"stream": True})
        async for data in response.content.iter_any():
            if b"[DONE]" in data:
                break
        response.close()  # before the chunk that ends the body, as the Python SDK does
        served = await (await upstream.received()).finished()
    assert (served.completed, served.client_left) == (True, False)


async def test_sdk_lists_models(sdk: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in sdk.models.list()] == ["gpt-4o-mini"]


# Breaking ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [End.CLOSE, End.RESET])
@pytest.mark.parametrize("stream", [True, False])
async def test_cut_reply(upstream: FakeUpstream, end: End, stream: bool) -> None:
    upstream.default = Completion(end=end, end_after_events=3)
    with pytest.raises(aiohttp.ClientPayloadError) as caught:
        await raw(upstream, stream=stream)
    assert ("reset by peer" in str(caught.value)) is (end is End.RESET)
    served = await (await upstream.received()).finished()
    assert (served.completed, served.client_left) == (False, False)
    assert served.events_sent == (3 if stream else 0)


@pytest.mark.parametrize(("end", "tail"), [(End.ERROR, b"{"), (End.ERROR_DONE, b"[DONE]")])
async def test_error_event(upstream: FakeUpstream, end: End, tail: bytes) -> None:
    upstream.default = Completion(end=end, end_after_events=2)
    _, body = await raw(upstream, stream=True)
    assert b'"error"' in body
    assert events(body)[-1].startswith(tail)
    assert (upstream.log[0].completed, upstream.log[0].client_left) == (False, False)


@pytest.mark.parametrize("behaviour", [StallBeforeHeaders(), Completion(end=End.STALL, end_after_events=2)])
async def test_stall_until_client_leaves(upstream: FakeUpstream, behaviour: StallBeforeHeaders | Completion) -> None:
    upstream.default = behaviour
    reading = asyncio.create_task(raw(upstream, stream=True))
    served = await upstream.received()
    if isinstance(behaviour, Completion):
        await served.sent_events(2)
    reading.cancel()
    await asyncio.wait([reading])
    assert (await served.finished()).client_left


@pytest.mark.parametrize("at_event", [None, 0, 4])
async def test_gate(upstream: FakeUpstream, at_event: int | None) -> None:
    gate = Gate()
    upstream.default = Completion(gate=gate, gate_at_event=at_event)
    reading = asyncio.create_task(raw(upstream, stream=True))
    await gate.arrived()
    assert (upstream.log[0].status, upstream.log[0].events_sent) == (None if at_event is None else 200, at_event or 0)
    gate.open()
    await reading
    assert upstream.log[0].completed


@pytest.mark.parametrize("usage", [*MISSING_USAGES.values(), *IMPOSSIBLE_USAGES.values(), doubled, growing])
async def test_odd_usage_reaches_client(upstream: FakeUpstream, usage: Usage) -> None:
    upstream.default = Completion(usage=usage)
    _, whole = await raw(upstream)
    _, stream = await raw(upstream, stream=True, stream_options={"include_usage": True})
    honest = json.loads((await _honest(upstream))[1])["usage"]
    expected = list(usage(honest))
    assert len(expected) == (0 if usage is absent else 2 if usage in (doubled, growing) else 1)
    assert json.loads(whole).get("usage", "absent") == (expected[-1] if expected else "absent")
    chunks = [json.loads(event) for event in events(stream) if event != b"[DONE]"]
    assert [chunk["usage"] for chunk in chunks if not chunk["choices"]] == expected
    assert upstream.log[1].usage_objects == expected


async def _honest(upstream: FakeUpstream) -> tuple[aiohttp.ClientResponse, bytes]:
    upstream.next(Completion())
    return await raw(upstream)


@pytest.mark.parametrize(
    ("place", "mark"),
    [
        (UsagePlace.OWN_CHUNK_ALWAYS, '"choices":[],"usage":{'),
        (UsagePlace.FINISH_CHUNK, '"finish_reason":"stop"}],"usage":{'),
        (UsagePlace.X_GROQ, '"x_groq":{"usage":{'),
        (UsagePlace.AFTER_DONE, '[DONE]\n\ndata: {"id"'),
    ],
)
async def test_usage_places(upstream: FakeUpstream, place: UsagePlace, mark: str) -> None:
    upstream.default = Completion(usage_place=place)
    _, body = await raw(upstream, stream=True)
    assert mark in body.decode()


async def test_odd_streams(upstream: FakeUpstream) -> None:
    table: list[tuple[Completion, bytes, bytes]] = [
        (Completion(done=False), b'data: {"id"', b'"finish_reason":"stop"}]}\n\n'),
        (Completion(final_blank_line=False), b'data: {"id"', b"data: [DONE]\n"),
        (Completion(newline="\r\n"), b'data: {"id"', b"data: [DONE]\r\n\r\n"),
        (Completion(data_prefix="data:"), b'data:{"id"', b"data:[DONE]\n\n"),
        (Completion(bom=True), b"\xef\xbb\xbfdata: ", b"data: [DONE]\n\n"),
        (Completion(comment="keep-alive"), b": keep-alive\n\ndata: ", b"data: [DONE]\n\n"),
    ]
    for behaviour, head, tail in table:
        upstream.next(behaviour)
        _, body = await raw(upstream, stream=True)
        assert body.startswith(head)
        assert body.endswith(tail)
        assert upstream.log[-1].bytes_sent == len(body)


async def test_odd_sizes_and_forms(upstream: FakeUpstream) -> None:
    upstream.next(Completion(line_bytes_min=1 << 20), Completion(body_bytes_min=2 << 20, usage_first=True))
    _, body = await raw(upstream, stream=True)
    assert max(map(len, body.splitlines())) > 1 << 20
    _, body = await raw(upstream)
    assert len(body) > 2 << 20
    assert body.startswith(b'{"usage":{')
    upstream.next(Completion(form=Form.JSON), Completion(form=Form.SSE), Completion(gzip=True), ERROR_IN_200, EMPTY)
    response, body = await raw(upstream, stream=True)
    assert (response.content_type, json.loads(body)["object"]) == ("application/json", "chat.completion")
    response, body = await raw(upstream)
    assert (response.content_type, events(body)[-1]) == ("text/event-stream", b"[DONE]")
    response, body = await raw(upstream)
    assert (response.headers["content-encoding"], body[:2]) == ("gzip", b"\x1f\x8b")
    assert b"error" in (await raw(upstream))[1]
    assert (await raw(upstream))[1] == b""
    upstream.next(Completion(leading=b"\n\n\n"))
    _, body = await raw(upstream)
    assert body.startswith(b"\n\n\n{")


async def test_raw_pieces_are_read_apart(upstream: FakeUpstream) -> None:
    pieces = [b'data: {"a', b'":1}\n', b"\nda", b"ta: [DONE]\n\n"]
    upstream.default = RawStream(pieces)
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{upstream.base_url}/chat/completions", json={"stream": True}) as response,
    ):
        assert [data async for data in response.content.iter_any()] == pieces


async def test_wire(upstream: FakeUpstream) -> None:
    upstream.default = Wire([b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{", b"}"])
    response, body = await raw(upstream)
    assert (response.version, body) == (aiohttp.HttpVersion10, b"{}")


async def test_log_of_refused_calls(upstream: FakeUpstream) -> None:
    async with aiohttp.ClientSession() as session:
        for path, body, status in [("/v1/nothing?a=%2F", b"{}", 404), ("/v1/chat/completions", b"no json", 400)]:
            async with session.post(yarl.URL(upstream.url + path, encoded=True), data=body) as response:
                assert response.status == status
    assert [(served.raw_path, served.body) for served in upstream.log] == [
        ("/v1/nothing?a=%2F", b"{}"),
        ("/v1/chat/completions", b"no json"),
    ]


async def test_choose_and_script(upstream: FakeUpstream) -> None:
    upstream.default = Choose(lambda asked: Completion(output_tokens=1) if asked.model == "m" else UNAUTHORIZED)
    upstream.next(Status(503))
    statuses = [(await raw(upstream, model=model))[0].status for model in ("m", "m", "other")]
    assert statuses == [503, 200, 401]
    assert [served.completed for served in upstream.log] == [True, True, True]


async def test_leaving_aborts_open_calls() -> None:
    async with FakeUpstream(StallBeforeHeaders()) as upstream:
        reading = asyncio.create_task(raw(upstream))
        served: Served = await upstream.received()
    with pytest.raises(aiohttp.ClientConnectionError):
        await reading
    assert served.ended


async def test_closed_port_refuses() -> None:
    with closed_port() as port:
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientConnectorError):
                await session.get(f"http://127.0.0.1:{port}/")


def test_prompt_tokens_by_rule() -> None:
    parts = [{"type": "text", "text": "eight by"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    body = {"messages": [{"role": "system", "content": "abcde"}, {"role": "user", "content": parts}]}
    assert read_asked(json.dumps(body).encode()).prompt_tokens == 3 + 2 * 3 + 2 + 2
