"""A stream is relayed as it arrives, but for its end; what it used and what it carried is seen on the way.

The recordings of many upstreams, at every split, are in tests/properties/test_sse_split.py.
"""

import orjson
import pytest

from gateway.core.sse import EVENT_BYTES_MAX
from gateway.endpoints.chat_stream import UNCOUNTED_BYTES_MAX, WITHHELD_BYTES_MAX, ChatStream

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
DONE = b"data: [DONE]\n\n"


def event(document: object) -> bytes:
    return b"data: " + orjson.dumps(document) + b"\n\n"


def delta(**members: object) -> bytes:
    return event({"choices": [{"index": 0, "delta": members}], "usage": None})


USAGE_ONLY = event({"choices": [], "usage": USAGE})
TEXT = delta(content="text")

ODD_CHUNKS: tuple[object, ...] = ({}, [], 1, "text", None, {"choices": None}, {"choices": {}}, {"choices": [[], 7]})


def estimate(*reads: bytes) -> int:
    reader = ChatStream(remove_usage=True)
    for read in reads:
        reader.feed(read)
    reader.finish()
    assert reader.output_seen == (reader.output_tokens_estimate() > 0)
    return reader.output_tokens_estimate()


@pytest.mark.parametrize(
    ("reads", "fed", "finished"),
    [
        ((TEXT, USAGE_ONLY, DONE), [TEXT, b"", b""], USAGE_ONLY + DONE),
        ((TEXT + USAGE_ONLY + DONE,), [TEXT], USAGE_ONLY + DONE),
        # More of the stream releases what waited for the end; a comment does not, and keeps its place.
        ((USAGE_ONLY, TEXT, DONE), [b"", USAGE_ONLY + TEXT, b""], DONE),
        ((USAGE_ONLY, b": wait\n\n", TEXT), [b"", b"", USAGE_ONLY + b": wait\n\n" + TEXT], b""),
        ((USAGE_ONLY, USAGE_ONLY, DONE), [b"", USAGE_ONLY, b""], USAGE_ONLY + DONE),
        ((DONE, TEXT, b": bye\n\n", b"tail"), [b"", b"", b"", b""], DONE + TEXT + b": bye\n\ntail"),
        ((b"data: [DO", b"NE]\n", b"\n"), [b"", b"", b""], DONE),
        ((b"data: [DONE]",), [b""], b"data: [DONE]"),
        ((b"data:[DONE] x\r\n\r\n",), [b""], b"data:[DONE] x\r\n\r\n"),
        ((TEXT, b"data: cut"), [TEXT, b""], b"data: cut"),
        ((USAGE_ONLY, b"data: cut"), [b"", b""], USAGE_ONLY + b"data: cut"),
        ((b": wait\n\n", b"\n", b"event: ping\n\n"), [b": wait\n\n", b"\n", b"event: ping\n\n"], b""),
    ],
)
def test_the_end_is_withheld(reads: tuple[bytes, ...], fed: list[bytes], finished: bytes) -> None:
    reader = ChatStream(remove_usage=False)
    assert [reader.feed(read) for read in reads] == fed
    assert reader.finish() == finished
    assert reader.finish() == b""


