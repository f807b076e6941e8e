"""Replies of completions, embeddings and moderations, as they look at the upstream."""

import base64
import struct
from collections.abc import Mapping
from typing import Any

# At 1 and 4 nanos a token: 13.
TEXT_USAGE = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
_TEXT = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m"}


def _choice(text: str, reason: str | None) -> dict[str, Any]:
    return {"index": 0, "text": text, "finish_reason": reason, "logprobs": None}


COMPLETION: Mapping[str, Any] = {**_TEXT, "choices": [_choice(" something.", "stop")], "usage": TEXT_USAGE}
COMPLETION_CHUNKS: tuple[Mapping[str, Any], ...] = (
    {**_TEXT, "choices": [_choice(" some", None)]},
    {**_TEXT, "choices": [_choice("thing.", "stop")]},
    {**_TEXT, "choices": [], "usage": TEXT_USAGE},
)


def _vector(*numbers: float) -> str:
    """Little-endian 32-bit floats, as both SDKs ask for them."""
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


EMBEDDINGS: Mapping[str, Any] = {
    "object": "list",
    "model": "m",
    "data": [
        {"object": "embedding", "index": 0, "embedding": _vector(0.5, -1)},
        {"object": "embedding", "index": 1, "embedding": _vector(0.25, 2)},
    ],
    "usage": {"prompt_tokens": 2, "total_tokens": 2},
}
MODERATION: Mapping[str, Any] = {"id": "modr-1", "model": "m", "results": [{"flagged": False}]}
