"""Text completions: prompts in four shapes, candidates, caps; streams that begin with the prompt."""

from typing import Any

import orjson
import pytest

from gateway.endpoints.completions import PROMPT_TOKENS_MAX, PROMPTS_MAX, TEMPLATE_TOKENS_MAX, CompletionsEndpoint
from gateway.endpoints.endpoint import Changes, Endpoint, InvalidRequest
from tests.support.recordings import LIMITS

ENDPOINT: Endpoint = CompletionsEndpoint()
BAD_PROMPTS: list[object] = [
    7, {}, [], [[]], ["a", 1], ["a", [1]], [True], [-1], [1.0], [[1], [True]], [[1], ["a"]], [None],
]  # fmt: skip


def body(**members: Any) -> bytes:
    return orjson.dumps({"model": "m", "prompt": "Once upon a time"} | members)


def refusal(request: bytes) -> tuple[str | None, str]:
    with pytest.raises(InvalidRequest) as refused:
        ENDPOINT.read_request(request)
    return refused.value.param, refused.value.code


@pytest.mark.parametrize(
    ("members", "choices", "cap"),
    [
        ({}, 1, None),
        ({"prompt": None}, 1, None),
        ({"max_tokens": 0}, 1, 0),
        ({"max_tokens": 7, "n": 3}, 3, 7),
        ({"n": 2, "best_of": 5}, 5, None),
        ({"prompt": ["a", "b", "c"], "n": 2, "max_tokens": 16}, 6, 16),
        ({"prompt": [1, 2, 3]}, 1, None),
        ({"prompt": [[1, 2], [3]], "best_of": 4}, 8, None),
    ],
)
def test_every_candidate_of_every_prompt_is_bounded(members: dict[str, Any], choices: int, cap: int | None) -> None:
    request = ENDPOINT.read_request(body(**members))
    assert (request.choices, request.output_tokens_cap) == (choices, cap)


@pytest.mark.parametrize(
    ("members", "bound", "estimate"),
    [
        ({"prompt": [1] * 900}, 900 + TEMPLATE_TOKENS_MAX + PROMPT_TOKENS_MAX, 900),
        ({"prompt": [[1] * 40, [2] * 60]}, 100 + TEMPLATE_TOKENS_MAX + 2 * PROMPT_TOKENS_MAX, 100),
        ({"prompt": "x" * 400}, len(body(prompt="x" * 400)) + TEMPLATE_TOKENS_MAX + PROMPT_TOKENS_MAX, 107),
        # The suffix goes into every prompt.
        (
            {"prompt": ["a", "b", "c"], "suffix": "é" * 50},
            len(body(prompt=["a", "b", "c"], suffix="é" * 50)) + 200 + TEMPLATE_TOKENS_MAX + 3 * PROMPT_TOKENS_MAX,
            87,
        ),
        ({"prompt": [5], "suffix": "x" * 40}, 1 + 40 + TEMPLATE_TOKENS_MAX + PROMPT_TOKENS_MAX, 11),
    ],
)
def test_input_bound_and_estimate(members: dict[str, Any], bound: int, estimate: int) -> None:
    request = ENDPOINT.read_request(body(**members))
    assert (request.input_tokens_max, request.input_tokens_estimate) == (bound, estimate)


@pytest.mark.parametrize(
    ("members", "refused"),
    [
        *[({"prompt": prompt}, ("prompt", "invalid_request")) for prompt in BAD_PROMPTS],
        ({"prompt": ["a"] * (PROMPTS_MAX + 1)}, ("prompt", "invalid_request")),
        ({"max_tokens": -1}, ("max_tokens", "invalid_request")),
        ({"max_tokens": "7"}, ("max_tokens", "invalid_request")),
        ({"n": 0}, ("n", "invalid_request")),
        ({"best_of": 129}, ("best_of", "invalid_request")),
        ({"suffix": 1}, ("suffix", "invalid_request")),
        ({"echo": "yes"}, ("echo", "invalid_request")),
        ({"service_tier": 1}, ("service_tier", "invalid_request")),
        ({"n_predict": 5}, ("n_predict", "not_metered")),
        ({"max_completion_tokens": 5}, ("max_completion_tokens", "not_metered")),
        ({"prompt_embeds": "AAAA"}, ("prompt_embeds", "not_metered")),
        ({"Max_Tokens": 5}, ("max_tokens", "duplicate_member")),
        ({"model": None}, ("model", "invalid_request")),
    ],
)  # fmt: skip
def test_what_decides_the_cost_is_checked(members: dict[str, Any], refused: tuple[str, str]) -> None:
    assert refusal(body(**members)) == refused


@pytest.mark.parametrize(
    ("before", "changes", "after"),
    [
        (b'{"x":1}', {"output_tokens_cap": 9}, b'{"max_tokens":9,"x":1}'),
        (b'{"max_tokens":20}', {"output_tokens_cap": 9, "cap_member": "max_completion_tokens"}, b'{"max_tokens":9}'),
        (b'{"max_tokens":null}', {"output_tokens_cap": 9}, b'{"max_tokens":9}'),
        (b'{"model":"m"}', {"model": "n", "include_usage": True},
         b'{"stream_options":{"include_usage":true},"model":"n"}'),
    ],
)  # fmt: skip
def test_upstream_body(before: bytes, changes: dict[str, Any], after: bytes) -> None:
    assert ENDPOINT.upstream_body(before, Changes(**changes)) == after


def test_a_prompt_that_is_repeated_is_no_output() -> None:
    prompt = "Once upon a time, " * 20
    echoed = b'data: {"choices":[{"index":0,"text":%b}]}\n\n' % orjson.dumps(prompt)
    told = b'data: {"choices":[{"index":0,"text":"there was a fox."}]}\n\n'
    for echo, tokens in ((True, 4), (False, 94)):
        request = ENDPOINT.read_request(body(prompt=prompt, stream=True, echo=echo, max_tokens=1))
        reader = ENDPOINT.reply_reader("text/event-stream", request)
        assert reader is not None
        assert reader.feed(echoed + told) == echoed + told
        assert reader.output_tokens_estimate() == tokens
        assert reader.output_seen


def test_a_stream_removes_the_usage_that_nobody_asked_for() -> None:
    usage_only = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n'
    for wanted, out in ((False, b""), (True, usage_only)):
        request = ENDPOINT.read_request(body(stream=True, stream_options={"include_usage": wanted}))
        reader = ENDPOINT.reply_reader("text/event-stream", request)
        assert reader is not None
        assert reader.feed(usage_only) + reader.finish() == out
    assert ENDPOINT.reply_reader("application/json", request) is None


def test_a_whole_reply() -> None:
    seen = ENDPOINT.read_reply(b'{"choices":[{"text":"12345678"}],"usage":{"prompt_tokens":3,"completion_tokens":2}}')
    assert (seen.count_output(), seen.failed) == (2, False)
    assert seen.usage is not None
    reading = ENDPOINT.read_usage(seen.usage, LIMITS)
    assert reading is not None
    assert reading.quantities == {"input": 3, "output": 2}
