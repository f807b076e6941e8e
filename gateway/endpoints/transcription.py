"""Sound to text: `POST /v1/audio/transcriptions` and `/v1/audio/translations`, both multipart forms.

A model is priced by the time of the sound, or by its tokens and those of the text. How long it lasts is read from the
file (gateway/core/audio_length.py); the upstream's usage, where it gives any, says what is charged.
"""

from collections.abc import Mapping

from gateway.core.audio_containers import audio_length
from gateway.core.audio_length import NotAudio
from gateway.core.catalogue import Meter
from gateway.core.estimate import OutputCounter, tokens_from_bytes, utf8_bytes
from gateway.core.multipart import Form, Part
from gateway.core.sse import BOM, EVENT_STREAM
from gateway.core.usage import Limits, Reading, read_milliseconds, read_token_usage, says_nothing
from gateway.core.usage_json import LargeReply
from gateway.endpoints.endpoint import CallRequest, Changes, Described, InvalidRequest, Output, ReplySeen
from gateway.endpoints.form_request import FormNames, form_flag, read_form_parts
from gateway.endpoints.json_reply import parse_reply
from gateway.endpoints.json_request import MODEL_CHARS_MAX
from gateway.endpoints.media_stream import MediaStream, error_event

# A template's own tokens, and what the end of the sound is rounded to.
TEMPLATE_TOKENS_MAX = 256
AUDIO_TOKEN_MS = 100
ROUNDED_TO_MS = 1_000
SECONDS_MAX = 10**6
_REFERENCES = "known_speaker_references"
# The length of the sound has a price of its own, or its tokens and the text's have.
BY_TIME = frozenset({Meter.AUDIO_MILLISECONDS})
BY_TOKENS = frozenset({Meter.AUDIO_INPUT, Meter.INPUT, Meter.OUTPUT})


