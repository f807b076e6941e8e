"""Server-sent events, split where they end and never re-joined: what goes in comes out, byte for byte.

Theory. A line ends with LF, CRLF or CR; an event ends with a blank line. Blank lines that follow are pieces of their
own, so that an event never begins with one. A CR at the very end of a read may be half of a CRLF: the event is given
out at once, and a LF that opens the next read is given out as a `LINE_FEED` piece, to share the fate of that event.
So neither the bytes nor the events depend on where the reads fall.
"""

import re
from enum import Enum, auto
from typing import NamedTuple

EVENT_BYTES_MAX = 262_144

# Two line ends in a row. A CR directly before a LF is never a line end of its own.
_LINE_END = rb"(?:\r\n|\n|\r(?!\n))"
_BLANK_LINE = re.compile(_LINE_END + rb"{2}")
_BLANK_LINES = re.compile(_LINE_END + rb"{2,}")
_LINE_ENDS = b"\r\n"
BOM = b"\xef\xbb\xbf"
EVENT_STREAM = "text/event-stream"
# A read that stopped inside a blank line ends with at most one line end, and that is at most CRLF.
_LINE_END_BYTES_MAX = 2


class Kind(Enum):
    """What a piece is."""

    EVENTS = auto()  # one or more whole events, each with its terminator
    OPAQUE = auto()  # a part of an event that is over the limit; not to be read
    LINE_FEED = auto()  # the second half of the CRLF that ended the event before it


class Piece(NamedTuple):
    """A run of bytes given out by the splitter."""

    kind: Kind
    data: bytes


class SseSplitter:
    """Splits a stream of any chunking into pieces; retains less than one event, and no more than the limit.

    All pieces, then `rest()`, joined, are the input. Feeding is linear however small the reads are.
    """

    __slots__ = ("_after_cr", "_event_bytes_max", "_has_cr", "_opaque", "_pending", "idle")

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._event_bytes_max = event_bytes_max
        self._pending = bytearray()
        self._has_cr = False  # a CR is in `_pending`
        self._after_cr = False  # the last event given out ended with a CR at the end of its read
        self._opaque = False  # inside an event over the limit; `_pending` is then at most one line end
        self.idle = True  # nothing is retained: the next read begins an event

    def feed(self, data: bytes) -> list[Piece]:
        """The pieces that `data` completes, in order."""
        pieces: list[Piece] = []
        if self._after_cr and data:
            self._after_cr = False
            if data.startswith(b"\n"):
                pieces.append(Piece(Kind.LINE_FEED, b"\n"))
                data = data[1:]
        if self._opaque:
            data = self._feed_opaque(data, pieces)
        if data:
            self._feed_events(data, pieces)
        self.idle = not (self._pending or self._opaque or self._after_cr)
        return pieces

    def rest(self) -> bytes:
        """The incomplete event at the end of the stream; the splitter is then empty."""
        rest = bytes(self._pending)
        self._pending.clear()
        self._has_cr = self._after_cr = self._opaque = False
        self.idle = True
        return rest

    def _feed_events(self, data: bytes, pieces: list[Piece]) -> None:
        self._has_cr = self._has_cr or data.find(b"\r") >= 0
        pending = self._pending
        if pending:
            searched = max(0, len(pending) - _LINE_END_BYTES_MAX)
            pending += data
            end = _blocks_end(pending, searched, has_cr=self._has_cr)
            block = bytes(pending[:end])
            del pending[:end]
        else:
            end = _blocks_end(data, 0, has_cr=self._has_cr) or _leading_line_ends(data)
            block = data[:end]
            pending += data[end:]
        if block:
            self._give(block, pieces)
            self._after_cr = not pending and block.endswith(b"\r")
            self._has_cr = b"\r" in pending
        if len(pending) > self._event_bytes_max:
            self._overflow(pieces)

    def _give(self, block: bytes, pieces: list[Piece]) -> None:
        """Give out whole events, those over the limit as opaque."""
        if len(block) <= self._event_bytes_max:
            pieces.append(Piece(Kind.EVENTS, block))
            return
        within: list[bytes] = []
        for event in split_events(block):
            if _content_bytes(event) <= self._event_bytes_max:
                within.append(event)
                continue
            if within:
                pieces.append(Piece(Kind.EVENTS, b"".join(within)))
                within = []
            pieces.append(Piece(Kind.OPAQUE, event))
        if within:
            pieces.append(Piece(Kind.EVENTS, b"".join(within)))

    def _overflow(self, pieces: list[Piece]) -> None:
        """Let go of an incomplete event over the limit, but for the line end that a blank line may begin with."""
        content_bytes = _content_bytes(self._pending)
        if content_bytes <= self._event_bytes_max:
            return
        self._opaque = True
        pieces.append(Piece(Kind.OPAQUE, bytes(self._pending[:content_bytes])))
        del self._pending[:content_bytes]

    def _feed_opaque(self, data: bytes, pieces: list[Piece]) -> bytes:
        """Pass on the rest of an event over the limit; return what follows it."""
        data = bytes(self._pending) + data
        self._pending.clear()
        end = _BLANK_LINE.search(data)
        if end is not None:
            self._opaque = False
            pieces.append(Piece(Kind.OPAQUE, data[: end.end()]))
            self._after_cr = end.end() == len(data) and data.endswith(b"\r")
            self._has_cr = False
            return data[end.end() :]
        content_bytes = _content_bytes(data)
        if content_bytes:
            pieces.append(Piece(Kind.OPAQUE, data[:content_bytes]))
        self._pending += data[content_bytes:]
        return b""


