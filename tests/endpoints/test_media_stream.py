"""Streams of sound and images: events of any size in pieces of any size; usage is found, and the end waits."""

import base64

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.sse import EVENT_BYTES_MAX
from gateway.endpoints.media_stream import MediaStream, error_event
from gateway.endpoints.transcription import TranscriptCounter

USAGE = {"input_tokens": 3, "output_tokens": 5, "total_tokens": 8}
LARGE = base64.b64encode(bytes(EVENT_BYTES_MAX * 2)).decode()


def event(newline: str = "\n", **members: object) -> bytes:
    kind = members.get("type")
    return f"event: {kind}{newline}data: {orjson.dumps(members).decode()}{newline}{newline}".encode()


def reader() -> MediaStream:
    return MediaStream(TranscriptCounter())


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("piece", [1_000_000, 65_536, 1_021])
def test_megabytes_in_one_event(newline: str, piece: int) -> None:
    partial = event(newline, type="image_generation.partial_image", b64_json=LARGE)
    completed = event(newline, type="image_generation.completed", b64_json=LARGE, usage=USAGE)
    data = partial + partial + completed
    stream, out = reader(), b""
    for at in range(0, len(data), piece):
        out += stream.feed(data[at : at + piece])
    assert stream.usage == USAGE
    assert stream.ended
    assert partial + partial == data[: len(out)][: len(partial) * 2]
    # What is withheld ends the event: without it no client has the image.
    held = stream.finish()
    assert out + held == data
    assert held.rstrip().endswith(b"}")
    assert 3 < len(held) <= 64


def test_usage_may_come_before_the_image() -> None:
    stream = reader()
    stream.feed(event(usage=USAGE, type="image_edit.completed", b64_json=LARGE))
    assert (stream.usage, stream.ended) == (USAGE, True)


def test_small_events_pass_at_once_and_the_end_waits() -> None:
    stream = reader()
    delta = event(type="transcript.text.delta", delta="Hi")
    done = event(type="transcript.text.done", text="Hi", usage=USAGE)
    assert stream.feed(delta) == delta
    assert stream.feed(done) == b""
    assert stream.feed(b"data: [DONE]\n\n") == b""
    assert stream.finish() == done + b"data: [DONE]\n\n"
    assert stream.usage == USAGE


def test_a_last_event_without_its_blank_line_counts() -> None:
    stream = reader()
    done = event(type="transcript.text.done", text="Hi", usage=USAGE).rstrip()
    stream.feed(done)
    assert stream.finish() == done
    assert stream.usage == USAGE


def test_an_error_event_is_a_failure() -> None:
    for data in (error_event({"error": {"message": "no"}}), event(type="error", message="no")):
        stream = reader()
        stream.feed(data)
        assert stream.failed


@settings(max_examples=60, deadline=None)
@given(
    events=st.lists(st.sampled_from(["delta", "large", "done", "comment"]), max_size=4),
    cuts=st.lists(st.integers(0, 1_500_000), max_size=8),
)
def test_any_split_reads_the_same(events: list[str], cuts: list[int]) -> None:
    texts = {
        "delta": event(type="transcript.text.delta", delta="Hello"),
        "large": event("\r\n", type="speech.audio.delta", audio=LARGE),
        "done": event(type="speech.audio.done", usage=USAGE),
        "comment": b": waiting\n\n",
    }
    if "done" in events:
        # What follows the end is dropped where it is larger than can be withheld.
        events = events[: events.index("done") + 1]
    data = b"".join(texts[name] for name in events)

    def read(where: list[int]) -> tuple[object, ...]:
        stream, out, at = reader(), b"", 0
        for cut in [*sorted(where), len(data)]:
            out += stream.feed(data[at:cut])
            at = max(at, cut)
        out += stream.finish()
        assert out == data
        return stream.usage, stream.ended, stream.failed, stream.output_tokens_estimate()

    assert read(cuts) == read([])
