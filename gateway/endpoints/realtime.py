"""Realtime: what a response, or a transcription of what was said, may use at most, and what it did use. Pure.

Each response reads the whole conversation. What that can hold is known from what was sent: a text has at most as many
tokens as bytes, sound ten tokens a second, an image a fixed bound, and what responses added is in their usage. Where
that is not known (a stored prompt, a remote tool), or is more, the model's context is the bound.
"""

from collections.abc import Mapping
from typing import NamedTuple

import orjson

from gateway.core.catalogue import Meter, Model, Price
from gateway.core.estimate import tokens_from_bytes
from gateway.core.image_tokens import IMAGE_TOKENS_MAX
from gateway.core.json_members import parse
from gateway.core.pricing import Quantities, dearest_rate, is_priced
from gateway.core.usage import InvalidUsage, Limits, Reading, read_milliseconds, read_token_usage
from gateway.endpoints.endpoint import (
    NOTHING_SEEN,
    CallRequest,
    Changes,
    Described,
    InvalidRequest,
    Output,
    ReplySeen,
    StreamReader,
)
from gateway.endpoints.json_request import MODEL_CHARS_MAX
from gateway.endpoints.realtime_frames import FromClient, SessionSettings

AUDIO_TOKENS_PER_SECOND = 10  # of what the client says; platform.openai.com/docs, "Managing realtime costs"
REPLY_AUDIO_TOKENS_PER_SECOND = 20
PCM_BYTES_PER_SECOND = 48_000  # 24 kHz, 16 bits, one channel
G711_BYTES_PER_SECOND = 8_000
# The default instructions, which the upstream shows but chooses, and what it adds unseen.
UNSEEN_TEXT_TOKENS = 4_096
# Room for what follows, so that not every frame asks for more.
_ROOM_TEXT_TOKENS = 2_000
_ROOM_SECONDS = 30
# After a commit, at most so much of the sound that was sent is part of what is committed next.
_CARRIED_SECONDS = 30

_DURATION = frozenset[str]({Meter.AUDIO_MILLISECONDS})
_TOKENS = frozenset[str]({Meter.INPUT, Meter.AUDIO_INPUT, Meter.OUTPUT})
_RESPONSE = frozenset[str]({Meter.INPUT, Meter.AUDIO_INPUT, Meter.OUTPUT, Meter.AUDIO_OUTPUT})


class _Frames:
    """What an endpoint of plain requests has, and a session of frames does not use."""

    def upstream_body(self, body: bytes, _changes: Changes) -> bytes:
        return body

    def reply_reader(self, _content_type: str, _request: CallRequest) -> StreamReader | None:
        return None

    def error_end(self, document: Mapping[str, object]) -> bytes:
        """The frame that says why a session ends."""
        return orjson.dumps({"type": "error", **document})

    def read_reply(self, _body: bytes) -> ReplySeen:
        return NOTHING_SEEN


class RealtimeEndpoint(_Frames):
    """One response of a session."""

    name = "realtime"
    described = Described(
        (
            *(Meter.INPUT, Meter.CACHED_INPUT, Meter.AUDIO_INPUT, Meter.CACHED_AUDIO_INPUT, Meter.IMAGE_INPUT),
            *(Meter.OUTPUT, Meter.AUDIO_OUTPUT),
        ),
        "for each response: what the session may have it read, and the output cap, or the model's maximum",
        "`usage` of each `response.done`",
    )

    def read_request(self, body: bytes) -> CallRequest:
        """What a session is asked for, `{"model": …}`. Raises InvalidRequest."""
        document = parse(body)
        model = document.get("model") if isinstance(document, dict) else None
        if not isinstance(model, str) or not 0 < len(model) <= MODEL_CHARS_MAX:
            raise InvalidRequest(f"Name a model of 1 to {MODEL_CHARS_MAX} characters: ?model=…", param="model")
        return CallRequest(model)

    def read_usage(self, usage: Mapping[str, object], limits: Limits) -> Reading | None:
        """Raises InvalidUsage."""
        return read_token_usage(usage, limits)