@pytest.mark.parametrize(
    ("reads", "out"),
    [
        ((TEXT, USAGE_ONLY, DONE), TEXT + DONE),
        ((USAGE_ONLY, TEXT, USAGE_ONLY, DONE, USAGE_ONLY), TEXT + DONE),
        # The second half of a CRLF goes where its event went.
        ((USAGE_ONLY.replace(b"\n\n", b"\r\n\r"), b"\n" + TEXT), TEXT),
        ((b"data: [DONE]\r\n\r", b"\n"), b"data: [DONE]\r\n\r\n"),
        ((b": c\r\n\r", b"\n"), b": c\r\n\r\n"),
        # An upstream that leaves out its last blank line.
        ((TEXT, USAGE_ONLY.rstrip()), TEXT),
        ((TEXT + USAGE_ONLY.rstrip() + b"\n",), TEXT),
        # Not usage alone: a choice, an empty list of choices without usage, no choices at all, an error.
        ((event({"choices": [{}], "usage": USAGE}),), event({"choices": [{}], "usage": USAGE})),
        ((event({"choices": [], "usage": None}),), event({"choices": [], "usage": None})),
        ((event({"choices": []}),), event({"choices": []})),
        ((event({"usage": USAGE}),), event({"usage": USAGE})),
        ((event({"choices": None, "usage": USAGE}),), event({"choices": None, "usage": USAGE})),
        ((event({"choices": [], "usage": [1]}),), event({"choices": [], "usage": [1]})),
        ((event({"choices": [], "usage": USAGE, "error": "e"}),), event({"choices": [], "usage": USAGE, "error": "e"})),
    ],
)
def test_usage_only_events_are_removed(reads: tuple[bytes, ...], out: bytes) -> None:
    """https://github.com/BerriAI/litellm/issues/28735: an injected usage chunk breaks clients that index choices."""
    reader = ChatStream(remove_usage=True)
    assert b"".join(reader.feed(read) for read in reads) + reader.finish() == out


def test_what_was_relayed_is_not_seen_to_wait() -> None:
    reader = ChatStream(remove_usage=False)
    for _ in range(3):
        assert reader.feed(TEXT) == TEXT
        assert reader.feed(TEXT[:20]) == b""
        assert reader.feed(TEXT[20:] + TEXT) == TEXT + TEXT


@pytest.mark.parametrize(
    ("chunks", "usage"),
    [
        ([{"usage": USAGE}], USAGE),
        ([{"x_groq": {"usage": USAGE}}], USAGE),
        ([{"x_groq": {"usage": {"prompt_tokens": 9}}, "usage": USAGE}], USAGE),
        ([{"usage": USAGE}, {"usage": None}, {"usage": {}}, {"usage": {"prompt_tokens": 0}}], USAGE),
        ([{"usage": {"prompt_tokens": 3, "completion_tokens": 1}}, {"usage": USAGE}], USAGE),
        ([{"usage": [1]}, {"usage": "12"}, {"usage": 5}, {"x_groq": [{"usage": USAGE}]}], None),
        ([[{"usage": USAGE}]], None),
        ([{"choices": [{"delta": {"content": '{"usage":{"prompt_tokens":3}}'}}]}], None),
        ([{"choices": [{"usage": USAGE, "delta": {"usage": USAGE}}]}], None),
    ],
)
def test_usage(chunks: list[object], usage: object) -> None:
    reader = ChatStream(remove_usage=False)
    for chunk in chunks:
        reader.feed(event(chunk))
    assert reader.usage == usage
    in_one_read = ChatStream(remove_usage=False)
    in_one_read.feed(b"".join(map(event, chunks)) + event({"usage": None}))
    assert in_one_read.usage == usage


def test_usage_after_the_end_counts() -> None:
    reader = ChatStream(remove_usage=False)
    reader.feed(TEXT + DONE)
    assert (reader.ended, reader.usage) == (True, None)
    reader.feed(USAGE_ONLY)
    assert reader.usage == USAGE


@pytest.mark.parametrize(
    ("chunk", "failed"),
    [
        ({"error": {"message": "m", "code": 502}, "choices": [{"delta": {"content": "text"}}]}, True),
        ({"error": "text"}, True),
        ({"object": "error", "message": {"detail": []}}, True),
        ({"type": "error", "code": "c", "message": "text"}, True),
        ({"error": None, "choices": []}, False),
        ({"error": {}, "choices": []}, False),
        ({"choices": [{"error": "text"}]}, False),
        ({"choices": [{"delta": {"content": '"error":{}'}}]}, False),
    ],
)
def test_error(chunk: dict[str, object], failed: bool) -> None:
    """https://github.com/QuantumNous/new-api/issues/5287: the text of an error is not output."""
    reader = ChatStream(remove_usage=False)
    assert reader.feed(event(chunk)) == event(chunk)
    assert reader.failed == failed
    assert not (failed and reader.output_seen)