def is_whole(data: bytes, event_bytes_max: int = EVENT_BYTES_MAX) -> bool:
    """Whether an idle splitter would hand `data` back as it is: whole events within the limit, with plain line ends."""
    # `find` is twice as fast as `in`, which first asks whether its operand is a number.
    return data.endswith(b"\n\n") and data.find(b"\r") < 0 and len(data) <= event_bytes_max


def split_events(block: bytes) -> list[bytes]:
    """The events of a block of whole events, each with its terminator; further blank lines are items of their own."""
    if block.find(b"\r") < 0 and block.endswith(b"\n\n") and block[0] not in _LINE_ENDS and block.find(b"\n\n\n") < 0:
        return [event + b"\n\n" for event in block[:-2].split(b"\n\n")]
    events: list[bytes] = []
    start = 0
    for blank in _BLANK_LINE.finditer(block):
        if block[start] in _LINE_ENDS and (leading := _leading_line_ends(block[start : blank.start()])):
            events.append(block[start : start + leading])
            start += leading
        events.append(block[start : blank.end()])
        start = blank.end()
    if start < len(block):
        events.append(block[start:])
    return events


def event_end(data: bytes, start: int) -> int:
    """Where the first event ends whose blank line begins at `start` or later; 0 where none does."""
    if data.find(b"\r", start) < 0:  # a pattern takes milliseconds over a long event
        found = data.find(b"\n\n", start)
        return found + 2 if found >= 0 else 0
    blank = _BLANK_LINE.search(data, start)
    return 0 if blank is None else blank.end()


def event_data(event: bytes) -> bytes | None:
    """The data of one event, its `data` lines joined with LF; None for an event without any. A BOM is skipped."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and event.find(b"\r") < 0:
        return event[6:-2]
    values: list[bytes] = []
    for line in event.removeprefix(BOM).splitlines():
        if line.startswith(b"data:"):
            values.append(line[6:] if line.startswith(b"data: ") else line[5:])
        elif line == b"data":
            values.append(b"")
    return b"\n".join(values) if values else None


def _blocks_end(data: bytes | bytearray, start: int, *, has_cr: bool) -> int:
    """Where the last whole event in `data` ends, or 0; no blank line begins before `start`."""
    if not has_cr:
        found = data.rfind(b"\n\n", start)
        return found + 2 if found >= 0 else 0
    end = 0
    for blank in _BLANK_LINES.finditer(data, start):
        end = blank.end()
    return end


def _leading_line_ends(data: bytes) -> int:
    return len(data) - len(data.lstrip(_LINE_ENDS))


def _content_bytes(event: bytes | bytearray) -> int:
    """The size of an event without the line ends that close it, so that it does not depend on how they arrived."""
    return len(event.rstrip(_LINE_ENDS))
