"""Embeddings: texts or tokens in, bounded by their bytes; usage found without reading the vectors."""

from typing import Any

import orjson
import pytest

from gateway.core.usage import Limits
from gateway.endpoints.embeddings import INPUT_TOKENS_MAX, INPUTS_MAX, EmbeddingsEndpoint
from gateway.endpoints.endpoint import Changes, Endpoint, InvalidRequest, Output

ENDPOINT: Endpoint = EmbeddingsEndpoint()
LIMITS = Limits(8_192, 8_192)
BAD_INPUTS: list[object] = [
    None, 7, {}, [], [[]], ["a", 1], [True], [-1], [1.5], [{"image": "u"}], [[1], ["a"]], [None],
]  # fmt: skip
USAGE = {"prompt_tokens": 8, "total_tokens": 8}


def body(**members: Any) -> bytes:
    return orjson.dumps({"model": "m", "input": "x"} | members)


@pytest.mark.parametrize(
    ("given", "number", "bound", "estimate"),
    [
        ("", 1, 0, 0),
        ("x" * 41, 1, 41, 11),
        ("é" * 10, 1, 20, 5),
        # One character of 3 bytes that some models read as 18 characters of 33 bytes.
        ("\ufdfa", 1, 33, 1),
        (["abc", "é"], 2, 5, 2),
        ([1, 2, 3], 1, 3, 3),
        ([[1] * 50, [7]], 2, 51, 51),
    ],
)
def test_input_bound_and_estimate(given: object, number: int, bound: int, estimate: int) -> None:
    request = ENDPOINT.read_request(body(input=given))
    assert request.passes == number
    assert request.input_tokens_max == bound + INPUT_TOKENS_MAX * number
    assert request.input_tokens_estimate == estimate
    assert (request.output, request.outputs, request.output_units) == (Output.NONE, (), {})


@pytest.mark.parametrize(
    ("members", "refused"),
    [
        *[({"input": given}, ("input", "invalid_request")) for given in BAD_INPUTS],
        ({"input": ["a"] * (INPUTS_MAX + 1)}, ("input", "invalid_request")),
        ({"messages": []}, ("messages", "not_metered")),
        ({"images": ["u"]}, ("images", "not_metered")),
        ({"model": 7}, ("model", "invalid_request")),
        ({"INPUT": "y"}, ("input", "duplicate_member")),
    ],
)
def test_what_decides_the_cost_is_checked(members: dict[str, Any], refused: tuple[str, str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ENDPOINT.read_request(body(**members))
    assert (caught.value.param, caught.value.code) == refused


def test_only_the_model_is_ever_changed() -> None:
    before = b'{"model":"m", "input":"x"}'
    wanted = Changes(include_usage=True, output_tokens_cap=5, cap_member="max_tokens")
    assert ENDPOINT.upstream_body(before, wanted._replace(model="n")) == b'{"model":"n", "input":"x"}'
    assert ENDPOINT.upstream_body(before, wanted) is before


def reply(vectors: object, **members: object) -> bytes:
    return orjson.dumps({"object": "list", "data": vectors, "model": "m"} | members)


VECTORS = [{"object": "embedding", "index": 0, "embedding": [0.25] * 500}]


@pytest.mark.parametrize(
    ("seen_body", "usage"),
    [
        (reply(VECTORS, usage=USAGE), USAGE),
        (reply(VECTORS, usage=USAGE) + b"\n", USAGE),
        (reply([], usage=USAGE), USAGE),
        (b'{"usage":{"prompt_tokens":8,"total_tokens":8},' + reply(VECTORS)[1:], USAGE),
        (b"\xef\xbb\xbf" + reply(VECTORS, usage=USAGE), USAGE),
        (reply(VECTORS, usage=USAGE, x=1.5).replace(b"0.25", b"NaN"), USAGE),
        (reply(VECTORS), None),
        (reply(VECTORS, usage=None), None),
        # Nested, or in a text: none of these is the reply's own usage.
        (reply(VECTORS, x={"usage": {"prompt_tokens": 1}}), None),
        (reply(VECTORS, x=[{"usage": {"prompt_tokens": 1}}]), None),
        (reply(VECTORS, x='"usage":{"prompt_tokens":1}}'), None),
        (reply(VECTORS, x="usage"), None),
    ],
)
def test_usage_is_found_wherever_it_stands(seen_body: bytes, usage: object) -> None:
    seen = ENDPOINT.read_reply(seen_body)
    assert (seen.usage, seen.failed) == (usage, False)
    assert seen.count_output() == (1 if b'"data":[{' in seen_body else 0)


@pytest.mark.parametrize("vectors", [[], VECTORS])
def test_an_error_is_no_reply(vectors: object) -> None:
    failed = b'{"error":{"message":"busy"},' + reply(vectors, usage=USAGE)[1:]
    assert ENDPOINT.read_reply(failed).failed
    assert ENDPOINT.read_reply(b"<html>").count_output() == 0
    assert ENDPOINT.read_reply(b"[]").usage is None


def test_usage_has_no_output() -> None:
    for usage in (USAGE, {"prompt_tokens": 8}, {"prompt_tokens": 8, "completion_tokens": 0, "total_tokens": 8}):
        reading = ENDPOINT.read_usage(usage, LIMITS)
        assert reading is not None
        assert reading.quantities == {"input": 8}
    assert ENDPOINT.read_usage({"prompt_tokens": 0, "total_tokens": 0}, LIMITS) is None
