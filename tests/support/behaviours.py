"""How a fake upstream behaves: well, badly and absurdly. A behaviour is a frozen value that answers one call.

`Completion` is a chat completion with switches for everything that may be odd about one; the rest are replies that
are no completion at all. Behaviours may be used for any number of calls; a `Gate` is used up by opening it.
"""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from tests.support.call import Call, Gate
from tests.support.completion import (
    Asked,
    Json,
    Usage,
    choice_words,
    chunk_json,
    completion_json,
    delta_choice,
    dump,
    error_json,
    first_delta,
    honest,
    honest_usage,
    word_delta,
)

EVENTS_MAX = 1_000_000


class Behaviour(Protocol):
    """Answers one call, through `call` only."""

    async def reply(self, call: Call) -> None: ...


class Form(Enum):
    """The kind of body, whatever was asked for."""

    AS_ASKED = auto()
    JSON = auto()
    SSE = auto()


class End(Enum):
    """What happens once `end_after_events` events were sent (a JSON reply: once half of its body was)."""

    FINISH = auto()  # nothing: the reply goes on to its end
    CLOSE = auto()  # the connection is closed without the rest
    RESET = auto()  # the same with a TCP RST
    STALL = auto()  # silence, until the other side leaves
    ERROR = auto()  # an error event, then a clean end without [DONE]
    ERROR_DONE = auto()  # an error event, then [DONE]


class UsagePlace(Enum):
    """Where a stream reports its usage."""

    OWN_CHUNK = auto()  # a chunk with `choices: []` (OpenAI), only when asked for
    OWN_CHUNK_ALWAYS = auto()  # the same, asked for or not
    FINISH_CHUNK = auto()  # in the last chunk with a choice, asked for or not (Mistral, Together)
    AFTER_DONE = auto()  # after [DONE]
    X_GROQ = auto()  # `x_groq.usage` on the finish chunk (Groq)