class TranscriptionEndpoint(_Frames):
    """One transcription of what the client said, at most `milliseconds_max` of sound."""

    name = "realtime.transcription"
    described = Described(
        (Meter.AUDIO_MILLISECONDS, Meter.AUDIO_INPUT, Meter.INPUT, Meter.OUTPUT),
        "the length of the sound",
        "`usage` of each transcription",
    )

    def __init__(self, milliseconds_max: int) -> None:
        self._milliseconds_max = milliseconds_max

    def read_request(self, body: bytes) -> CallRequest:
        return RealtimeEndpoint().read_request(body)

    def read_usage(self, usage: Mapping[str, object], limits: Limits) -> Reading | None:
        """By tokens, or by the duration in seconds. Raises InvalidUsage."""
        seconds = usage.get("seconds")
        if seconds is None:
            return read_token_usage(usage, limits)
        milliseconds = read_milliseconds(seconds, 10**9)
        if milliseconds > self._milliseconds_max:
            raise InvalidUsage(f"{milliseconds} ms is more than was sent, {self._milliseconds_max} ms")
        return Reading({Meter.AUDIO_MILLISECONDS: milliseconds}) if milliseconds else None


class Extent(NamedTuple):
    """The most that a response may read and write, in tokens; `returned_tokens` are those of earlier responses."""

    text_tokens: int
    audio_tokens: int
    image_tokens: int
    returned_tokens: int
    output_tokens: int
    is_unbounded: bool = False

    def covers(self, other: "Extent") -> bool:
        """Whether nothing of `other` is larger."""
        return all(mine >= theirs for mine, theirs in zip(self, other, strict=True))

    def roomy(self) -> "Extent":
        """A little more than this, for what follows."""
        return self._replace(
            text_tokens=self.text_tokens + _ROOM_TEXT_TOKENS,
            audio_tokens=self.audio_tokens + _ROOM_SECONDS * AUDIO_TOKENS_PER_SECOND,
        )


class Sound(NamedTuple):
    """The most that a transcription may hear and read: milliseconds, and tokens of its own prompt."""

    milliseconds: int
    prompt_tokens: int

    def covers(self, other: "Sound") -> bool:
        """Whether nothing of `other` is larger."""
        return self.milliseconds >= other.milliseconds and self.prompt_tokens >= other.prompt_tokens

    def roomy(self) -> "Sound":
        """A little more than this, for what follows."""
        return self._replace(milliseconds=self.milliseconds + _ROOM_SECONDS * 1_000)


