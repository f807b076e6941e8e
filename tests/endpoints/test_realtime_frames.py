"""Frames, one by one: what is counted, what is refused, and what is passed on as it came."""

from typing import Any

import orjson
import pytest

from gateway.endpoints.endpoint import InvalidRequest
from gateway.endpoints.realtime_frames import event_id_of, read_client, with_event_id, with_models
from tests.support.realtime import frame, sound

IMAGE = {"type": "input_image", "image_url": "data:image/png;base64," + "A" * 4_000}


def item(*content: object, kind: str = "message") -> bytes:
    return frame("conversation.item.create", item={"type": kind, "role": "user", "content": list(content)})


def test_what_each_frame_brings() -> None:
    append = read_client(frame("input_audio_buffer.append", audio=sound(1)))
    assert (append.audio_bytes, append.text_bytes, append.may_start, append.starts) == (48_000, 0, True, False)
    said = item({"type": "input_text", "text": "é" * 10}, {"type": "input_audio", "audio": sound(0.5)}, IMAGE)
    brought = read_client(said)
    assert (brought.audio_bytes, brought.images, brought.may_start, brought.is_unbounded) == (24_000, 1, False, False)
    assert 20 < brought.text_bytes < 300
    create = read_client(
        frame("response.create", response={"input": [orjson.loads(said)["item"]], "instructions": "x"})
    )
    assert (create.starts, create.may_start, create.images, create.sets_output_cap) == (True, True, 1, False)
    assert read_client(item(kind="mcp_approval_response")).is_unbounded
    assert read_client(item(kind="mcp_approval_response")).may_start


@pytest.mark.parametrize("name", ["max_output_tokens", "max_response_output_tokens"])
@pytest.mark.parametrize(("cap", "expected"), [(1, 1), (4_096, 4_096), ("inf", None), (None, None)])
def test_caps(name: str, cap: object, expected: int | None) -> None:
    create = read_client(frame("response.create", response={name: cap}))
    assert (create.sets_output_cap, create.output_cap) == (True, expected)
    update = read_client(frame("session.update", session={name: cap})).session
    assert update is not None
    assert (update.sets_output_cap, update.output_cap) == (True, expected)


def test_the_larger_of_two_caps_counts() -> None:
    both = {"max_output_tokens": 5, "max_response_output_tokens": 7}
    assert read_client(frame("response.create", response=both)).output_cap == 7


GA = {"audio": {"input": {"transcription": {"model": "t"}, "format": {"type": "audio/pcmu"}}}}
BETA = {"input_audio_transcription": {"model": "t"}, "input_audio_format": "g711_ulaw"}


@pytest.mark.parametrize("session", [GA, BETA])
def test_settings_of_a_session(session: dict[str, Any]) -> None:
    read = read_client(frame("session.update", session={**session, "model": "m"}))
    assert read.session is not None
    assert (read.model, read.session.transcription, read.session.is_g711) == ("m", "t", True)
    renamed = orjson.loads(with_models(read, "upstream-m", "upstream-t"))["session"]
    again = read_client(frame("session.update", session=renamed))
    assert again.session is not None
    assert (again.model, again.session.transcription) == ("upstream-m", "upstream-t")
    assert orjson.loads(read.data)["session"]["model"] == "m"


def test_transcription_that_ends() -> None:
    read = read_client(frame("session.update", session={"audio": {"input": {"transcription": None}}}))
    assert read.session is not None
    assert (read.session.sets_transcription, read.session.ends_transcription) == (True, True)


