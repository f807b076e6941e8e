"""Reads streams of events that carry sound, images or a transcript: their usage, how much came, their end.

An event may be megabytes of base64. One within the splitter's limit is parsed; of a larger one only `type`, `usage`
and `error` are looked for, while it passes. The event that ends a reply is withheld until the settle; of one that is
too large for that, its last bytes are, without which no client has an event.
"""

import re
from collections.abc import Mapping
from typing import Protocol

import orjson

from gateway.core.json_members import MemberScanner, parse
from gateway.core.sse import EVENT_BYTES_MAX, Kind, SseSplitter, event_data, split_events
from gateway.core.usage import merge_usage

WITHHELD_BYTES_MAX = 2 * EVENT_BYTES_MAX
_WANTED = frozenset({"type", "usage", "error"})
_DATA = re.compile(rb"(?:^|[\r\n])data:")
# Of a large event: its closing quote and brackets, and the blank line.
_KEPT_BYTES = 32
_ENDS = ("transcript.text.done", "speech.audio.done", "image_generation.completed", "image_edit.completed")


class Counter(Protocol):
    """Counts what events carry, in units of the request's `output_units`."""

    def add(self, kind: str, event: Mapping[str, object] | None, size: int) -> None:
        """One event of `size` bytes; `event` is None where it was too large to be parsed."""

    def count(self) -> int:
        """The units so far; 0 where nothing came."""


class MediaStream:
    """The StreamReader of such streams. Bytes out are bytes in."""

    def __init__(self, counter: Counter) -> None:
        self.ended = False
        self.failed = False
        self.service_tier = ""
        self._counter = counter
        self._splitter = SseSplitter()
        self._usage: Mapping[str, object] | None = None
        self._withheld = bytearray()
        self._scan: MemberScanner | None = None  # of the large event that is passing
        self._scanned_bytes = 0
        self._kept = b""

    @property
    def usage(self) -> Mapping[str, object] | None:
        return self._usage

    @property
    def output_seen(self) -> bool:
        return self._counter.count() > 0

    def output_tokens_estimate(self) -> int:
        return self._counter.count()

    def feed(self, data: bytes) -> bytes:
        out = bytearray()
        for kind, piece in self._splitter.feed(data):
            if kind is Kind.EVENTS:
                self._end_large(out)
                for event in split_events(piece):
                    self._take_event(event, out)
            elif kind is Kind.OPAQUE:
                self._take_large(piece, out)
            else:
                self._put(piece, out)
        return bytes(out)

    def finish(self) -> bytes:
        out = bytearray()
        tail = self._splitter.rest()
        if self._scan is not None:
            self._kept += tail
            self._end_large(out)
        elif tail:
            self._take_event(tail, out)
        out += self._withheld
        self._withheld.clear()
        return bytes(out)

    def _take_event(self, event: bytes, out: bytearray) -> None:
        data = event_data(event)
        if data is not None:
            if data.startswith(b"[DONE]"):
                self.ended = True
            else:
                self._read(data, event)
        self._put(event, out)

    def _read(self, data: bytes, written: bytes) -> None:
        try:
            event = parse(data)
        except orjson.JSONDecodeError:
            # Refused by our parser, such as a NaN, and maybe not by a client's.
            scan = MemberScanner(_WANTED)
            scan.feed(data)
            if scan.complete:
                self._take_scanned(scan, len(data), _name_of(written))
            return
        if isinstance(event, dict):
            kind = event.get("type")
            self._take(kind if isinstance(kind, str) else _name_of(written), event, len(data))

    def _take(self, kind: str, event: Mapping[str, object], size: int, *, is_whole: bool = True) -> None:
        """What one event says."""
        if event.get("error") or kind == "error":
            self.failed = True
            return
        usage = event.get("usage")
        if isinstance(usage, dict):
            self._usage = merge_usage(self._usage, usage) if "seconds" not in usage else usage
        self._counter.add(kind, event if is_whole else None, size)
        if kind in _ENDS:
            self.ended = True

    def _take_large(self, piece: bytes, out: bytearray) -> None:
        scan = self._scan
        if scan is None:
            scan = self._scan = MemberScanner(_WANTED)
            self._scanned_bytes = 0
            # Lines before the data are short, and the first piece of an event that is too large is not.
            found = _DATA.search(piece)
            scan.feed(piece[found.end() :] if found is not None else b"")
        else:
            scan.feed(piece)
        self._scanned_bytes += len(piece)
        data = self._kept + piece
        self._kept = data[-_KEPT_BYTES:]
        self._put(data[:-_KEPT_BYTES], out)
        if _is_end(data):
            self._end_large(out)

    def _end_large(self, out: bytearray) -> None:
        """The large event is over: what it was says whether its last bytes may go."""
        scan, self._scan = self._scan, None
        if scan is None:
            return
        kept, self._kept = self._kept, b""
        self._take_scanned(scan, self._scanned_bytes)
        self._put(kept, out)

    def _take_scanned(self, scan: MemberScanner, size: int, name: str = "") -> None:
        """What an event says that could not be parsed whole."""
        found = {name: _parsed(value) for name, value in scan.values.items()}
        kind = found.get("type")
        self._take(kind if isinstance(kind, str) else name, found, size, is_whole=False)

    def _put(self, piece: bytes, out: bytearray) -> None:
        """Pass a piece on, or keep it for after the settle once the end was seen."""
        if not self.ended:
            out += piece
            return
        self._withheld += piece[: WITHHELD_BYTES_MAX - len(self._withheld)]


def _name_of(event: bytes) -> str:
    """The name that an event has beside its data, where that says no type."""
    for line in event.splitlines():
        if line.startswith(b"event:"):
            return line[6:].strip().decode("utf-8", "replace")
    return ""


def _is_end(data: bytes) -> bool:
    """Whether a piece of a large event ends it: base64 and JSON have no line ends of their own."""
    tail = data[-4:].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return tail.endswith(b"\n\n")


def _parsed(value: bytes) -> object:
    try:
        return parse(value)
    except orjson.JSONDecodeError:
        return None


def error_event(document: Mapping[str, object]) -> bytes:
    """How such a stream ends that cannot go on: an error that the SDKs raise."""
    return b"event: error\ndata: %b\n\n" % orjson.dumps(document)