@pytest.mark.parametrize(
    ("reads", "tokens"),
    [
        ((), 0),
        ((delta(role="assistant", content=""), delta()), 0),
        ((TEXT,), 1),
        ((TEXT, TEXT, TEXT), 3),
        ((delta(content="a" * 4_001),), 1_001),
        ((delta(content="\n\"\\é天🙂\u0007"),), 4),  # 1+1+1+2+3+4+1 bytes
        ((delta(content=None, reasoning_content="12345"),), 2),
        ((delta(reasoning="12345", reasoning_content="12345"),), 2),
        ((delta(refusal="12345"), delta(content="1", refusal="1234")), 3),
        ((delta(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": ""}}]),), 1),
        ((delta(tool_calls=[{"function": {"arguments": "12345"}}, {"custom": {"input": "1234"}}]),), 3),
        ((delta(function_call={"name": "f", "arguments": "12345"}),), 2),
        ((delta(content=[{"type": "thinking", "thinking": [{"text": "123"}]}, {"type": "text", "text": "45"}]),), 2),
        ((event({"choices": [{"text": "12345", "index": 0}]}),), 2),
        ((event({"choices": [{"delta": {"content": "12345"}, "text": "12345"}]}),), 2),
        ((event({"choices": [{"delta": {"content": "a"}}, {"delta": {"content": "b"}}]}),), 2),
        ((event({"choices": [{"delta": {"content": {"text": "12345"}}}, None, 7, {"delta": [1]}]}),), 2),
        # What is not a chunk carries nothing.
        (tuple(map(event, ODD_CHUNKS)), 0),
        ((b"data: {\n\n", b"data: \xff\xfe\n\n", b"data: \x00\n\n", b"data:\n\n", b"\n\n\n"), 0),
        ((b"data: " + b"[" * 100_000 + b"\n\n",), 0),
        # Half of a surrogate pair, as JavaScript cuts it, counts as the character that stands for it.
        ((b'data: {"choices":[{"delta":{"content":"ab\\ud83d"}}]}\n\n',), 2),
        ((b'data: {"choices":[{"delta":{"role":"a","content":"ab\\ud83d"}}]}\n\n',), 2),
    ],
)  # fmt: skip
def test_estimate(reads: tuple[bytes, ...], tokens: int) -> None:
    assert estimate(*reads) == tokens
    assert estimate(b"".join(reads)) == tokens
    assert estimate(b"".join(reads).replace(b"\n", b"\r\n")) == tokens
    # In a block that is read event by event, the same.
    assert estimate(b"".join(reads) + USAGE_ONLY) == tokens


def test_estimate_can_be_asked_at_any_time() -> None:
    reader = ChatStream(remove_usage=False)
    for count in range(1, 500):
        reader.feed(delta(content="token"))
        if count % 100 == 0:
            assert reader.output_tokens_estimate() == max(count, -(-count * 5 // 4))
    assert reader.output_seen


@pytest.mark.parametrize("chunk", [b'{"choices":[{"delta":{"content":"a\\nb"}}]}', b'{"choices":[{"text":"a\\nb"}]}'])
def test_little_is_kept_to_be_counted(chunk: bytes) -> None:
    reader = ChatStream(remove_usage=False)
    for _ in range(5_000):
        reader.feed(b"data: " + chunk + b"\n\n")
        assert len(reader._uncounted) <= UNCOUNTED_BYTES_MAX
    assert reader.output_tokens_estimate() == 5_000


def test_event_over_the_limit_is_relayed_and_counts_as_one_token() -> None:
    large = delta(content="x" * EVENT_BYTES_MAX)
    for reads in ((large,), (large[:300_000], large[300_000:]), (large[:100], large[100:])):
        reader = ChatStream(remove_usage=True)
        assert b"".join(reader.feed(read) for read in reads) == large
        assert reader.output_tokens_estimate() == 1
        assert reader.feed(TEXT) == TEXT
        assert reader.output_tokens_estimate() == 2


def test_an_event_over_the_limit_releases_what_waited() -> None:
    reader = ChatStream(remove_usage=False)
    assert reader.feed(USAGE_ONLY) == b""
    large = b"data: " + b"x" * EVENT_BYTES_MAX
    assert reader.feed(large) == USAGE_ONLY + large
    assert reader.feed(b"\n\n" + TEXT + DONE) == b"\n\n" + TEXT
    assert reader.finish() == DONE


def test_endless_stream_after_its_end_takes_no_memory() -> None:
    reader = ChatStream(remove_usage=True)
    reader.feed(DONE)
    for _ in range(200):
        assert reader.feed(b"data: " + b"x" * 10_000) == b""
    assert reader.feed(b": c\n\n" * 10_000) == b""
    finished = reader.finish()
    assert finished.startswith(DONE)
    assert len(finished) == WITHHELD_BYTES_MAX


def test_endless_comments_after_usage_release_it() -> None:
    reader = ChatStream(remove_usage=False)
    comment = b": " + b"x" * 50_000 + b"\n\n"
    out = reader.feed(USAGE_ONLY) + b"".join(reader.feed(comment) for _ in range(30)) + reader.feed(TEXT)
    assert len(reader._withheld) == 0
    assert out == USAGE_ONLY + comment * 30 + TEXT


def test_what_is_released_keeps_its_order() -> None:
    reader = ChatStream(remove_usage=False)
    comment = b": " + b"x" * 200_000 + b"\r\n\r"
    reads = (USAGE_ONLY, comment, b"\n", comment, b"\n", comment, b"\n", TEXT, DONE)
    assert b"".join(reader.feed(read) for read in reads) + reader.finish() == b"".join(reads)


@pytest.mark.parametrize(
    "block",
    [
        delta(content="the usage of errors") + TEXT,
        TEXT + b": comment\n\n" + TEXT,
        b"event: message\n" + TEXT,
        b"\n\n" + TEXT,
        event({"choices": [{"delta": {"content": "a"}}], "error": None, "usage": None}),
        b'data: {"choices":[{"delta":{"content":"a"}}], "usage": null, "error": null}\n\n',
        b'data: {"choices":\ndata: [{"delta":{"content":"a"}}]}\n\n',
    ],
)
def test_ordinary_blocks_pass_as_they_are(block: bytes) -> None:
    reader = ChatStream(remove_usage=True)
    assert reader.feed(block) == block
    assert (reader.usage, reader.failed, reader.ended, reader.output_seen) == (None, False, False, True)
    assert reader.finish() == b""


def test_a_chunk_that_only_lenient_parsers_read_counts() -> None:
    stream = ChatStream(remove_usage=True)
    chunk = (
        b'data: {"choices":[{"delta":{"content":"a"},"p":NaN}],"usage":{"prompt_tokens":3,"completion_tokens":9}}\n\n'
    )
    assert stream.feed(chunk) == chunk
    assert stream.usage == {"prompt_tokens": 3, "completion_tokens": 9}
    assert stream.output_seen


@pytest.mark.parametrize("cut", [0, 60, 400])
def test_the_tier_is_the_one_beside_the_usage(cut: int) -> None:
    """Whichever other chunks are read: that depends on where the reads fall."""
    said = b'data: {"choices":[{"delta":{"content":"the usage"}}],"service_tier":"flex"}\n\n'
    used = b'data: {"choices":[],"service_tier":"priority","usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
    late = b'data: {"choices":[],"service_tier":"auto","usage":null,"error":null,"x":"usage"}\n\n'
    whole = said + used + late
    reader = ChatStream(remove_usage=False)
    out = reader.feed(whole[:cut]) + reader.feed(whole[cut:]) + reader.finish()
    assert (out, reader.service_tier) == (whole, "priority")
