"""The demo upstream is an OpenAI upstream to the official SDK, and its usage is what it sent."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from aiohttp.test_utils import TestClient, TestServer
from openai.types.chat import ChatCompletionUserMessageParam

from gateway.web.demo_upstream import MODELS, demo_app, read_chat_request

HELLO: ChatCompletionUserMessageParam = {"role": "user", "content": "Hello there"}
# 3 to begin with, 3 for the message, 11 bytes in quarters.
HELLO_TOKENS = 3 + 3 + 3


@pytest.fixture
async def server() -> AsyncIterator[TestServer]:
    running = TestServer(demo_app(pause_seconds=0))
    async with running:
        yield running


@pytest.fixture
async def sdk(server: TestServer) -> AsyncIterator[openai.AsyncOpenAI]:
    base_url = str(server.make_url("/v1"))
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        yield client


async def test_plain(sdk: openai.AsyncOpenAI) -> None:
    reply = await sdk.chat.completions.create(model="demo-chat", messages=[HELLO], n=2)
    text = reply.choices[1].message.content
    assert text is not None
    assert "11 characters" in text
    assert [choice.finish_reason for choice in reply.choices] == ["stop", "stop"]
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == HELLO_TOKENS
    assert reply.usage.completion_tokens == 2 * len(text.split())
    assert reply.usage.total_tokens == HELLO_TOKENS + reply.usage.completion_tokens


@pytest.mark.parametrize("include_usage", [True, False])
async def test_stream(sdk: openai.AsyncOpenAI, include_usage: bool) -> None:
    plain = await sdk.chat.completions.create(model="demo-free", messages=[HELLO])
    stream = await sdk.chat.completions.create(
        model="demo-free", messages=[HELLO], stream=True, stream_options={"include_usage": include_usage}, n=2
    )
    chunks = [chunk async for chunk in stream]
    texts = ["", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [plain.choices[0].message.content] * 2
    words = len(texts[0].split())
    usages = [chunk.usage for chunk in chunks if chunk.usage]
    assert [(one.prompt_tokens, one.completion_tokens) for one in usages] == [(HELLO_TOKENS, 2 * words)] * include_usage
    assert all("usage" in chunk.model_fields_set for chunk in chunks) is include_usage


@pytest.mark.parametrize("cap", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("stream", [True, False])
async def test_cap_is_honoured(server: TestServer, cap: str, stream: bool) -> None:
    body = {"model": "demo-chat", "messages": [HELLO], "stream": stream, cap: 5}
    async with TestClient(server) as client, client.post("/v1/chat/completions", json=body) as response:
        text = await response.text()
    assert '"finish_reason":"length"' in text
    assert text.count('"content":" ') == 4 if stream else '"completion_tokens":5,' in text


async def test_models(sdk: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in sdk.models.list()] == list(MODELS)


BAD: list[tuple[dict[str, Any], int, str | None]] = [
    ({"model": "gpt-4o"}, 404, "model"),
    ({"messages": []}, 400, "messages"),
    ({"messages": ["hello"]}, 400, "messages.0"),
    ({"messages": [HELLO, {"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages.1.content"),
    ({"messages": [{"role": "user", "content": "x" * 70_000}]}, 400, "messages"),
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"max_completion_tokens": 4097}, 400, "max_completion_tokens"),
    ({"n": True}, 400, "n"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
]


@pytest.mark.parametrize(("fields", "status", "param"), BAD)
async def test_refusals_are_openai_errors(
    server: TestServer, fields: dict[str, Any], status: int, param: str | None
) -> None:
    body = {"model": "demo-chat", "messages": [HELLO], **fields}
    async with TestClient(server) as client, client.post("/v1/chat/completions", json=body) as response:
        error = (await response.json())["error"]
    assert (response.status, error["param"]) == (status, param)
    assert set(error) == {"message", "type", "param", "code"}


async def test_unknown_paths_are_openai_errors(server: TestServer) -> None:
    async with TestClient(server) as client:
        for method, path, status in [("GET", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405)]:
            async with client.request(method, path) as response:
                assert response.status == status
                assert "message" in (await response.json())["error"]
        async with client.post("/v1/chat/completions", data=b"{") as response:
            assert response.status == 400


def test_content_parts_are_one_text() -> None:
    body = b'{"model":"demo-chat","messages":[{"role":"user","content":[{"text":"ab"},{"text":"cd"}]},{"role":"a"}]}'
    asked = read_chat_request(body)
    assert (asked.prompt_tokens, asked.prompt_characters) == (3 + (3 + 1) + 3, 4)