class TranscriptionEndpoint:
    """`name` is that of the endpoint in metrics and usage events."""

    forms_only = True

    described = Described(
        (Meter.AUDIO_MILLISECONDS, Meter.AUDIO_INPUT, Meter.INPUT, Meter.OUTPUT),
        "the length of the sound, from its frames or its bytes; bytes of the prompt; the model's maximum of output",
        "`usage`, of tokens or seconds; else the length of the sound",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self._names = FormNames(frozenset({"model", "stream", "service_tier"}), frozenset({"file"}))

    def read_request(self, _body: bytes) -> CallRequest:
        raise InvalidRequest("Send a multipart form.")

    def read_form(self, form: Form) -> CallRequest:
        fields, files = read_form_parts(form, self._names)
        model = fields.get("model", "")
        if not 0 < len(model) <= MODEL_CHARS_MAX:
            raise InvalidRequest(f"'model' must be a string of 1 to {MODEL_CHARS_MAX} characters.", param="model")
        stream = form_flag(fields, "stream")
        if len(files) != 1:
            raise InvalidRequest("'file' must be given, once.", param="file")
        sound = files[0]
        try:
            most, estimate = audio_length(lambda at, size: form.read(sound.start + at, size), sound.size_bytes)
        except NotAudio as error:
            raise InvalidRequest(f"'file' is not audio: {error}.", param="file", code="not_audio") from None
        # Whole seconds are billed, and a decoder may add a moment at the end.
        most = (most // ROUNDED_TO_MS + 2) * ROUNDED_TO_MS
        texts = [part for part in form.parts if part.value is not None and not part.name.startswith(_REFERENCES)]
        voices_ms = sum(_voice_ms(part) for part in form.parts if part.name.startswith(_REFERENCES))
        text_bytes = sum(part.size_bytes for part in texts)
        prompt_bytes = sum(part.size_bytes for part in texts if part.name == "prompt")
        return CallRequest(
            model=model,
            stream=stream,
            input_tokens_max=0,
            input_tokens_estimate=0,
            output_tokens_cap=None,
            choices=1,
            wants_usage=True,
            output=Output.MODEL,
            extra_max={
                Meter.AUDIO_MILLISECONDS: most + voices_ms,
                Meter.AUDIO_INPUT: -(-(most + voices_ms) // AUDIO_TOKEN_MS),
                Meter.INPUT: text_bytes + TEMPLATE_TOKENS_MAX,
            },
            extra_estimate={
                Meter.AUDIO_MILLISECONDS: estimate,
                Meter.AUDIO_INPUT: -(-estimate // AUDIO_TOKEN_MS),
                Meter.INPUT: tokens_from_bytes(prompt_bytes),
            },
            alternatives=(BY_TIME, BY_TOKENS),
            service_tier=fields.get("service_tier", ""),
        )

    def upstream_body(self, body: bytes, _changes: Changes) -> bytes:
        """A form is changed where it stands (gateway/core/multipart.py)."""
        return body

    def reply_reader(self, content_type: str, _request: CallRequest) -> MediaStream | None:
        return MediaStream(TranscriptCounter()) if content_type.startswith(EVENT_STREAM) else None

    def error_end(self, document: Mapping[str, object]) -> bytes:
        return error_event(document)

    def read_reply(self, body: bytes) -> ReplySeen:
        """JSON, or a text that is all of the reply."""
        text = body.removeprefix(BOM).strip()
        reply = parse_reply(text) if text.startswith(b"{") else None
        if reply is None:
            looked = LargeReply()
            looked.feed(text)
            count = max(1, tokens_from_bytes(len(text)))
            return ReplySeen(looked.usage if looked.is_complete else None, lambda: count, False)
        usage = reply.get("usage")
        if not isinstance(usage, dict):
            duration = reply.get("duration")
            usage = None if duration is None else {"type": "duration", "seconds": duration}
        said = reply.get("text")
        text_bytes = utf8_bytes(said) if isinstance(said, str) else 0
        failed = bool(reply.get("error"))
        return ReplySeen(usage, lambda: tokens_from_bytes(text_bytes), failed)

    def read_usage(self, usage: Mapping[str, object], limits: Limits) -> Reading | None:
        if usage.get("type") == "duration" or "seconds" in usage:
            return _read_seconds(usage.get("seconds"))
        if says_nothing(usage):
            return None
        details = usage.get("input_token_details") or usage.get("input_tokens_details")
        reading = read_token_usage(usage, limits)
        if reading is None or (isinstance(details, dict) and ("text_tokens" in details or "audio_tokens" in details)):
            return reading
        # Nobody says which were text: nearly all of them are sound, which costs more.
        quantities = dict(reading.quantities)
        quantities[Meter.AUDIO_INPUT] = quantities.pop(Meter.INPUT, 0)
        return Reading(quantities)


class TranscriptCounter:
    """Counts the text of a transcript: its deltas, or the whole of it where no delta came."""

    def __init__(self) -> None:
        self._text = OutputCounter()

    def add(self, kind: str, event: Mapping[str, object] | None, size: int) -> None:
        if event is None:
            self._text.add(size)
        elif kind == "transcript.text.delta":
            self._text.add(_text_bytes(event.get("delta")))
        elif kind == "transcript.text.done" and not self._text.events:
            self._text.add(_text_bytes(event.get("text")))

    def count(self) -> int:
        return self._text.tokens


def _text_bytes(text: object) -> int:
    return utf8_bytes(text) if isinstance(text, str) else 0


def _voice_ms(part: Part) -> int:
    """How long a sample of a speaker's voice lasts at most: it is a data URL, of a few seconds."""
    return part.size_bytes * 3 // 4


def _read_seconds(value: object) -> Reading | None:
    """None for no time at all, which says nothing of a file that lasts. Raises InvalidUsage."""
    milliseconds = read_milliseconds(value, SECONDS_MAX)
    return Reading({Meter.AUDIO_MILLISECONDS: milliseconds}) if milliseconds else None
