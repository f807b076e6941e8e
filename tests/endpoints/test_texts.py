"""Which texts of a request may be counted instead of their bytes: only those whose bytes its bound is made of."""

from typing import Any

import orjson
import pytest

from gateway.core.tokens import Text
from gateway.endpoints.texts import texts_of

CHAT = "chat.completions"


def chat(*messages: object, **members: object) -> bytes:
    return orjson.dumps({"model": "gpt-4o", "messages": messages, **members})


def user(content: object, **members: object) -> dict[str, object]:
    return {"role": "user", "content": content, **members}


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        (chat(user("Hello")), [Text("Hello")]),
        (chat(user("one"), user("two", name="me")), [Text("one"), Text("two")]),
        (chat(user([{"type": "text", "text": "part"}])), [Text("part")]),
        (chat({"role": "assistant", "content": None, "refusal": "no", "reasoning_content": "why"}), ["no", "why"]),
        (chat({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}), [Text("{}")]),
        (chat({"role": "assistant", "tool_calls": [{"custom": {"name": "f", "input": "raw"}}]}), [Text("raw")]),
        # What is no text, or is bounded otherwise, is not looked into.
        (chat(user([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "text": "no"}}])), []),
        (chat(user([{"type": "input_audio", "input_audio": {"data": "AAAA", "text": "no"}}])), []),
        (chat(user("Hello"), user([{"type": "file", "file": {"file_data": "AAAA"}}])), []),
        (
            chat(user("Hello"), prediction={"type": "content", "content": "no"}, metadata={"text": "no"}),
            [Text("Hello")],
        ),
        # A template renders these anew: their bytes are in the bound twice.
        (
            chat(
                tools=[{"type": "function", "function": {"name": "f", "description": "does", "parameters": {}}}],
                functions=[{"name": "g", "parameters": {"properties": {"description": {"description": "is"}}}}],
                response_format={"json_schema": {"schema": {"description": "of"}}},
            ),
            [Text("does", 2), Text("is", 2), Text("of", 2)],
        ),
        (b"[]", []),
        (chat(), []),
        (orjson.dumps({"messages": "none"}), []),
        (orjson.dumps({"messages": ["none", None, 1]}), []),
    ],
)
def test_the_texts_of_a_chat(body: bytes, texts: list[Any]) -> None:
    wanted = [Text(one) if isinstance(one, str) else one for one in texts]
    assert texts_of(CHAT, body) == wanted


@pytest.mark.parametrize(("endpoint", "member"), [("completions", "prompt"), ("embeddings", "input")])
@pytest.mark.parametrize(
    ("given", "texts"),
    [("one", ["one"]), (["one", "two"], ["one", "two"]), ([1, 2], []), ([[1], [2]], []), (None, [])],
)
def test_texts_that_are_all_of_the_input(endpoint: str, member: str, given: object, texts: list[str]) -> None:
    body = orjson.dumps({"model": "m", member: given, "suffix": "no"})
    assert texts_of(endpoint, body) == [Text(one) for one in texts]


def test_half_a_surrogate_pair_is_read_as_the_upstream_reads_it() -> None:
    assert texts_of(CHAT, b'{"messages":[{"content":"a\\ud800"}]}') == [Text("a�")]


def test_an_endpoint_that_is_not_named_has_none() -> None:
    assert texts_of("images.generations", chat(user("Hello"))) == []