@dataclass(frozen=True, slots=True)
class Completion:
    """A chat completion, by default an honest one of `output_tokens` per choice (less where the request caps it).

    `gate` holds the reply back before its head (`gate_at_event` None), or once that many events were sent.
    `pause_seconds` passes between events. `line_bytes_min` pads one line of a stream, `body_bytes_min` a JSON body.
    """

    output_tokens: int = 20
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    usage: Usage = honest
    usage_place: UsagePlace = UsagePlace.OWN_CHUNK
    usage_first: bool = False
    form: Form = Form.AS_ASKED
    status: int = 200
    headers: Mapping[str, str] | None = None
    gate: Gate | None = None
    gate_at_event: int | None = None
    pause_seconds: float = 0.0
    end: End = End.FINISH
    end_after_events: int = 5
    endless: bool = False
    done: bool = True
    final_blank_line: bool = True
    newline: str = "\n"
    data_prefix: str = "data: "
    comment: str | None = None
    bom: bool = False
    line_bytes_min: int = 0
    body_bytes_min: int = 0
    leading: bytes = b""
    gzip: bool = False
    tool_call: bool = False

    async def reply(self, call: Call) -> None:
        asked, served = call.asked, call.served
        cap = asked.output_tokens_cap
        per_choice = self.output_tokens if cap is None else min(self.output_tokens, cap)
        served.prompt_tokens, served.completion_tokens = asked.prompt_tokens, per_choice * asked.choices
        if self.gate is not None and self.gate_at_event is None:
            await self.gate.passed()
        if self.form is Form.SSE or (self.form is Form.AS_ASKED and asked.stream):
            await _Stream(self, call, per_choice).send()
        else:
            await self._send_json(call, per_choice)

    async def _send_json(self, call: Call, per_choice: int) -> None:
        asked, served = call.asked, call.served
        reply = completion_json(
            asked,
            f"chatcmpl-{served.number}",
            per_choice,
            finish_reason=self.finish_reason(asked, per_choice),
            tool_call=self.calls_tool(asked),
        )
        objects = list(self.usage(self.honest_usage(call)))
        usage: Json = {"usage": objects[-1]} if objects else {}
        if missing := max(0, self.body_bytes_min - len(dump(reply))):
            reply = {"padding": "x" * missing, **reply}
        body = self.leading + dump({**usage, **reply} if self.usage_first else {**reply, **usage})
        length_bytes = None if self.gzip else len(body)
        await call.start(
            "application/json", status=self.status, headers=self.headers, length_bytes=length_bytes, gzip=self.gzip
        )
        if self.end is not End.FINISH:
            await call.send(body[: len(body) // 2])
            await self.cut(call)
            return
        served.usage_objects.extend(objects[-1:])
        await call.send(body, tokens=served.completion_tokens, last=True)
        await call.finish()

    async def cut(self, call: Call) -> None:
        """End the reply early, in the three ways that leave it unfinished."""
        if self.end is End.CLOSE:
            await call.close()
        elif self.end is End.RESET:
            await call.reset()
        else:
            await call.stall()

    def honest_usage(self, call: Call) -> Json:
        return honest_usage(
            call.asked,
            call.served.completion_tokens,
            cached_tokens=self.cached_tokens,
            reasoning_tokens=self.reasoning_tokens,
        )

    def calls_tool(self, asked: Asked) -> bool:
        return asked.tool_name is not None and (self.tool_call or asked.tool_required)

    def finish_reason(self, asked: Asked, per_choice: int) -> str:
        if per_choice < self.output_tokens:
            return "length"
        return "tool_calls" if self.calls_tool(asked) else "stop"


class _Stream:
    """One SSE reply of a Completion."""

    def __init__(self, how: Completion, call: Call, per_choice: int) -> None:
        self.how, self.call, self.per_choice = how, call, per_choice
        self.padding_bytes = how.line_bytes_min

    async def send(self) -> None:
        how, call = self.how, self.call
        await call.start("text/event-stream; charset=utf-8", status=how.status, headers=how.headers, gzip=how.gzip)
        if how.bom or how.leading:
            await call.send(how.leading + (b"\xef\xbb\xbf" if how.bom else b""))
        for chunk, tokens in self.chunks():
            if how.gate is not None and call.served.events_sent == how.gate_at_event:
                await how.gate.passed()
            if how.end is not End.FINISH and call.served.events_sent >= how.end_after_events:
                await self.cut()
                return
            await self.event(dump(chunk), tokens=tokens)
            if how.pause_seconds:
                await asyncio.sleep(how.pause_seconds)
        if how.end is not End.FINISH:  # the reply was shorter than end_after_events
            await self.cut()
            return
        await self.finish()

    async def finish(self) -> None:
        how = self.how
        after = list(how.usage(how.honest_usage(self.call))) if how.usage_place is UsagePlace.AFTER_DONE else []
        if how.done:
            await self.event(b"[DONE]", last=not after)
        for usage in after:
            self.call.served.usage_objects.append(usage)
            await self.event(dump({**self.chunk([]), "usage": usage}), last=usage is after[-1])
        await self.call.finish()

    async def cut(self) -> None:
        if self.how.end not in (End.ERROR, End.ERROR_DONE):
            await self.how.cut(self.call)
            return
        await self.event(dump(error_json("The engine stopped while answering.")))
        if self.how.end is End.ERROR_DONE:
            await self.event(b"[DONE]")
        await self.call.finish(broken=True)

    async def event(self, data: bytes, *, tokens: int = 0, last: bool = False) -> None:
        how, newline = self.how, self.how.newline.encode()
        # An event that closes the stream may lack its blank line: some servers leave it out.
        final = data == b"[DONE]" or (not how.done and last)
        ending = newline if final and not how.final_blank_line else newline * 2
        comment = b"" if how.comment is None else f": {how.comment}".encode() + newline * 2
        await self.call.send(comment + how.data_prefix.encode() + data + ending, events=1, tokens=tokens, last=last)

    def chunk(self, choices: list[Json]) -> Json:
        return chunk_json(self.call.asked, f"chatcmpl-{self.call.served.number}", choices)

    def chunks(self) -> Iterator[tuple[Json, int]]:
        """Every chunk before [DONE] with the output tokens in it."""
        how, asked, served = self.how, self.call.asked, self.call.served
        tool_call = how.calls_tool(asked)
        for index in range(asked.choices):
            yield self.chunk([delta_choice(index, first_delta(asked, tool_call=tool_call))]), 0
        tokens = EVENTS_MAX if how.endless else self.per_choice
        for word in choice_words(asked, tokens):
            for index in range(asked.choices):
                chunk = self.chunk([delta_choice(index, word_delta(word, tool_call=tool_call))])
                if self.padding_bytes:
                    chunk, self.padding_bytes = {**chunk, "obfuscation": "x" * self.padding_bytes}, 0
                yield chunk, 1
        objects = list(how.usage(how.honest_usage(self.call)))
        reason = how.finish_reason(asked, self.per_choice)
        for index in range(asked.choices):
            chunk = self.chunk([delta_choice(index, {}, reason)])
            if index == asked.choices - 1 and how.usage_place in (UsagePlace.FINISH_CHUNK, UsagePlace.X_GROQ):
                served.usage_objects.extend(objects[-1:])
                usage: Json = {"usage": objects[-1]} if objects else {}
                chunk |= usage if how.usage_place is UsagePlace.FINISH_CHUNK else {"x_groq": usage}
            yield chunk, 0
        asked_for = how.usage_place is UsagePlace.OWN_CHUNK and asked.include_usage
        if asked_for or how.usage_place is UsagePlace.OWN_CHUNK_ALWAYS:
            for one in objects:
                served.usage_objects.append(one)
                yield {**self.chunk([]), "usage": one}, 0


@dataclass(frozen=True, slots=True)
class Status:
    """A whole reply of any status and any body: errors, HTML, nothing at all, or an error inside a 200."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] | None = None
    gate: Gate | None = None

    async def reply(self, call: Call) -> None:
        if self.gate is not None:
            await self.gate.passed()
        await call.start(self.content_type, status=self.status, headers=self.headers, length_bytes=len(self.body))
        if self.body:
            await call.send(self.body, last=True)
        await call.finish()


@dataclass(frozen=True, slots=True)
class ResetBeforeHeaders:
    """A TCP RST in place of an answer."""

    async def reply(self, call: Call) -> None:
        await call.reset()


@dataclass(frozen=True, slots=True)
class CloseBeforeHeaders:
    """A clean close in place of an answer."""

    async def reply(self, call: Call) -> None:
        await call.close()


@dataclass(frozen=True, slots=True)
class StallBeforeHeaders:
    """Silence, until the other side leaves."""

    async def reply(self, call: Call) -> None:
        await call.stall()


@dataclass(frozen=True, slots=True)
class RawStream:
    """A chunked body of these pieces, each written to the socket on its own. A `gate` stands before the last one."""

    chunks: list[bytes]
    content_type: str = "text/event-stream"
    headers: Mapping[str, str] | None = None
    gate: Gate | None = None

    async def reply(self, call: Call) -> None:
        await call.start(self.content_type, headers=self.headers)
        for number, chunk in enumerate(self.chunks, 1):
            last = number == len(self.chunks)
            if last and self.gate is not None:
                await self.gate.passed()
            await call.send(chunk, events=1, last=last)
        await call.finish()


@dataclass(frozen=True, slots=True)
class Part:
    """The first of these pieces, then `end`: a reply of any endpoint that does not come to its end."""

    pieces: tuple[bytes, ...]
    content_type: str
    end: End
    length_bytes: int | None = None

    async def reply(self, call: Call) -> None:
        await call.start(self.content_type, length_bytes=self.length_bytes)
        for piece in self.pieces:
            await call.send(piece, events=1)
        if self.end is End.RESET:
            await call.reset()
        elif self.end is End.CLOSE:
            await call.close()
        else:
            await call.stall()


@dataclass(frozen=True, slots=True)
class Wire:
    """These very bytes on the socket, head and all, then a close: HTTP/1.0, a wrong length, or no HTTP at all."""

    chunks: list[bytes]

    async def reply(self, call: Call) -> None:
        for chunk in self.chunks:
            await call.write_raw(chunk)
        call.served.completed = True
        await call.close()


@dataclass(frozen=True, slots=True)
class Choose:
    """Another behaviour for each call, chosen by what is asked."""

    by: Callable[[Asked], Behaviour]

    async def reply(self, call: Call) -> None:
        await self.by(call.asked).reply(call)


def failure(status: int, message: str = "no", *, code: str | None = None, **headers: str) -> Status:
    """An error in OpenAI's envelope; header names are written with underscores."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Status(status, json.dumps(error_json(message, code=code)).encode(), headers=named)


UNAUTHORIZED = failure(401, "Incorrect API key provided.", code="invalid_api_key")
RATE_LIMITED = failure(429, "Rate limit reached.", code="rate_limit_exceeded", retry_after="7")
BROKEN = failure(500, "The server had an error.")
HTML = Status(502, b"<html><body><h1>502 Bad Gateway</h1></body></html>", "text/html")
EMPTY = Status(200, b"")
ERROR_IN_200 = Status(200, json.dumps(error_json("The model is overloaded.")).encode())
