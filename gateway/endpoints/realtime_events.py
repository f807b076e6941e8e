"""The frames that the upstream of a realtime session sends, read one by one: what each begins or ends. Pure."""

import math
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

import orjson

from gateway.core.estimate import utf8_bytes
from gateway.core.json_members import parse
from gateway.endpoints.endpoint import InvalidRequest
from gateway.endpoints.realtime_frames import SessionSettings, read_settings


class Kind(StrEnum):
    """What a frame of the upstream means."""

    CREATED = "created"
    OUTPUT = "output"
    DONE = "done"
    COMMITTED = "committed"
    TRANSCRIBED = "transcribed"
    NOT_TRANSCRIBED = "not_transcribed"
    SESSION = "session"
    ERROR = "error"
    OTHER = "other"


class FromUpstream(NamedTuple):
    """A frame of the upstream. `id` is the response's, or the item's; of an error the id of the client's event.

    `status` is a response's, or `created` or `updated` of a session.
    """

    kind: Kind
    id: str = ""
    usage: Mapping[str, object] | None = None
    status: str = ""
    text_bytes: int = 0
    audio_bytes: int = 0
    session: SessionSettings | None = None


_OTHER = FromUpstream(Kind.OTHER)


def with_error_id(data: bytes, event_id: str | None) -> bytes:
    """An error event, about a frame that had this id, or none, when its client sent it."""
    document = parse(data)
    assert isinstance(document, dict), "it was read before"
    try:
        return orjson.dumps({**document, "error": {**document["error"], "event_id": event_id}})
    except orjson.JSONEncodeError:
        return data  # nested deeper than can be written


def read_upstream(data: bytes) -> FromUpstream:
    """What a frame means; one that cannot be read means nothing."""
    try:
        document = parse(data)
    except ValueError:
        return _OTHER
    kind = document.get("type") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(kind, str):
        return _OTHER
    if kind.startswith("response.") and kind.endswith(".delta"):
        return _read_delta(kind, document)
    reader = _READERS.get(kind)
    return _OTHER if reader is None else reader(document)


def _read_delta(kind: str, document: dict[str, Any]) -> FromUpstream:
    delta = document.get("delta")
    if not isinstance(delta, str):
        return _OTHER
    if kind.endswith("audio.delta"):
        return FromUpstream(Kind.OUTPUT, _text(document.get("response_id")), audio_bytes=math.ceil(len(delta) * 3 / 4))
    return FromUpstream(Kind.OUTPUT, _text(document.get("response_id")), text_bytes=utf8_bytes(delta))


def _read_created(document: dict[str, Any]) -> FromUpstream:
    return FromUpstream(Kind.CREATED, _text(_inner(document, "response").get("id")))


def _read_done(document: dict[str, Any]) -> FromUpstream:
    response = _inner(document, "response")
    return FromUpstream(Kind.DONE, _text(response.get("id")), _usage(response), _text(response.get("status")))


def _read_transcribed(document: dict[str, Any]) -> FromUpstream:
    size = utf8_bytes(_text(document.get("transcript")))
    return FromUpstream(Kind.TRANSCRIBED, _item(document), _usage(document), text_bytes=size)


def _read_announced(document: dict[str, Any]) -> FromUpstream:
    try:
        settings = read_settings(_inner(document, "session"), "session")
    except InvalidRequest:
        settings = SessionSettings(is_unbounded=True)
    return FromUpstream(Kind.SESSION, status=_text(document.get("type")).rpartition(".")[2], session=settings)


_READERS: Mapping[str, Callable[[dict[str, Any]], FromUpstream]] = {
    "response.created": _read_created,
    "response.done": _read_done,
    "input_audio_buffer.committed": lambda document: FromUpstream(Kind.COMMITTED, _item(document)),
    "conversation.item.input_audio_transcription.completed": _read_transcribed,
    "conversation.item.input_audio_transcription.failed": lambda document: FromUpstream(
        Kind.NOT_TRANSCRIBED, _item(document)
    ),
    "session.created": _read_announced,
    "session.updated": _read_announced,
    "transcription_session.created": _read_announced,
    "transcription_session.updated": _read_announced,
    "error": lambda document: FromUpstream(Kind.ERROR, _text(_inner(document, "error").get("event_id"))),
}


def _item(document: dict[str, Any]) -> str:
    return _text(document.get("item_id"))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _inner(document: dict[str, Any], name: str) -> dict[str, Any]:
    value = document.get(name)
    return value if isinstance(value, dict) else {}


def _usage(holder: dict[str, Any]) -> Mapping[str, object] | None:
    usage = holder.get("usage")
    return usage if isinstance(usage, dict) else None
