"""What must hold whatever bytes arrive. A target takes any bytes and raises AssertionError, or whatever is a bug.

Where a target reads streams, the first bytes of an input say where the rest is cut into reads. Oracles are written anew
from the specifications, and slow. Nothing here knows how what it tests is built.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from gateway.core.json_members import MalformedJson, MemberScanner, duplicate_member, member_values, parse, with_members
from gateway.core.sse import BOM, EVENT_STREAM, Kind, Piece, SseSplitter, event_data, split_events
from gateway.core.usage import InvalidUsage, Limits, merge_usage
from gateway.core.usage_json import LargeReply
from gateway.endpoints.chat_stream import ChatStream
from gateway.endpoints.endpoint import CallRequest, Changes, Endpoint, InvalidRequest, StreamReader
from gateway.endpoints.texts import texts_of
from gateway.web.routes import METERED
from tests.properties.fuzz import media_targets
from tests.properties.fuzz.reads import reads_of

LIMITS = Limits(128_000, 16_384)
STREAMING = CallRequest("m", True, 100, 25, None, 1, True)
_LINE_END = re.compile(rb"\r\n|\n|\r")


# Server-sent events --------------------------------------------------------------------------------------------------


def splitter(data: bytes) -> None:
    """No byte is lost or moved, no piece depends on the reads, and no more is retained than the limit."""
    whole, reads = reads_of(data)
    for limit in (4, 40, 262_144):
        one, several = SseSplitter(limit), SseSplitter(limit)
        expected = one.feed(whole)
        pieces: list[Piece] = []
        fed = given = 0
        for read in reads:
            new = several.feed(read)
            pieces += new
            fed += len(read)
            given += sum(len(piece.data) for piece in new)
            assert fed - given <= limit + 2, "more is retained than an event"
        rest = several.rest()
        assert b"".join(piece.data for piece in pieces) + rest == whole
        assert rest == one.rest()
        for kind in (Kind.EVENTS, Kind.OPAQUE):
            assert _of_kind(pieces, kind) == _of_kind(expected, kind)
        for piece in pieces:
            if piece.kind is Kind.EVENTS:
                assert b"".join(split_events(piece.data)) == piece.data


def _of_kind(pieces: list[Piece], wanted: Kind) -> bytes:
    """The bytes of one kind; the second half of a CRLF belongs to what is before it."""
    before, found = Kind.EVENTS, []
    for kind, data in pieces:
        before = before if kind is Kind.LINE_FEED else kind
        if before is wanted:
            found.append(data)
    return b"".join(found)


def specified_events(whole: bytes) -> Iterator[bytes]:
    """The data of each event, by the letter of the specification; one that the end cuts off counts as well."""
    values: list[bytes] = []
    for line in [*_LINE_END.split(whole.removeprefix(BOM)), b""]:
        if not line:
            if values:
                yield b"\n".join(values)
            values = []
        elif line == b"data" or line.startswith(b"data:"):
            value = line[5:]
            values.append(value[1:] if value.startswith(b" ") else value)


class Outcome(NamedTuple):
    """What a client and a meter see of a stream."""

    bytes_out: bytes
    usage: Mapping[str, object] | None
    output: int
    output_seen: bool
    ended: bool
    failed: bool
    service_tier: str

    def seen(self, whole: bytes) -> tuple[object, ...]:
        """What the meter sees. How much output there is in an event that is no JSON is anybody's guess."""
        guess = (self.output, self.output_seen) if is_well_formed(whole) else ()
        return (self.usage, self.ended, self.failed, self.service_tier, *guess)


def read_stream(reader: StreamReader, reads: list[bytes]) -> Outcome:
    out = b"".join(map(reader.feed, reads)) + reader.finish()
    return Outcome(
        out,
        reader.usage,
        reader.output_tokens_estimate(),
        reader.output_seen,
        reader.ended,
        reader.failed,
        reader.service_tier,
    )


def chat_stream(data: bytes) -> None:
    """No usage is missed, and only events of usage alone are ever taken out."""
    whole, reads = reads_of(data)
    outcome = read_stream(ChatStream(remove_usage=False), reads)
    assert outcome.bytes_out == whole
    usage, is_sure = specified_usage(whole)
    if is_sure:
        assert outcome.usage == usage
    without = read_stream(ChatStream(remove_usage=True), reads)
    assert without.seen(whole) == outcome.seen(whole)
    # What is left is what came, less some pieces.
    assert len(without.bytes_out) <= len(whole)
    assert _is_subsequence(without.bytes_out, whole)


def specified_usage(whole: bytes) -> tuple[Mapping[str, object] | None, bool]:
    """The usage that a stream reports, and whether it is plain enough for two readers to agree on it."""
    merged: Mapping[str, object] | None = None
    if b"\\u" in whole or BOM in whole[1:]:
        return None, False
    for event in specified_events(whole):
        if event.startswith(b"[DONE]"):
            continue
        try:
            chunk = parse(event)
        except ValueError:
            if b"usage" in event:
                return None, False
            continue
        if isinstance(chunk, dict):
            groq = chunk.get("x_groq")
            for candidate in (groq.get("usage") if isinstance(groq, dict) else None, chunk.get("usage")):
                if isinstance(candidate, dict):
                    merged = merge_usage(merged, candidate)
    return merged, True


def is_well_formed(whole: bytes) -> bool:
    """Whether every line is of a kind that the specification knows, and every event is JSON or the end."""
    known = (b"data:", b"event:", b"id:", b"retry:", b":")
    if not all(not line or line.startswith(known) for line in _LINE_END.split(whole)):
        return False
    for event in specified_events(whole):
        if not event.startswith(b"[DONE]"):
            try:
                parse(event)
            except ValueError:
                return False
    return True


