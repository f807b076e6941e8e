"""Responses as an upstream writes them: the object, and the events of its stream."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

RESPONSE_ID = "resp_0123456789abcdef"
WORDS = ("Say", " something", " kind", ".")


def usage_json(input_tokens: int, output_tokens: int, *, cached: int = 0, reasoning: int = 0) -> dict[str, Any]:
    """U2 of the metering reference."""
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": input_tokens + output_tokens,
    }


def message_item(text: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [part]}


def response_json(
    *,
    response_id: str = RESPONSE_ID,
    status: str = "completed",
    output: Sequence[object] = (),
    usage: object = None,
    **members: object,
) -> dict[str, Any]:
    """A response; `members` go beside the usual ones."""
    return {
        "id": response_id,
        "object": "response",
        "created_at": 1_700_000_000,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": "test-model",
        "output": list(output),
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "service_tier": "default",
        "store": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        **members,
        "usage": usage,
    }


def event(kind: str, number: int, **members: object) -> bytes:
    document = {"type": kind, "sequence_number": number, **members}
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps(document))


def stream_events(
    last: Mapping[str, Any], words: Sequence[str] = WORDS, *, items: Sequence[object] = (), end: str | None = None
) -> list[bytes]:
    """The stream that ends with `last`: created, in progress, the words one by one, and items of tools."""
    begun = {**last, "status": "in_progress", "output": [], "usage": None, "service_tier": "auto"}
    kinds: list[tuple[str, dict[str, object]]] = [
        ("response.created", {"response": begun}),
        ("response.in_progress", {"response": begun}),
        ("response.output_item.added", {"output_index": 0, "item": message_item("")}),
    ]
    where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    kinds += [("response.output_text.delta", {**where, "delta": word, "logprobs": []}) for word in words]
    kinds.append(("response.output_text.done", {**where, "text": "".join(words)}))
    kinds += [("response.output_item.done", {"output_index": 1, "item": item}) for item in items]
    kinds.append((end or f"response.{last['status']}", {"response": dict(last)}))
    return [event(kind, number, **members) for number, (kind, members) in enumerate(kinds)]
