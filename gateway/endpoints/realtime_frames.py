"""The frames that a client of a realtime session sends, read one by one: what each may cost or begin. Pure.

A frame of the client is passed on as it came. Only where a parser other than ours might read another value from it
(a member that is given twice, an escaped name) is it written anew from what was read.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

from gateway.core.json_members import parse
from gateway.endpoints.endpoint import InvalidRequest

OUTPUT_TOKENS_CAP_MAX = 10_000_000
EVENT_ID_CHARS_MAX = 400  # 512 at OpenAI, and ours is written before it
# What orjson writes, though it reads more.
_LEVELS_MAX = 200
# What a client may send. What is not here may start or cost something that nobody knows.
_UPDATES = frozenset({"session.update", "transcription_session.update"})
_CLIENT_TYPES = _UPDATES | {
    "input_audio_buffer.append", "input_audio_buffer.commit", "input_audio_buffer.clear",
    "conversation.item.create", "conversation.item.retrieve", "conversation.item.truncate", "conversation.item.delete",
    "response.create", "response.cancel", "output_audio_buffer.clear",
}  # fmt: skip
# With voice detection, the upstream answers of itself what it hears.
_STARTING = _UPDATES | {"response.create", "input_audio_buffer.append", "input_audio_buffer.commit"}
_TOOLS = frozenset({"function", "mcp"})
_TEXT_PARTS = frozenset({"input_text", "text", "output_text"})
_AUDIO_PARTS = frozenset({"input_audio", "audio", "output_audio"})
_DECIDING = frozenset(
    {"type", "event_id", "session", "response", "item", "audio", "model", "max_output_tokens", "tools", "prompt",
     "max_response_output_tokens", "input", "output", "transcription", "input_audio_transcription", "format", "content",
     "input_audio_format", "output_audio_format", "image_url", "service_tier"}
)  # fmt: skip
_NEEDLES = tuple(f'"{name}"'.encode() for name in sorted(_DECIDING))


class SessionSettings(NamedTuple):
    """What a session's settings say of its cost. `sets_…`: the member is there. `output_cap` None: the model's own."""

    model: str | None = None
    sets_output_cap: bool = False
    output_cap: int | None = None
    sets_transcription: bool = False
    ends_transcription: bool = False
    transcription: str | None = None
    is_g711: bool = False
    is_reply_g711: bool | None = None
    is_unbounded: bool = False


class FromClient(NamedTuple):
    """A frame of the client. `may_start`: a response may come of it; `starts`: one is asked for."""

    type: str
    document: dict[str, Any]
    data: bytes
    event_id: str | None = None
    may_start: bool = False
    starts: bool = False
    model: str | None = None
    sets_output_cap: bool = False
    output_cap: int | None = None
    text_bytes: int = 0
    audio_bytes: int = 0
    images: int = 0
    is_unbounded: bool = False
    session: SessionSettings | None = None


def read_client(data: bytes) -> FromClient:
    """Raises InvalidRequest for what cannot be read, bounded or metered."""
    try:
        document = parse(data)
    except ValueError:
        raise InvalidRequest("The frame is not valid JSON.", code="invalid_json") from None
    if not isinstance(document, dict):
        raise InvalidRequest("The frame must be a JSON object.", code="invalid_json")
    if data.count(b"[") + data.count(b"{") > _LEVELS_MAX and _levels(document) > _LEVELS_MAX:
        raise InvalidRequest("The frame is nested too deeply.", code="invalid_json")
    kind = _text(document.get("type"))
    if kind not in _CLIENT_TYPES:
        raise InvalidRequest("Farebox cannot meter this type of event.", param="type", code="not_metered")
    _refuse_spellings(document)
    if any(data.count(needle) > 1 for needle in _NEEDLES) or b"\\u" in data:
        data = orjson.dumps(document)
    event_id = document.get("event_id")
    if isinstance(event_id, str) and len(event_id) > EVENT_ID_CHARS_MAX:
        raise InvalidRequest(f"'event_id' must be of at most {EVENT_ID_CHARS_MAX} characters.", param="event_id")
    frame = FromClient(kind, document, data, event_id if isinstance(event_id, str) else None, kind in _STARTING)
    if kind == "input_audio_buffer.append":
        return frame._replace(audio_bytes=_base64_bytes(document.get("audio")))
    if kind == "conversation.item.create":
        return _with_items(frame, [document.get("item")])
    if kind == "response.create":
        return _read_create(frame)
    if kind in _UPDATES:
        return _read_update(frame)
    return frame


def _read_create(frame: FromClient) -> FromClient:
    response = _object(frame.document, "response")
    _refuse_spellings(response)
    settings = read_settings(response, "response")
    items = response.get("input")
    if items is not None and not isinstance(items, list):
        raise InvalidRequest("'response.input' must be a list.", param="response.input")
    return _with_items(frame, items or [])._replace(
        starts=True,
        model=settings.model,
        sets_output_cap=settings.sets_output_cap,
        output_cap=settings.output_cap,
        is_unbounded=settings.is_unbounded,
    )


def _read_update(frame: FromClient) -> FromClient:
    settings = read_settings(_object(frame.document, "session"), "session")
    return frame._replace(
        model=settings.model, text_bytes=len(frame.data), is_unbounded=settings.is_unbounded, session=settings
    )


def read_settings(session: dict[str, Any], where: str) -> SessionSettings:
    """What the settings of a session, or of a response, say of its cost. Raises InvalidRequest."""
    _refuse_spellings(session)
    model = session.get("model")
    if model is not None and not isinstance(model, str):
        raise InvalidRequest(f"'{where}.model' must be a string.", param=f"{where}.model")
    if session.get("service_tier") not in (None, "auto", "default"):
        raise InvalidRequest("A session has no tier of service.", param=f"{where}.service_tier", code="not_metered")
    sets_cap, cap = _cap(session, where)
    settings = SessionSettings(model, sets_cap, cap, is_unbounded=_is_unbounded(session, where))
    audio = _object(session, "audio")
    heard, said = _object(audio, "input"), _object(audio, "output")
    for part in (audio, heard, said):
        _refuse_spellings(part)
    formats_in = (heard.get("format"), session.get("input_audio_format"))
    formats_out = [given for given in (said.get("format"), session.get("output_audio_format")) if given is not None]
    settings = settings._replace(
        is_g711=any(given is not None and not _is_pcm(given) for given in formats_in),
        is_reply_g711=any(not _is_pcm(given) for given in formats_out) if formats_out else None,
    )
    for holder, name in ((heard, "transcription"), (session, "input_audio_transcription")):
        if name in holder:
            chosen = _object(holder, name)
            _refuse_spellings(chosen)
            model = chosen.get("model")
            if model is not None and not isinstance(model, str):
                raise InvalidRequest(f"The model of '{name}' must be a string.", param=f"{where}.{name}.model")
            settings = settings._replace(
                sets_transcription=True, ends_transcription=holder[name] is None, transcription=model
            )
    return settings


def _cap(holder: dict[str, Any], where: str) -> tuple[bool, int | None]:
    """(whether one is given, the largest that is given, None for the model's own). Raises InvalidRequest."""
    caps: list[int | None] = []
    for name in ("max_output_tokens", "max_response_output_tokens"):
        if name in holder:
            value = holder[name]
            if value is None or value == "inf":
                caps.append(None)
            elif type(value) is int and 1 <= value <= OUTPUT_TOKENS_CAP_MAX:
                caps.append(value)
            else:
                message = f"'{where}.{name}' must be 'inf' or a whole number from 1 to {OUTPUT_TOKENS_CAP_MAX}."
                raise InvalidRequest(message, param=f"{where}.{name}")
    if not caps or None in caps:
        return bool(caps), None
    return True, max(cap for cap in caps if cap is not None)


def _is_unbounded(holder: dict[str, Any], where: str) -> bool:
    """Whether it brings into the context what only the upstream knows the size of. Raises InvalidRequest."""
    tools = holder.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise InvalidRequest(f"'{where}.tools' must be a list.", param=f"{where}.tools")
    kinds = {_text(tool.get("type", "function")) if isinstance(tool, dict) else "" for tool in tools or ()}
    if not kinds <= _TOOLS:
        raise InvalidRequest("Farebox cannot meter this type of tool.", param=f"{where}.tools", code="not_metered")
    return "mcp" in kinds or holder.get("prompt") is not None


def _with_items(frame: FromClient, items: list[Any]) -> FromClient:
    """Count what is brought into the conversation. Raises InvalidRequest."""
    elsewhere = audio = images = 0
    remote = False
    for item in items:
        if not isinstance(item, dict):
            raise InvalidRequest("An item of the conversation must be an object.", param="item")
        remote = remote or str(item.get("type", "")).startswith("mcp_")
        for part in _parts(item):
            kind = _text(part.get("type"))
            if kind in _AUDIO_PARTS:
                sound = part.get("audio")
                audio += _base64_bytes(sound)
                elsewhere += len(sound) if isinstance(sound, str) else 0
            elif kind == "input_image":
                images += 1
                picture = part.get("image_url")
                elsewhere += len(picture) if isinstance(picture, str) else 0
            elif kind not in _TEXT_PARTS:
                raise InvalidRequest("Farebox cannot meter this type of content.", param="item", code="not_metered")
    text = max(0, len(frame.data) - elsewhere)
    return frame._replace(
        text_bytes=text, audio_bytes=audio, images=images, may_start=frame.may_start or remote, is_unbounded=remote
    )


def _parts(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    content = item.get("content")
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise InvalidRequest("The content of an item must be a list of objects.", param="item.content")
    yield from content


def _object(holder: dict[str, Any], name: str) -> dict[str, Any]:
    """A member that is an object, empty where it is absent or null. Raises InvalidRequest."""
    value = holder.get(name)
    if value is not None and not isinstance(value, dict):
        raise InvalidRequest(f"{name!r} must be an object.", param=name)
    return value or {}


def _refuse_spellings(holder: dict[str, Any]) -> None:
    """Some parsers do not mind case: a member that decides the cost has one spelling. Raises InvalidRequest."""
    for name in holder:
        if name not in _DECIDING and (folded := name.casefold()) in _DECIDING:
            raise InvalidRequest(f"{name!r} must be spelled {folded!r}.", param=folded, code="duplicate_member")


def _base64_bytes(text: object) -> int:
    """The most bytes that a base64 text stands for."""
    return -(-len(text) * 3 // 4) if isinstance(text, str) else 0


def _is_pcm(given: object) -> bool:
    """Whether a format of sound, in either spelling, has 48,000 bytes a second; any other may have fewer."""
    if isinstance(given, dict):
        return given.get("type") == "audio/pcm" and given.get("rate") in (None, 24_000)
    return given == "pcm16"


def with_models(frame: FromClient, model: str | None, transcription: str | None) -> bytes:
    """The frame with the names by which the upstream knows the models; None: as it stands."""
    document = dict(frame.document)
    name = "session" if frame.session is not None else "response"
    holder = dict(document.get(name) or {})
    if model is not None and frame.model is not None:
        holder["model"] = model
    if transcription is not None:
        for path in (("audio", "input", "transcription"), ("input_audio_transcription",)):
            _rename(holder, path, transcription)
    document[name] = holder
    return orjson.dumps(document)


def _rename(holder: dict[str, Any], path: tuple[str, ...], model: str) -> None:
    for name in path:
        inner = holder.get(name)
        if not isinstance(inner, dict):
            return
        holder[name] = dict(inner)
        holder = holder[name]
    if "model" in holder:
        holder["model"] = model


def with_event_id(frame: FromClient, data: bytes, event_id: str) -> bytes:
    """`data`, of `frame`, with an id by which an error about it is known."""
    if "event_id" in frame.document:
        return orjson.dumps({**parse(data), "event_id": event_id})  # type: ignore[dict-item]
    brace = data.index(b"{") + 1
    return b'%b"event_id":"%b",%b' % (data[:brace], event_id.encode(), data[brace:])


def event_id_of(data: bytes) -> str | None:
    """The id of an event that may not be one, to name it where it is refused."""
    try:
        document = parse(data)
    except ValueError:
        return None
    event_id = document.get("event_id") if isinstance(document, dict) else None
    return event_id if isinstance(event_id, str) else None


def _levels(document: object) -> int:
    """How deep it is nested."""
    levels, here = 0, [document]
    while here:
        levels += 1
        inner: list[object] = []
        for value in here:
            inner += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        here = inner
    return levels


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