class Conversation:
    """What a session may have in its context so far. It only grows: what is truncated or deleted still counts."""

    def __init__(self) -> None:
        self.transcription: str | None = None  # the model that transcribes
        self.reply_bytes_per_second = PCM_BYTES_PER_SECOND
        self._bytes_per_second = PCM_BYTES_PER_SECOND
        self._text_bytes = 0
        self._unseen_tokens = UNSEEN_TEXT_TOKENS
        self._audio_bytes = 0
        self._uncommitted_bytes = 0
        self._images = 0
        self._returned_tokens = 0
        self._prompt_tokens = 0
        self._is_unbounded = False
        # None is the model's own cap. A new one may be refused: a lower one counts when it is announced.
        self._cap: int | None = None
        self._asked_caps: list[int | None] = []

    @property
    def has_audio(self) -> bool:
        """Whether the client has sent any sound."""
        return self._audio_bytes > 0

    def output_tokens_max(self, most: int) -> int:
        """What a response may produce at most, of a model that produces at most so much."""
        return max(most if cap is None else min(cap, most) for cap in (self._cap, *self._asked_caps))

    def add(self, frame: FromClient) -> None:
        """The client sends this."""
        self._text_bytes += frame.text_bytes
        self._images += frame.images
        self._audio_bytes += frame.audio_bytes
        self._uncommitted_bytes += frame.audio_bytes
        self._is_unbounded = self._is_unbounded or frame.is_unbounded
        if frame.session is not None:
            self._prompt_tokens += frame.text_bytes
            self._settle_on(frame.session)

    def announced(self, session: SessionSettings, frame_bytes: int, *, is_answer: bool) -> None:
        """The upstream says what the session is like, in answer to what the client asked it to be, or of itself."""
        self._unseen_tokens = max(self._unseen_tokens, frame_bytes)
        self._is_unbounded = self._is_unbounded or session.is_unbounded
        self._cap = session.output_cap
        if is_answer and self._asked_caps:
            del self._asked_caps[0]
        if session.is_g711:
            self._bytes_per_second = G711_BYTES_PER_SECOND

    def _settle_on(self, session: SessionSettings) -> None:
        if session.is_g711:
            # What it was before may have been smaller: all of it is counted as the densest sound.
            self._bytes_per_second = G711_BYTES_PER_SECOND
        if session.is_reply_g711 is not None:
            self.reply_bytes_per_second = G711_BYTES_PER_SECOND if session.is_reply_g711 else PCM_BYTES_PER_SECOND
        if session.sets_output_cap:
            self._asked_caps.append(session.output_cap)
        if session.sets_transcription and (session.transcription is not None or session.ends_transcription):
            self.transcription = session.transcription

    def committed(self) -> Sound:
        """What was said since the last time is committed: the most of it."""
        sound = self.sound()
        self._uncommitted_bytes = min(self._uncommitted_bytes, _CARRIED_SECONDS * self._bytes_per_second)
        return sound

    def responded(self, input_tokens: int, output_tokens: int) -> None:
        """A response read and wrote so many tokens. Should it have read more than was thought, that is made good."""
        seen = self.extent(0, 0)
        known = sum(seen[:4])
        self._unseen_tokens += max(0, input_tokens - known)
        self._returned_tokens += output_tokens

    def extent(self, output_tokens: int, running_tokens: int) -> Extent:
        """Of the next response, where those that run may add `running_tokens`."""
        return Extent(
            self._unseen_tokens + self._text_bytes,
            -(-self._audio_bytes * AUDIO_TOKENS_PER_SECOND // self._bytes_per_second),
            self._images * IMAGE_TOKENS_MAX,
            self._returned_tokens + running_tokens,
            output_tokens,
            self._is_unbounded,
        )

    def sound(self) -> Sound:
        """Of the next transcription."""
        return Sound(-(-self._uncommitted_bytes * 1_000 // self._bytes_per_second), self._prompt_tokens)

    def estimate(self) -> Quantities:
        """What the next response reads, where its usage does not say."""
        text = tokens_from_bytes(self._text_bytes) + self._returned_tokens
        audio = -(-self._audio_bytes * AUDIO_TOKENS_PER_SECOND // self._bytes_per_second)
        return {Meter.INPUT: text, Meter.AUDIO_INPUT: audio, Meter.IMAGE_INPUT: self._images * 765}


def response_request(
    model: str, extent: Extent, estimate: Quantities, of: Model, price: Price, output_units: Quantities
) -> CallRequest:
    """What a response may use at most. A price that has no rate for sound is none for this."""
    context = of.context_tokens_max
    dearest = _dearest_input(price)
    extra: dict[str, int] = {Meter.AUDIO_INPUT: extent.audio_tokens, Meter.IMAGE_INPUT: extent.image_tokens}
    extra[dearest] = extra.get(dearest, 0) + extent.returned_tokens
    text = extent.text_tokens
    if extent.is_unbounded or text + sum(extra.values()) >= context:
        extra, text = {dearest: context}, 0
    return CallRequest(
        model=model,
        input_tokens_max=text,
        output_tokens_cap=min(extent.output_tokens, of.output_tokens_max),
        extra_max=extra,
        extra_estimate=estimate,
        alternatives=(_RESPONSE,),  # which modality it will be is not known: all of them must have a price
        outputs=(Meter.OUTPUT, Meter.AUDIO_OUTPUT),
        output_units=output_units,
    )


def transcription_request(model: str, sound: Sound, of: Model) -> CallRequest:
    """What a transcription may use at most: models are priced by tokens, or by the length of the sound."""
    tokens = -(-sound.milliseconds * AUDIO_TOKENS_PER_SECOND // 1_000) + 1
    heard: dict[str, int] = {Meter.AUDIO_INPUT: tokens, Meter.AUDIO_MILLISECONDS: sound.milliseconds}
    return CallRequest(
        model=model,
        output=Output.NONE,
        extra_max={**heard, Meter.INPUT: sound.prompt_tokens + 64, Meter.OUTPUT: of.output_tokens_max},
        extra_estimate=heard,
        alternatives=(_DURATION, _TOKENS),
    )


def reply_audio_tokens(audio_bytes: int, bytes_per_second: int) -> int:
    """Tokens of so many bytes of a response's sound, estimated."""
    return -(-audio_bytes * REPLY_AUDIO_TOKENS_PER_SECOND // bytes_per_second)


def _dearest_input(price: Price) -> str:
    """The meter of what goes in whose token costs most: what a response said is read again as text or as sound."""
    priced = [meter for meter in (Meter.AUDIO_INPUT, Meter.INPUT, Meter.IMAGE_INPUT) if is_priced(price.rates, meter)]
    return max(priced, key=lambda meter: dearest_rate(price.rates, meter), default=Meter.AUDIO_INPUT)