INVALID = "invalid_request"
REFUSED = {
    "no JSON": (b"{", "invalid_json", None),
    "nothing": (b"", "invalid_json", None),
    "not UTF-8": (b'{"type":"\xff"}', "invalid_json", None),
    "NaN": (b'{"type":"response.create","x":NaN}', "invalid_json", None),
    "no object": (b"[]", "invalid_json", None),
    "too deep": (b"[" * 5_000 + b"]" * 5_000, "invalid_json", None),
    "no type": (b"{}", "not_metered", "type"),
    "unknown type": (frame("response.steer"), "not_metered", "type"),
    "type of a list": (b'{"type":[]}', "not_metered", "type"),
    "type in capitals": (b'{"type":"response.cancel","Type":"response.create"}', "duplicate_member", "type"),
    "cap of zero": (frame("response.create", response={"max_output_tokens": 0}), INVALID, None),
    "negative cap": (frame("response.create", response={"max_output_tokens": -1}), INVALID, None),
    "fraction": (frame("response.create", response={"max_output_tokens": 1.5}), INVALID, None),
    "cap of true": (frame("session.update", session={"max_output_tokens": True}), INVALID, None),
    "huge cap": (frame("session.update", session={"max_output_tokens": 10**12}), INVALID, None),
    "cap in capitals": (frame("session.update", session={"Max_output_tokens": 1}), "duplicate_member", None),
    "session of text": (frame("session.update", session="x"), INVALID, "session"),
    "response of a list": (frame("response.create", response=[]), INVALID, "response"),
    "model of a number": (frame("session.update", session={"model": 1}), INVALID, "session.model"),
    "transcriber": (frame("session.update", session={"input_audio_transcription": {"model": 1}}), INVALID, None),
    "tool of a list": (frame("session.update", session={"tools": [{"type": []}, 5]}), "not_metered", None),
    "part of a list": (item({"type": []}), "not_metered", "item"),
    "input of text": (frame("response.create", response={"input": "x"}), INVALID, "response.input"),
    "item of text": (frame("conversation.item.create", item="x"), INVALID, "item"),
    "content of text": (item("x"), INVALID, "item.content"),
    "a file": (item({"type": "input_file", "file_id": "x"}), "not_metered", "item"),
    "a tool": (frame("session.update", session={"tools": [{"type": "web_search"}]}), "not_metered", "session.tools"),
    "tools of text": (frame("session.update", session={"tools": "x"}), INVALID, "session.tools"),
    "a tier": (frame("session.update", session={"service_tier": "priority"}), "not_metered", "session.service_tier"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_or_metered(name: str) -> None:
    data, code, param = REFUSED[name]
    with pytest.raises(InvalidRequest) as refused:
        read_client(data)
    assert refused.value.code == code
    assert param is None or refused.value.param == param


@pytest.mark.parametrize("member", [{"tools": [{"type": "mcp"}]}, {"prompt": {"id": "p"}}])
def test_what_only_the_upstream_knows(member: dict[str, Any]) -> None:
    assert read_client(frame("session.update", session=member)).is_unbounded
    assert read_client(frame("response.create", response=member)).is_unbounded


def test_only_what_others_might_read_otherwise_is_written_anew() -> None:
    plain = b'{ "type" : "response.create", "event_id":"\xc3\xa9", "n": 1.50 }'
    assert read_client(plain).data == plain
    twice = (
        b'{"type":"response.cancel","type":"response.create","response":{"max_output_tokens":9,"max_output_tokens":1}}'
    )
    assert read_client(twice).data == frame("response.create", response={"max_output_tokens": 1})
    escaped = b'{"type":"response.create","response":{"max_output_\\u0074okens":5}}'
    assert read_client(escaped).data == frame("response.create", response={"max_output_tokens": 5})


def test_event_ids() -> None:
    spaced = b' { "type":"response.create"}'
    assert orjson.loads(with_event_id(read_client(spaced), spaced, "ours")) == {
        "type": "response.create",
        "event_id": "ours",
    }
    number = frame("response.create", event_id=5)
    assert orjson.loads(with_event_id(read_client(number), number, "ours"))["event_id"] == "ours"
    for data, named in ((b"{", None), (b"[]", None), (b'{"event_id":5}', None), (b'{"event_id":"a","type":[]}', "a")):
        assert event_id_of(data) == named
