"""What the upstream says, frame by frame; what cannot be read means nothing."""

import orjson
import pytest

from gateway.endpoints.realtime_events import FromUpstream, Kind, read_upstream, with_error_id
from tests.support.realtime import frame


@pytest.mark.parametrize("event_id", [None, "the client's"])
def test_an_error_is_about_the_frame_as_its_client_named_it(event_id: str | None) -> None:
    error = frame("error", error={"code": "x", "event_id": "ours"})
    assert orjson.loads(with_error_id(error, event_id))["error"] == {"code": "x", "event_id": event_id}
    deep = b'{"type":"error","error":{"event_id":"ours","x":' + b"[" * 400 + b"]" * 400 + b"}}"
    assert with_error_id(deep, event_id) is deep


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (frame("response.created", response={"id": "r"}), FromUpstream(Kind.CREATED, "r")),
        (
            frame("response.done", response={"id": "r", "status": "failed", "usage": {"total_tokens": 1}}),
            FromUpstream(Kind.DONE, "r", {"total_tokens": 1}, "failed"),
        ),
        (frame("response.done", response={"usage": []}), FromUpstream(Kind.DONE)),
        (frame("response.done"), FromUpstream(Kind.DONE)),
        (
            frame("response.output_audio.delta", response_id="r", delta="AAAA"),
            FromUpstream(Kind.OUTPUT, "r", audio_bytes=3),
        ),
        (frame("response.audio.delta", response_id="r", delta="AAAA"), FromUpstream(Kind.OUTPUT, "r", audio_bytes=3)),
        (frame("response.text.delta", response_id="r", delta="é"), FromUpstream(Kind.OUTPUT, "r", text_bytes=2)),
        (
            frame("response.function_call_arguments.delta", response_id="r", delta="{}"),
            FromUpstream(Kind.OUTPUT, "r", text_bytes=2),
        ),
        (frame("response.text.delta", response_id="r", delta=None), FromUpstream(Kind.OTHER)),
        (frame("input_audio_buffer.committed", item_id="i"), FromUpstream(Kind.COMMITTED, "i")),
        (
            frame(
                "conversation.item.input_audio_transcription.completed",
                item_id="i",
                transcript="Hi",
                usage={"seconds": 1},
            ),
            FromUpstream(Kind.TRANSCRIBED, "i", {"seconds": 1}, text_bytes=2),
        ),
        (
            frame("conversation.item.input_audio_transcription.failed", item_id="i"),
            FromUpstream(Kind.NOT_TRANSCRIBED, "i"),
        ),
        (frame("error", error={"event_id": "e"}), FromUpstream(Kind.ERROR, "e")),
        (frame("rate_limits.updated"), FromUpstream(Kind.OTHER)),
        (b"{not json", FromUpstream(Kind.OTHER)),
        (b"[]", FromUpstream(Kind.OTHER)),
        (b'{"type":5}', FromUpstream(Kind.OTHER)),
    ],
)
def test_what_the_upstream_says(data: bytes, expected: FromUpstream) -> None:
    assert read_upstream(data) == expected


def test_a_session_that_the_upstream_announces() -> None:
    seen = read_upstream(frame("session.created", session={"max_output_tokens": "inf", "tools": [{"type": "mcp"}]}))
    assert seen.session is not None
    assert (seen.kind, seen.status, seen.session.is_unbounded) == (Kind.SESSION, "created", True)
    odd = read_upstream(frame("session.updated", session={"tools": [{"type": "other"}]}))
    assert odd.session is not None
    assert (odd.status, odd.session.is_unbounded) == ("updated", True)
