"""A whole reply of completions: its usage and its output are read, however it is spelled, and errors are none."""

import pytest

from gateway.core.usage import read_token_usage
from gateway.endpoints.completion_reply import read_completion
from tests.support.recordings import LIMITS, REPLIES, Reply


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: reply.name)
def test_recorded_reply(reply: Reply) -> None:
    seen = read_completion(reply.body)
    assert (seen.count_output(), seen.failed) == (reply.output_tokens_estimate, reply.failed)
    reading = None if seen.usage is None else read_token_usage(seen.usage, LIMITS)
    assert (None if reading is None else reading.quantities) == reply.quantities
    assert (0 if reading is None else reading.reasoning_tokens) == reply.reasoning_tokens


@pytest.mark.parametrize(
    "reply",
    [b"", b"<html>busy</html>", b"[]", b"7", b'"text"', b"\xff", b'{"usage":[1],"choices":{}}', b"{", b"[" * 100_000,
     b'{"usage":"5","choices":null}', b'{"choices":[1,null,{"message":[]},{"message":{"content":7}}]}'[:-1]],
)  # fmt: skip
def test_a_reply_that_is_none_holds_no_output(reply: bytes) -> None:
    seen = read_completion(reply)
    assert (seen.usage, seen.count_output(), seen.failed) == (None, 0, False)


def test_an_error_in_a_reply_is_not_output() -> None:
    seen = read_completion(b'{"error":{"message":"m"},"choices":[{"message":{"content":"an error text"}}]}')
    assert (seen.count_output(), seen.failed) == (0, True)
    assert not read_completion(b'{"error":null,"choices":[]}').failed


@pytest.mark.parametrize(
    "reply",
    [
        b'\xef\xbb\xbf{"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5}}',
        b'{"choices":[],"x":NaN,"usage":{"prompt_tokens":10,"completion_tokens":5}}',
        b'{"choices":["\xff"],"usage":{"prompt_tokens":10,"completion_tokens":5}}',
        b'{"choices":[],"x":%b,"usage":{"prompt_tokens":10,"completion_tokens":5}}' % (b"[" * 2_000 + b"]" * 2_000),
        b'{"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5}} {}',
        b'data: {"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5}}\n\ndata: [DONE]\n\n',
    ],
    ids=["BOM", "NaN", "bad UTF-8", "deep", "more after it", "events"],
)
def test_usage_is_found_in_a_reply_that_only_lenient_parsers_read(reply: bytes) -> None:
    seen = read_completion(reply)
    assert seen.usage == {"prompt_tokens": 10, "completion_tokens": 5}
    assert not seen.failed


def test_the_tier_of_service_is_read() -> None:
    assert read_completion(b'{"choices":[],"service_tier":"flex"}').service_tier == "flex"
    assert read_completion(b'{"choices":[],"service_tier":7}').service_tier == ""
