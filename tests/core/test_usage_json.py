"""A reply too large to hold: passed on as it comes but for its last bytes, its usage found on the way."""

import orjson
import pytest

from gateway.core.usage_json import LargeReply

USAGE = {"prompt_tokens": 10, "completion_tokens": 20}
REPLY = orjson.dumps({"id": "x", "choices": [{"text": 'in {"usage": 1} text', "usage": {}}], "usage": USAGE})
KEPT_BYTES = 16


def pass_through(data: bytes, step_bytes: int) -> tuple[LargeReply, list[bytes]]:
    reply = LargeReply()
    return reply, [reply.feed(data[start : start + step_bytes]) for start in range(0, len(data), step_bytes)]


@pytest.mark.parametrize("step_bytes", [1, 5, KEPT_BYTES, KEPT_BYTES + 1, 10_000])
def test_all_bytes_pass_and_the_last_ones_wait(step_bytes: int) -> None:
    reply, passed = pass_through(REPLY, step_bytes)
    assert b"".join(passed) == REPLY[:-KEPT_BYTES]
    assert reply.is_complete
    assert reply.usage == USAGE
    assert reply.count_output() == -(-len(REPLY) // 4)
    assert reply.finish() == REPLY[-KEPT_BYTES:]
    assert reply.finish() == b""


@pytest.mark.parametrize("kept_back", [1, KEPT_BYTES, len(REPLY) - 1])
def test_a_reply_that_breaks_off_is_not_complete(kept_back: int) -> None:
    reply, passed = pass_through(REPLY[:-kept_back], 7)
    assert not reply.is_complete
    assert b"".join(passed) + reply.finish() == REPLY[:-kept_back]


@pytest.mark.parametrize(
    "usage", ["null", "7", '"text"', "[1]", '{"prompt_tokens": NaN}', '{"prompt_tokens": 1e999}', "{,}"]
)
def test_usage_that_is_no_object_is_none(usage: str) -> None:
    reply, _ = pass_through(b'{"a": 1, "usage": %s}' % usage.encode(), 3)
    assert reply.is_complete
    assert reply.usage is None


def test_no_usage_is_none() -> None:
    reply, _ = pass_through(b'{"choices": [{"usage": {"prompt_tokens": 1}}]}', 3)
    assert reply.is_complete
    assert reply.usage is None