def _is_subsequence(part: bytes, whole: bytes) -> bool:
    at = 0
    for byte in part:
        at = whole.find(byte, at) + 1
        if at == 0:
            return False
    return True


def stream_readers(data: bytes) -> None:
    """Of every endpoint: nothing that a client or the meter sees depends on where the reads fall."""
    whole, reads = reads_of(data)
    for endpoint in METERED.values():
        for request in (STREAMING, STREAMING._replace(wants_usage=False)):
            one, several = (endpoint.reply_reader(EVENT_STREAM, request) for _ in range(2))
            if one is None or several is None:
                continue
            expected, outcome = read_stream(one, [whole]), read_stream(several, reads)
            assert outcome.bytes_out == expected.bytes_out, endpoint.name
            assert outcome.seen(whole) == expected.seen(whole), endpoint.name
            if request.wants_usage:
                assert outcome.bytes_out == whole, endpoint.name
            _check_usage(endpoint, outcome.usage)


def _check_usage(endpoint: Endpoint, usage: Mapping[str, object] | None) -> None:
    """A reading is refused in one way only, and never below zero."""
    try:
        reading = None if usage is None else endpoint.read_usage(usage, LIMITS)
    except InvalidUsage:
        return
    assert reading is None or all(quantity >= 0 for quantity in reading.quantities.values())


# JSON ----------------------------------------------------------------------------------------------------------------


def json_members(data: bytes) -> None:
    """A value is set in place, and found in pieces: a parser sees the same before and after."""
    whole, reads = reads_of(data)
    names = frozenset({"usage", "model", "n"})
    scanner = MemberScanner(names)
    for read in reads:
        scanner.feed(read)
    known = _object(whole)
    if known is None:
        for refuse in (lambda: with_members(whole, {"n": 7}), lambda: duplicate_member(whole, names)):
            with contextlib.suppress(MalformedJson):
                refuse()
        return
    pairs, document = known
    assert scanner.complete
    raw = member_values(whole, names)
    assert {name: parse(value) for name, value in raw.items()} == {n: document[n] for n in names & document.keys()}
    assert scanner.values == raw
    folded = [name.casefold() for name, _ in pairs]
    assert (duplicate_member(whole, names) is not None) == any(folded.count(name) > 1 for name in names)
    assert parse(with_members(whole, {"n": 7, "model": "x"})) == {**document, "n": 7, "model": "x"}


def _object(whole: bytes) -> tuple[list[tuple[str, object]], dict[str, object]] | None:
    """The members of a JSON object in order, and parsed, or None where parsers refuse it or disagree."""
    try:
        parsed = parse(whole)
        members = json.loads(whole, object_pairs_hook=lambda pairs: pairs)
    except (ValueError, RecursionError):
        return None
    return (members, parsed) if isinstance(parsed, dict) else None


def usage_json(data: bytes) -> None:
    """A reply that passes unread: every byte comes out, a few are kept back, and its usage is found."""
    whole, reads = reads_of(data)
    reply = LargeReply()
    out = b""
    for number, read in enumerate(reads):
        out += reply.feed(read)
        assert sum(map(len, reads[: number + 1])) - len(out) <= 16
    assert out + reply.finish() == whole
    known = _object(whole)
    if known is not None:
        usage = known[1].get("usage")
        assert reply.is_complete
        assert reply.usage == (usage if isinstance(usage, dict) else None)


def requests(data: bytes) -> None:
    """Any body is refused by name or bounded, and what is sent of it is JSON with the cap that was set."""
    for endpoint in METERED.values():
        try:
            request = endpoint.read_request(data)
        except InvalidRequest:
            continue
        assert request.input_tokens_max >= 0
        assert request.input_tokens_estimate >= 0
        texts = texts_of(endpoint.name, data)
        # None of it is where all may be written to a cache for hours: it is allowed for elsewhere then.
        assert sum(one.times * len(one.text.encode()) for one in texts) <= (request.input_tokens_max or 2 * len(data))
        cap = None if request.output_tokens_cap is None else 5
        sent = endpoint.upstream_body(data, Changes("other", request.stream, cap))
        document = parse(sent)
        assert isinstance(document, dict)
        assert document["model"] == "other"
        assert endpoint.read_request(sent).model == "other", endpoint.name


def replies(data: bytes) -> None:
    """Any reply is read, and counted at nothing or more."""
    for endpoint in METERED.values():
        seen = endpoint.read_reply(data)
        assert seen.count_output() >= 0
        _check_usage(endpoint, seen.usage)


def event(data: bytes) -> None:
    """The data of an event is what the specification says."""
    events = list(specified_events(data)) if BOM not in data[1:] else None
    split = SseSplitter()
    pieces = [piece.data for piece in split.feed(data)]
    parts = [part for piece in pieces for part in split_events(piece)] if b"".join(pieces) else []
    found = [value for part in [*parts, split.rest()] if (value := event_data(part)) is not None]
    assert events is None or found == events


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "splitter": splitter,
    "event": event,
    "chat_stream": chat_stream,
    "stream_readers": stream_readers,
    "json_members": json_members,
    "usage_json": usage_json,
    "requests": requests,
    "replies": replies,
    "form": media_targets.form,
    "sound": media_targets.sound,
    "frames": media_targets.frames,
}
REQUESTS = (
    b'{"model":"m","input":["one","two"],"prompt":"one","suffix":"two","max_tokens":5,"echo":true,"best_of":2,"stream":false}',
    b'{"model":"m","messages":[{"role":"user","content":"Hi"}],"stream":true,"stream_options":{"include_usage":true}}',
    (
        b'{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url","image_url":'
        b'{"url":"data:image/png;base64,AAAA"}}]}],"max_tokens":5,"n":2,"tools":[{"type":"function","function":{}}]}'
    ),
)
