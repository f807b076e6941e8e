"""One call of each metered endpoint, and what each row of the outcome matrix makes of it, worked out by hand.

Prices: 1 nano an input token, 4 an output token; a moderation is 7 nanos. An endpoint that is added gets a line in
CASES, or its path in ELSEWHERE where its rows are tests of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from tests.support.gateway import MODEL

MODERATION_MODEL = "test-moderation"
MODERATION_PICOS = 7_000

Resolved = tuple[int, str, str | None]

_TEXT = "x" * 76  # 19 tokens by its size
_USAGE = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
_IMPOSSIBLE = {"prompt_tokens": -5, "completion_tokens": 20, "total_tokens": 15}
_DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Case:
    """`whole` is the reply with usage, `missing` and `impossible` the same without, and with such as cannot be true.
    `prompt_nanos` is what is charged where nothing came: the request alone, by its size.

    `stream` is for endpoints that stream: what the request has more, the events with usage, how many of them carry
    output before `cut`, and what the first `cut` events cost.
    """

    endpoint: str
    path: str
    request: Mapping[str, Any]
    whole: bytes
    exact: Resolved
    missing: tuple[bytes, Resolved]
    impossible: tuple[bytes, Resolved]
    prompt_nanos: int
    model: str = MODEL
    stream: "Streamed | None" = None

    def __str__(self) -> str:
        return self.endpoint


@dataclass(frozen=True, slots=True)
class Streamed:
    """`relayed_nanos` is the charge where the upstream breaks, or the drain ends, after all but usage and the end."""

    events: tuple[bytes, ...]
    missing: tuple[tuple[bytes, ...], Resolved]
    impossible: tuple[tuple[bytes, ...], Resolved]
    relayed_nanos: int
    prompt_nanos: int
    endless: bytes  # one event of output that may be repeated
    members: Mapping[str, Any] = field(default_factory=lambda: {"stream": True})


def _event(**members: Any) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(members)


def _streamed(choice: dict[str, Any], prompt_nanos: int) -> Streamed:
    """Two events with half of the text each, then usage, then the end."""
    halves = (_event(choices=[choice]),) * 2
    relayed = prompt_nanos + 4 * 19
    return Streamed(
        events=(*halves, _event(choices=[], usage=_USAGE), _DONE),
        missing=((*halves, _DONE), (relayed, "estimated", "usage_missing")),
        impossible=((*halves, _event(choices=[], usage=_IMPOSSIBLE), _DONE), (relayed, "estimated", "usage_invalid")),
        relayed_nanos=relayed,
        prompt_nanos=prompt_nanos,
        endless=halves[0],
    )


def _generated(endpoint: str, path: str, request: dict[str, Any], prompt: tuple[int, int], stream: bool) -> Case:
    """`prompt` is the estimate of the request, and of the same with `"stream":true`."""
    is_chat = endpoint.startswith("chat")
    choice: dict[str, Any] = {"message": {"content": _TEXT}} if is_chat else {"text": _TEXT}
    half: dict[str, Any] = {"delta": {"content": _TEXT[:38]}} if is_chat else {"text": _TEXT[:38]}
    estimate = prompt[0] + 4 * 19

    def reply(**members: Any) -> bytes:
        return orjson.dumps({"id": "reply", "choices": [{"index": 0} | choice]} | members)

    return Case(
        endpoint=endpoint,
        path=path,
        request={"model": MODEL} | request,
        whole=reply(usage=_USAGE),
        exact=(90, "reported", None),
        missing=(reply(), (estimate, "estimated", "usage_missing")),
        impossible=(reply(usage=_IMPOSSIBLE), (estimate, "estimated", "usage_invalid")),
        prompt_nanos=prompt[0],
        stream=_streamed({"index": 0} | half, prompt[1]) if stream else None,
    )


def _embedded(**members: Any) -> bytes:
    return orjson.dumps({"object": "list", "data": [{"embedding": [0.5] * 400}], "model": MODEL} | members)


_FLAGGED = orjson.dumps({"id": "modr-1", "results": [{"flagged": False}]})
_FEE: Resolved = (7, "reported", None)

CASES = (
    # 78 bytes, and 92 with `"stream":true`.
    _generated(
        "chat.completions",
        "/chat/completions",
        {"messages": [{"role": "user", "content": "Say something."}]},
        (20, 23),
        stream=True,
    ),
    # 48 bytes, and 62.
    _generated("completions", "/completions", {"prompt": "Say something."}, (12, 16), stream=True),
    Case(
        endpoint="embeddings",
        path="/embeddings",
        request={"model": MODEL, "input": "Say something."},
        whole=_embedded(usage={"prompt_tokens": 3, "total_tokens": 3}),
        exact=(3, "reported", None),
        missing=(_embedded(), (4, "estimated", "usage_missing")),
        impossible=(_embedded(usage={"prompt_tokens": 3, "total_tokens": 1}), (4, "estimated", "usage_invalid")),
        prompt_nanos=4,
    ),
    # There is no usage to miss: a request is what is charged.
    Case(
        endpoint="moderations",
        path="/moderations",
        request={"model": MODERATION_MODEL, "input": "Say something."},
        whole=_FLAGGED,
        exact=_FEE,
        missing=(_FLAGGED, _FEE),
        impossible=(_FLAGGED.replace(b"}]}", b'}],"usage":{"prompt_tokens":-5}}'), _FEE),
        prompt_nanos=7,
        model=MODERATION_MODEL,
    ),
)
ELSEWHERE: frozenset[str] = frozenset(
    {
        *("/responses", "/responses/compact"),
        *("/images/generations", "/images/edits", "/images/variations"),
        *("/audio/speech", "/audio/transcriptions", "/audio/translations"),
    }
)
STREAMED = tuple(case for case in CASES if case.stream is not None)
