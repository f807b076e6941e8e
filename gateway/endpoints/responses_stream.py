"""Reads a stream of the Responses API as it passes: its id, its usage, its output, its end.

Theory. Nearly all events are deltas, which pass unread and are counted later, a few kilobytes at a time, or never. The
last event repeats the whole output beside the usage, so it may be megabytes long: over the splitter's limit it is
scanned while it passes, and only its last bytes are kept back, without which it is no event to anybody.

What the client may only have after the settle is withheld: the last event, with all that follows.
"""

import re
from collections.abc import Mapping

import orjson

from gateway.core.estimate import OutputCounter, utf8_bytes
from gateway.core.json_members import MemberScanner, parse
from gateway.core.sse import EVENT_BYTES_MAX, Kind, SseSplitter, event_data, is_whole, split_events
from gateway.core.usage import merge_usage
from gateway.endpoints.chat_stream import is_error
from gateway.endpoints.endpoint import Made
from gateway.endpoints.responses_usage import HostedCalls, made_of, usage_of

UNCOUNTED_BYTES_MAX = 32_768
# What is over it after the end is dropped: no client reads on, and an upstream that never stops must not fill memory.
WITHHELD_BYTES_MAX = 2 * EVENT_BYTES_MAX

# Events that are read one by one. The words are searched bare: in the text of a reply they only cost a closer look.
_READ = (
    b"error", b"output_item.done", b"response.cancelled", b"response.completed", b"response.created",
    b"response.failed", b"response.in_progress", b"response.incomplete", b"response.queued", b"[DONE]",
)  # fmt: skip
_FIRST = frozenset({"response.created", "response.queued", "response.in_progress"})
_LAST = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})
_LARGE_LAST = re.compile(rb'"type"[ \t]*:[ \t]*"response\.(completed|incomplete|failed|cancelled)"')
_LARGE_RESPONSE = re.compile(rb'"response"[ \t]*:[ \t]*\{')
_LARGE_ID = re.compile(rb'"response"[ \t]*:[ \t]*\{[ \t]*"id"[ \t]*:[ \t]*"([A-Za-z0-9_-][A-Za-z0-9_.=~:+-]{0,255})"')
_WANTED = frozenset({"id", "service_tier", "status", "tool_usage", "usage"})
# Where the head of a large event says what it is.
_HEAD_BYTES = 4_096
_KEPT_BYTES = 16


