"""What a fake upstream answers: chat completions derived from the request, and usage in every shape an upstream has.

Everything here is a pure function of the request's body, so that a test can say beforehand what will be charged.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

Json = dict[str, Any]
# From the honest usage to the usage objects that are reported, in order: none, one or several.
Usage = Callable[[Json], Sequence[object]]

CREATED = 1_760_000_000
DEFAULT_MODEL = "gpt-4o-mini"


@dataclass(frozen=True, slots=True)
class Asked:
    """A chat request as the fake reads it. `output_tokens_cap` is per choice."""

    model: str
    stream: bool
    include_usage: bool
    choices: int
    output_tokens_cap: int | None
    prompt_tokens: int
    words: tuple[str, ...]
    tool_name: str | None
    tool_required: bool


def read_asked(body: bytes) -> Asked:
    """Raises ValueError where the body is no JSON object."""
    document = json.loads(body)
    if not isinstance(document, dict):
        raise ValueError("the body must be a JSON object")
    text = " ".join(_texts(document.get("messages") or []))
    options = document.get("stream_options") or {}
    cap = document.get("max_completion_tokens")
    tools = document.get("tools") or []
    return Asked(
        model=str(document.get("model", DEFAULT_MODEL)),
        stream=document.get("stream") is True,
        include_usage=options.get("include_usage") is True,
        choices=int(document.get("n") or 1),
        output_tokens_cap=cap if cap is not None else document.get("max_tokens"),
        prompt_tokens=prompt_tokens(document),
        words=tuple(text.split()) or ("nothing",),
        tool_name=tools[0]["function"]["name"] if tools else None,
        tool_required=document.get("tool_choice", "auto") not in ("auto", "none"),
    )


def prompt_tokens(document: Mapping[str, Any]) -> int:
    """Tokens of a chat request by a fixed rule: 3, then 3 per message, then one per started four bytes of text.

    Tool definitions count one per started four bytes of their compact JSON.
    """
    messages = document.get("messages") or []
    total = 3 + 3 * len(messages) + sum(_quarter(text) for text in _texts(messages))
    return total + sum(_quarter(json.dumps(tool, separators=(",", ":"))) for tool in document.get("tools") or [])


def honest_usage(asked: Asked, completion_tokens: int, *, cached_tokens: int = 0, reasoning_tokens: int = 0) -> Json:
    """OpenAI's usage object; the parts never exceed their wholes."""
    return {
        "prompt_tokens": asked.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": asked.prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": min(cached_tokens, asked.prompt_tokens), "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": min(reasoning_tokens, completion_tokens)},
    }


# Shapes of usage -----------------------------------------------------------------------------------------------------


def honest(usage: Json) -> Sequence[object]:
    return [usage]


def absent(usage: Json) -> Sequence[object]:
    return []


def doubled(usage: Json) -> Sequence[object]:
    """Twice the same: a gateway that adds them up charges double."""
    return [usage, usage]


def growing(usage: Json) -> Sequence[object]:
    """Cumulative: half of the output, then all of it."""
    return [{**usage, "completion_tokens": usage["completion_tokens"] // 2}, usage]


def zeros(usage: Json) -> Sequence[object]:
    return [{"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}]


def null(usage: Json) -> Sequence[object]:
    return [None]


def reported(usage: object) -> Usage:
    """Exactly this object, whatever was used."""
    return lambda _: [usage]


def changed(**fields: object) -> Usage:
    """Honest but for these fields."""
    return lambda usage: [{**usage, **fields}]


# Usage that says nothing: the reply is charged by the missing-usage rule.
MISSING_USAGES: Mapping[str, Usage] = MappingProxyType(
    {"absent": absent, "null": null, "zeros": zeros, "empty": reported({})}
)
# Usage that cannot be true: the same, and an alert.
IMPOSSIBLE_USAGES: Mapping[str, Usage] = MappingProxyType(
    {
        "negative prompt": changed(prompt_tokens=-5),
        "negative completion": changed(completion_tokens=-1_000_000),
        "huge": changed(completion_tokens=10**15),
        "past 64 bits": changed(prompt_tokens=2**70),
        "float": changed(completion_tokens=12.5),
        "string": changed(completion_tokens="20"),
        "boolean": changed(completion_tokens=True),
        "cached above prompt": changed(prompt_tokens_details={"cached_tokens": 10**6}),
        "reasoning above completion": changed(completion_tokens_details={"reasoning_tokens": 10**6}),
        "total below its parts": changed(total_tokens=1),
    }
)


# Bodies --------------------------------------------------------------------------------------------------------------


def choice_words(asked: Asked, tokens: int) -> Iterator[str]:
    """The prompt's words again and again, one token each."""
    for number in range(tokens):
        word = asked.words[number % len(asked.words)]
        yield word if number == 0 else f" {word}"


def completion_json(asked: Asked, reply_id: str, tokens: int, *, finish_reason: str, tool_call: bool) -> Json:
    """A `chat.completion` without its usage."""
    text = "".join(choice_words(asked, tokens))
    message: Json = {"role": "assistant", "content": text, "refusal": None}
    if tool_call:
        message = {**message, "content": None, "tool_calls": [_tool_call(asked, json.dumps({"text": text}))]}
    return {
        "id": reply_id,
        "object": "chat.completion",
        "created": CREATED,
        "model": asked.model,
        "choices": [
            {"index": index, "message": message, "logprobs": None, "finish_reason": finish_reason}
            for index in range(asked.choices)
        ],
    }


def chunk_json(asked: Asked, reply_id: str, choices: list[Json]) -> Json:
    """One `chat.completion.chunk`; with `usage: null` where the usage was asked for, as OpenAI does."""
    chunk: Json = {
        "id": reply_id,
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": asked.model,
        "choices": choices,
    }
    return {**chunk, "usage": None} if asked.include_usage else chunk


def delta_choice(index: int, delta: Json, finish_reason: str | None = None) -> Json:
    """One element of a chunk's `choices`."""
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def first_delta(asked: Asked, *, tool_call: bool) -> Json:
    """The delta that opens a choice."""
    if tool_call:
        return {"role": "assistant", "content": None, "tool_calls": [{"index": 0, **_tool_call(asked, "")}]}
    return {"role": "assistant", "content": "", "refusal": None}


def word_delta(word: str, *, tool_call: bool) -> Json:
    """The delta that carries one token."""
    if tool_call:
        return {"tool_calls": [{"index": 0, "function": {"arguments": word}}]}
    return {"content": word}


def error_json(message: str, *, kind: str = "server_error", code: str | None = None) -> Json:
    """OpenAI's error envelope."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def dump(document: object) -> bytes:
    """Compact UTF-8 JSON. The standard library's, because it can write integers past 64 bits."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def _tool_call(asked: Asked, arguments: str) -> Json:
    function = {"name": asked.tool_name or "tool", "arguments": arguments}
    return {"id": "call_0", "type": "function", "function": function}


def _texts(messages: Sequence[Any]) -> Iterator[str]:
    for message in messages:
        content = message.get("content") or ""
        if isinstance(content, str):
            yield content
        else:
            yield from (part["text"] for part in content if part.get("type") == "text")


def _quarter(text: str) -> int:
    return -(-len(text.encode()) // 4)
