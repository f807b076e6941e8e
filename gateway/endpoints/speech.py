"""Text to sound: `POST /v1/audio/speech`. The reply is sound as it comes, or events with sound in them.

A model is priced by the characters it reads, or by tokens: of the text, and 20 for a second of sound. Sound carries no
usage, so it is measured as it passes; events end with the upstream's own count.
"""

import base64
from collections.abc import Mapping

from gateway.core.audio_meter import AudioMeter
from gateway.core.catalogue import Meter
from gateway.core.estimate import tokens_from_bytes, utf8_bytes
from gateway.core.sse import EVENT_STREAM
from gateway.core.usage import InvalidUsage, Limits, Reading, read_token_usage, says_nothing
from gateway.endpoints.endpoint import CallRequest, Changes, Described, InvalidRequest, Output, ReplySeen, StreamReader
from gateway.endpoints.json_reply import parse_reply, usage_in
from gateway.endpoints.json_request import Names, changed_body, read_model, read_object
from gateway.endpoints.media_stream import MediaStream, error_event

TOKENS_PER_SECOND = 20
# At a quarter of the usual speed a letter takes 1/3.75 s. A digit may be read as a word of eight letters.
TOKENS_PER_LETTER = (16, 3)
LETTERS_PER_DIGIT = 8
# Silence around what is said: ten seconds.
PAUSE_TOKENS_MAX = 200
TEMPLATE_TOKENS_MAX = 256
# More than a day of speech: no such count is true.
OUTPUT_TOKENS_MAX = 2_000_000
BY_CHARACTERS = frozenset({Meter.CHARACTERS})
BY_TOKENS = frozenset({Meter.INPUT, Meter.AUDIO_OUTPUT})
_NAMES = Names(
    ("model", "input", "instructions", "stream_format"),
    ("voice", "response_format", "speed", "language", "user"),
)
_KEPT_BYTES = 16


class SpeechEndpoint:
    """`POST /v1/audio/speech`."""

    name = "audio.speech"
    described = Described(
        (Meter.CHARACTERS, Meter.INPUT, Meter.AUDIO_OUTPUT),
        "characters of `input`; or its bytes, and the longest sound that it can become",
        "characters; or `usage` of the form with events, else the length of the sound that was relayed",
    )

    def read_request(self, body: bytes) -> CallRequest:
        request = read_object(body, _NAMES)
        model = read_model(request)
        text = request.get("input")
        if not isinstance(text, str) or not text:
            raise InvalidRequest("'input' must be a string of at least one character.", param="input")
        instructions = _text(request, "instructions")
        stream_format = _text(request, "stream_format")
        if stream_format not in ("", "audio", "sse"):
            raise InvalidRequest("'stream_format' must be 'audio' or 'sse'.", param="stream_format")
        read_bytes = utf8_bytes(text) + utf8_bytes(instructions)
        return CallRequest(
            model=model,
            stream=stream_format == "sse",
            input_tokens_max=0,
            input_tokens_estimate=0,
            output_tokens_cap=None,
            choices=1,
            wants_usage=True,
            output=Output.NONE,
            extra_max={
                Meter.CHARACTERS: len(text),
                Meter.INPUT: read_bytes + TEMPLATE_TOKENS_MAX,
                Meter.AUDIO_OUTPUT: sound_tokens_max(text),
            },
            extra_estimate={Meter.CHARACTERS: len(text), Meter.INPUT: tokens_from_bytes(read_bytes)},
            alternatives=(BY_CHARACTERS, BY_TOKENS),
            output_units={Meter.AUDIO_OUTPUT: 1},
            counted=BY_CHARACTERS,
        )

    def upstream_body(self, body: bytes, changes: Changes) -> bytes:
        return changed_body(body, model=changes.model)

    def reply_reader(self, content_type: str, _request: CallRequest) -> StreamReader | None:
        if content_type.startswith(EVENT_STREAM):
            return MediaStream(SpeechCounter())
        if content_type.startswith(("application/json", "text/")):
            return None
        return SoundReader(is_pcm=content_type.startswith("audio/pcm"))

    def error_end(self, document: Mapping[str, object]) -> bytes:
        return error_event(document)

    def read_reply(self, body: bytes) -> ReplySeen:
        """JSON or a text where sound was asked for is an error, unless it has sound in it, as some servers send it."""
        reply = parse_reply(body)
        if reply is None or reply.get("error"):
            return ReplySeen(None, int, True)
        meter = AudioMeter()
        for name in ("audio", "data"):
            _add_base64(meter, reply.get(name))
        count = _tokens(meter.milliseconds)
        return ReplySeen(usage_in(reply), lambda: count, not count)

    def read_usage(self, usage: Mapping[str, object], limits: Limits) -> Reading | None:
        if says_nothing(usage):
            return None
        reading = read_token_usage(usage, Limits(limits.input_tokens_max, OUTPUT_TOKENS_MAX))
        if reading is None:
            return None
        # All that comes out is sound, whatever the details call it.
        quantities = dict(reading.quantities)
        sound = sum(quantities.pop(meter, 0) for meter in (Meter.OUTPUT, Meter.AUDIO_OUTPUT, Meter.IMAGE_OUTPUT))
        if sound == 0:
            raise InvalidUsage("no sound was counted")
        return Reading({**quantities, Meter.AUDIO_OUTPUT: sound})


class SoundReader:
    """The StreamReader of sound that is passed on as it comes; its last bytes wait for the settle."""

    def __init__(self, *, is_pcm: bool) -> None:
        self.ended = False
        self.failed = False
        self.service_tier = ""
        self.usage: Mapping[str, object] | None = None
        self._meter = AudioMeter(is_pcm=is_pcm)
        self._kept = b""

    @property
    def output_seen(self) -> bool:
        return self._meter.milliseconds > 0

    def feed(self, data: bytes) -> bytes:
        self._meter.feed(data)
        data = self._kept + data
        self._kept = data[-_KEPT_BYTES:]
        return data[:-_KEPT_BYTES]

    def finish(self) -> bytes:
        kept, self._kept = self._kept, b""
        return kept

    def output_tokens_estimate(self) -> int:
        return _tokens(self._meter.milliseconds)


class SpeechCounter:
    """Counts the sound in events."""

    def __init__(self) -> None:
        self._meter = AudioMeter()

    def add(self, kind: str, event: Mapping[str, object] | None, size: int) -> None:
        if event is None:
            self._meter.skip(size * 3 // 4)
        elif kind == "speech.audio.delta":
            _add_base64(self._meter, event.get("audio"))

    def count(self) -> int:
        return _tokens(self._meter.milliseconds)


def sound_tokens_max(text: str) -> int:
    """The most tokens of sound that a text can take to be read, at the slowest speed there is."""
    digits = sum(map(str.isdigit, text))
    letters = utf8_bytes(text) + digits * (LETTERS_PER_DIGIT - 1)
    per, each = TOKENS_PER_LETTER
    return -(-letters * per // each) + PAUSE_TOKENS_MAX


def _tokens(milliseconds: int) -> int:
    return -(-milliseconds * TOKENS_PER_SECOND // 1_000)


def _add_base64(meter: AudioMeter, text: object) -> None:
    if isinstance(text, str):
        try:
            meter.feed(base64.b64decode(text))
        except ValueError:  # not base64, or not even ASCII
            meter.skip(len(text) * 3 // 4)


def _text(request: Mapping[str, object], name: str) -> str:
    value = request.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{name!r} must be a string.", param=name)
    return value or ""