class ResponsesStream:
    """The StreamReader of responses, and MakesResponse. Bytes out are bytes in."""

    __slots__ = (
        "_calls",
        "_counter",
        "_in_opaque",
        "_kept",
        "_scanner",
        "_splitter",
        "_uncounted",
        "_usage",
        "_withheld",
        "ended",
        "failed",
        "made",
        "service_tier",
    )

    def __init__(self) -> None:
        self.ended = False
        self.failed = False
        self.service_tier = ""
        self.made: Made | None = None
        self._splitter = SseSplitter()
        self._counter = OutputCounter()
        self._calls = HostedCalls()
        self._usage: Mapping[str, object] | None = None
        self._uncounted = bytearray()
        self._withheld = bytearray()
        self._in_opaque = False
        self._scanner: MemberScanner | None = None  # of a last event that is too large to read
        self._kept = b""  # the end of what was seen of it

    @property
    def usage(self) -> Mapping[str, object] | None:
        return self._usage

    @property
    def output_seen(self) -> bool:
        self._count()
        return self._counter.events > 0

    def output_tokens_estimate(self) -> int:
        self._count()
        return self._counter.tokens

    def feed(self, data: bytes) -> bytes:
        if self._splitter.idle and not self.ended and self._scanner is None and is_whole(data) and _is_plain(data):
            self._keep_plain(data)
            return data
        out = bytearray()
        for kind, piece in self._splitter.feed(data):
            if kind is Kind.EVENTS:
                self._end_opaque(out)
                self._take_events(piece, out)
            elif kind is Kind.LINE_FEED:
                self._put(piece, out)
            else:
                self._take_opaque(piece, out)
        return bytes(out)

    def finish(self) -> bytes:
        out = bytearray()
        tail = self._splitter.rest()
        if self._scanner is not None:
            # Cut off before its end, it is no event to anybody; but what it was heard to say counts.
            is_usage_seen = "usage" in self._scanner.values
            self._kept += tail
            if is_usage_seen:
                self._end_opaque(out)
            else:
                out += self._kept
        elif tail:
            # An upstream that leaves out its last blank line may still have sent its usage.
            self._take_event(tail, out)
        out += self._withheld
        self._withheld.clear()
        return bytes(out)

    def _keep_plain(self, block: bytes) -> None:
        self._in_opaque = False
        self._uncounted += block
        if len(self._uncounted) > UNCOUNTED_BYTES_MAX:
            self._count()

    def _take_events(self, block: bytes, out: bytearray) -> None:
        self._in_opaque = False
        if not self.ended and _is_plain(block):
            self._keep_plain(block)
            self._put(block, out)
            return
        for event in split_events(block):
            self._take_event(event, out)

    def _take_event(self, event: bytes, out: bytearray) -> None:
        data = event_data(event)
        if data is not None and data.startswith(b"[DONE]"):
            self.ended = True
        elif data is not None:
            self._read_event(data)
        self._put(event, out)

    def _put(self, piece: bytes, out: bytearray) -> None:
        if self.ended:
            self._withheld += piece[: WITHHELD_BYTES_MAX - len(self._withheld)]
        else:
            out += piece

    def _read_event(self, data: bytes) -> None:
        try:
            event = parse(data)
        except orjson.JSONDecodeError:
            self._take_unparsed(data)
            return
        if not isinstance(event, dict):
            return
        kind = event.get("type")
        kind = kind if isinstance(kind, str) else ""
        response = event.get("response")
        if is_error(event):
            self.failed = True
        elif kind in _LAST and isinstance(response, dict):
            self.failed = self.failed or kind == "response.failed"
            self._take_last(response)
        elif kind in _FIRST and isinstance(response, dict):
            self.made = self.made or made_of(response)
        elif kind == "response.output_item.done":
            self._calls.add(event.get("item"))
        else:
            _count_event(event, self._counter)

    def _take_last(self, response: Mapping[str, object]) -> None:
        self.ended = True
        self._usage = merge_usage(self._usage, usage_of(response, self._calls))
        if isinstance(tier := response.get("service_tier"), str):
            self.service_tier = tier
        if (made := made_of(response)) is not None:
            self.made = Made(made.response_id, True)

    def _take_unparsed(self, data: bytes) -> None:
        """An event that our parser refuses and a client's may not, such as one with NaN: a token, and its usage."""
        if (last := _LARGE_LAST.search(data)) is None:
            self._counter.add(0)
            return
        self.failed = self.failed or last.group(1) == b"failed"
        self._begin_last(data)
        self._end_last()

    # A last event too large to read -----------------------------------------------------------------------------------

    def _take_opaque(self, piece: bytes, out: bytearray) -> None:
        # Only the last piece of such an event ends with a line end.
        is_end = piece.endswith((b"\n", b"\r"))
        if not self._in_opaque:
            head = piece[:_HEAD_BYTES]
            if self.made is None and (begin := _LARGE_ID.search(head)) is not None:
                self.made = Made(begin.group(1).decode(), False)
            if not self.ended and _LARGE_LAST.search(head):
                self._begin_last(piece)
                self.failed = self.failed or b"response.failed" in head
            else:
                self._counter.add(0)
        elif self._scanner is not None:
            self._scanner.feed(piece)
        self._in_opaque = not is_end
        if self._scanner is None:
            self._put(piece, out)
            return
        held = self._kept + piece
        self._kept = held[-_KEPT_BYTES:]
        out += held[:-_KEPT_BYTES]
        if is_end:
            self._end_opaque(out)

    def _begin_last(self, data: bytes) -> None:
        """Scan the members of the response inside of the event, wherever it begins."""
        self._scanner = MemberScanner(_WANTED)
        if (begin := _LARGE_RESPONSE.search(data)) is not None:
            self._scanner.feed(data[begin.end() - 1 :])

    def _end_opaque(self, out: bytearray) -> None:
        if self._scanner is not None:
            self._end_last()
            self._put(self._kept, out)
            self._kept = b""

    def _end_last(self) -> None:
        scanner, self._scanner = self._scanner, None
        members: dict[str, object] = {}
        for name, raw in scanner.values.items() if scanner is not None else ():
            try:
                members[name] = parse(raw)
            except orjson.JSONDecodeError:
                continue
        self._take_last(members)

    # Counting ---------------------------------------------------------------------------------------------------------

    def _count(self) -> None:
        if self._uncounted:
            _count_block(bytes(self._uncounted), self._counter)
            self._uncounted.clear()


def _is_plain(block: bytes) -> bool:
    """Whether a block can be passed on unread: it has none of the events that matter before they are counted."""
    return all(block.find(word) < 0 for word in _READ)


def _count_block(block: bytes, counter: OutputCounter) -> None:
    for event in split_events(block):
        data = event_data(event)
        if data is None or data.find(b"delta") < 0:
            continue
        try:
            document = parse(data)
        except orjson.JSONDecodeError:
            counter.add(0)
            continue
        if isinstance(document, dict):
            _count_event(document, counter)


def _count_event(event: Mapping[str, object], counter: OutputCounter) -> None:
    """The text of a delta, whatever it is of; each is at least a token."""
    kind, delta = event.get("type"), event.get("delta")
    if isinstance(kind, str) and kind.endswith(".delta") and isinstance(delta, str) and delta:
        counter.add(utf8_bytes(delta))
