"""A multipart form (RFC 7578), scanned as it arrives: names, values of fields, and where each part stands.

Nothing of a file is kept here but its position: whoever feeds the scanner keeps the bytes. What parsers read in more
than one way is refused, for the upstream's parser would decide what a call costs: bytes before the first boundary or
after the last, bare line feeds, folded or repeated headers, names with escapes, transfer encodings.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import NamedTuple

MEDIA_TYPE = "multipart/form-data"
PARTS_MAX = 256
HEAD_BYTES_MAX = 4_096
# Of one field that is no file, and of all of them. A prompt of 32,000 characters is 128 KB at most.
FIELD_BYTES_MAX = 262_144
FIELDS_BYTES_MAX = 1_048_576
NAME_CHARS_MAX = 200
READ_BYTES = 262_144
_SMALL_BYTES = 4_096

_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=?-]{1,70}")
_BOUNDARY_PARAMETER = re.compile(r'boundary=(?:"([^"\\]*)"|([^\s;"]+))', re.IGNORECASE)
_NAME = re.compile(r'[^"\\%;\x00-\x1f\x7f]+')
# `form-data`, then parameters, each a token and a quoted string, as every browser and SDK writes them.
_DISPOSITION = re.compile(r'form-data((?:; *[a-z*]+=(?:"(?:[^"\\]|\\.)*"|[^\s";]+))*) *;?', re.IGNORECASE)
_PARAMETER = re.compile(r'; *([a-z*]+)=("(?:[^"\\]|\\.)*"|[^\s";]+)', re.IGNORECASE)
_PLAIN_ENCODINGS = frozenset({"7bit", "8bit", "binary"})


class MalformedForm(ValueError):
    """Not a form that every parser reads alike, or one over a limit; the message says why."""


class Part(NamedTuple):
    """One part. `start` and `size_bytes` say where its content stands; `value` is that of a field, None for a file."""

    name: str
    filename: str | None
    content_type: str
    start: int
    size_bytes: int
    value: bytes | None

    @property
    def end(self) -> int:
        """Where the content ends."""
        return self.start + self.size_bytes


class Form(NamedTuple):
    """A whole form. `read(start, size)` gives bytes of the body as it was sent, at most 256 KB at a time."""

    parts: tuple[Part, ...]
    size_bytes: int
    read: Callable[[int, int], bytes]

    def bytes_of(self, start: int, end: int) -> Iterator[bytes]:
        """The body from `start` to `end`, in pieces."""
        while start < end:
            data = self.read(start, min(READ_BYTES, end - start))
            if not data:
                raise OSError("the body is shorter than it was")
            yield data
            start += len(data)

    def digest(self) -> bytes:
        """SHA-256 of what the form says, whatever its boundary is, which SDKs draw anew for each try."""
        total = hashlib.sha256()
        for part in self.parts:
            head = (part.name, part.filename, part.content_type, part.size_bytes)
            total.update(repr(head).encode("utf-8", "surrogatepass"))
            for data in self.bytes_of(part.start, part.end):
                total.update(data)
        return total.digest()

    def with_value(self, name: str, value: bytes) -> Iterator[bytes]:
        """The body with the value of every field `name` replaced, in pieces."""
        at = 0
        for part in self.parts:
            if part.name == name and part.filename is None:
                yield from self.bytes_of(at, part.start)
                yield value
                at = part.end
        yield from self.bytes_of(at, self.size_bytes)

    def with_field(self, boundary: bytes, name: str, value: bytes) -> "Form":
        """The form with this field: its value replaced where it is given, else at the front. Given twice, it stays."""
        given = [part for part in self.parts if part.name == name and part.filename is None]
        if len(given) > 1:
            return self
        if given:
            start, end, new, at_value = given[0].start, given[0].end, value, given[0].start
            parts = [part for part in self.parts if part is not given[0]]
        else:
            start = end = 0
            head = b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n' % (boundary, name.encode())
            new, parts, at_value = head + value + b"\r\n", list(self.parts), len(head)
        longer = len(new) - (end - start)

        def read(at: int, size: int) -> bytes:
            if at < start:
                return self.read(at, min(size, start - at))
            if at < start + len(new):
                return new[at - start :][:size]
            return self.read(at - longer, size)

        field = Part(name, None, "", at_value, len(value), value)
        moved = (part._replace(start=part.start + longer) if part.start >= end else part for part in parts)
        return Form((field, *moved), self.size_bytes + longer, read)

    def size_with(self, name: str, value: bytes) -> int:
        """How many bytes `with_value` gives."""
        replaced = [part for part in self.parts if part.name == name and part.filename is None]
        return self.size_bytes + sum(len(value) - part.size_bytes for part in replaced)


def boundary_of(content_type: str) -> bytes | None:
    """The boundary that a Content-Type header names; None if it is no form. Raises MalformedForm."""
    kind, _, parameters = content_type.partition(";")
    if kind.strip().lower() != MEDIA_TYPE:
        return None
    found = _BOUNDARY_PARAMETER.findall(parameters)
    if len(found) != 1 or len(re.findall(r"boundary\*?\s*=", parameters.lower())) != 1:
        raise MalformedForm("the Content-Type must name one boundary")
    boundary: str = found[0][0] or found[0][1]
    if not _BOUNDARY.fullmatch(boundary):
        raise MalformedForm("the boundary is not one of RFC 2046")
    return boundary.encode()


class _At(Enum):
    """Where in the form the scan stands."""

    FIRST = auto()  # before the first boundary
    BOUNDARY = auto()  # right after one: another part, or the end
    HEAD = auto()
    CONTENT = auto()
    END = auto()


class FormScanner:
    """Feed it the body in pieces of any size; then `finish`. Retains field values, and less than a boundary else."""

    __slots__ = ("_at", "_delimiter", "_fields_bytes", "_head", "_left", "_parts", "_position", "_size_bytes", "_value")

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._at = _At.FIRST
        # The line end before the first boundary may be missing: then it is as if it had been there.
        self._left = b"\r\n"
        self._position = -2  # of the first byte of `_left`
        self._head = Part("", None, "", 0, 0, None)
        self._value: bytearray | None = None
        self._size_bytes = 0
        self._fields_bytes = 0
        self._parts: list[Part] = []

    def feed(self, data: bytes) -> None:
        """Take the next piece. Raises MalformedForm."""
        if self._at is _At.CONTENT and len(data) > _SMALL_BYTES:
            self._take_left(data)
        data = self._left + data if self._left else data
        taken = 0
        while True:
            step = self._step(data, taken)
            if step < 0:
                break
            taken = step
        if self._at is _At.CONTENT:
            # All but what may be the beginning of a delimiter.
            safe = max(taken, len(data) - len(self._delimiter) + 1)
            self._content(data, taken, safe)
            taken = safe
        self._position += taken
        self._left = data[taken:]

    def _take_left(self, data: bytes) -> None:
        """What was left of the last piece is content, unless a delimiter may begin in it: then it is joined to this,
        which for the pieces of a large file would copy them all."""
        left = self._left
        if self._delimiter[2:] not in left + data[: len(self._delimiter)]:
            self._content(left, 0, len(left))
            self._position += len(left)
            self._left = b""

    def finish(self) -> tuple[Part, ...]:
        """The parts, once the body has ended. Raises MalformedForm."""
        if self._at is not _At.END or self._left:
            raise MalformedForm("the form does not end with its boundary")
        return tuple(self._parts)

    def _step(self, data: bytes, start: int) -> int:
        """One step from `start`; where the next begins, or -1 where more data is needed."""
        match self._at:
            case _At.FIRST:
                return self._first(data, start)
            case _At.BOUNDARY:
                return self._boundary(data, start)
            case _At.HEAD:
                return self._begin_part(data, start)
            case _At.CONTENT:
                end = self._end_of_content(data, start)
                if end < 0:
                    return -1
                self._content(data, start, end)
                self._end_part()
                self._at = _At.BOUNDARY
                return end + len(self._delimiter)
            case _At.END:
                # Some clients end the last line as well; nothing else may follow.
                if data[start:] not in (b"", b"\r", b"\r\n"):
                    raise MalformedForm("something follows the last boundary")
                if data[start:] == b"\r\n":
                    return len(data)
                return -1

    def _end_of_content(self, data: bytes, start: int) -> int:
        """Where the next delimiter begins, or -1."""
        dashes = self._delimiter[2:]
        at = data.find(dashes, start)
        while at >= 0:
            if data.endswith(b"\r\n", start, at):
                return at - 2
            # Some parsers take a line end of one byte for a delimiter's.
            if data.endswith((b"\r", b"\n"), start, at):
                raise MalformedForm("a boundary must stand on a line of its own")
            at = data.find(dashes, at + 1)
        return -1

    def _first(self, data: bytes, start: int) -> int:
        if len(data) - start < len(self._delimiter):
            if not self._delimiter.startswith(data[start:]):
                raise MalformedForm("the form must begin with its boundary")
            return -1
        if not data.startswith(self._delimiter, start):
            raise MalformedForm("the form must begin with its boundary")
        self._at = _At.BOUNDARY
        return start + len(self._delimiter)

    def _boundary(self, data: bytes, start: int) -> int:
        after = data[start : start + 2]
        if len(after) < 2:
            return -1
        if after == b"--":
            self._at = _At.END
        elif after == b"\r\n":
            if len(self._parts) == PARTS_MAX:
                raise MalformedForm(f"the form has more than {PARTS_MAX} parts")
            self._at = _At.HEAD
        else:
            raise MalformedForm("a boundary must end its line")
        return start + 2

    def _begin_part(self, data: bytes, start: int) -> int:
        end = data.find(b"\r\n\r\n", start)
        if end < 0 and len(data) - start <= HEAD_BYTES_MAX:
            return -1
        if end < 0 or end - start > HEAD_BYTES_MAX:
            raise MalformedForm(f"the head of a part is larger than {HEAD_BYTES_MAX} bytes")
        content = end + 4
        dashes = self._delimiter[2:]
        if len(data) - content < len(dashes):
            return -1
        # Some parsers end a part right there (Go's does), others take it for content.
        if data.startswith(dashes, content):
            raise MalformedForm("a part has no body, not even an empty one")
        self._head = _read_head(data[start:end], self._position + content)
        self._value = bytearray() if self._head.filename is None else None
        self._size_bytes = 0
        self._at = _At.CONTENT
        return content

    def _content(self, data: bytes, start: int, end: int) -> None:
        if end <= start:
            return
        self._size_bytes += end - start
        if self._value is None:
            return
        self._fields_bytes += end - start
        if self._size_bytes > FIELD_BYTES_MAX or self._fields_bytes > FIELDS_BYTES_MAX:
            raise MalformedForm(f"the field {self._head.name!r} is too large; send a file with its filename")
        self._value += data[start:end]

    def _end_part(self) -> None:
        value = None if self._value is None else bytes(self._value)
        self._parts.append(self._head._replace(size_bytes=self._size_bytes, value=value))
        self._value = None


def _read_head(head: bytes, start: int) -> Part:
    """A part as its headers describe it, its content beginning at `start`."""
    headers: dict[str, str] = {}
    for line in head.split(b"\r\n"):
        raw_name, colon, raw_value = line.partition(b":")
        name = raw_name.decode("latin-1").lower()
        try:
            value = raw_value.decode("utf-8").strip(" \t")
        except UnicodeDecodeError:
            raise MalformedForm("the head of a part is not UTF-8") from None
        if not colon or name in headers or not re.fullmatch(r"[a-z0-9-]+", name) or re.search(r"[\r\n\0]", value):
            raise MalformedForm("the head of a part cannot be read")
        headers[name] = value
    if headers.get("content-transfer-encoding", "binary").lower() not in _PLAIN_ENCODINGS:
        raise MalformedForm("parts must be sent as they are, without a transfer encoding")
    disposition = headers.get("content-disposition", "")
    if not _DISPOSITION.fullmatch(disposition):
        raise MalformedForm("a part needs a Content-Disposition of form-data")
    parameters: dict[str, str] = {}
    for key, value in _PARAMETER.findall(disposition):
        if key.lower() in parameters:
            raise MalformedForm("a parameter of a Content-Disposition is given twice")
        parameters[key.lower()] = value[1:-1] if value.startswith('"') else value
    part_name = parameters.get("name", "")
    if not _NAME.fullmatch(part_name) or len(part_name) > NAME_CHARS_MAX or not parameters.keys() <= _KNOWN_PARAMETERS:
        raise MalformedForm("a part needs a plain name")
    filename = parameters.get("filename", parameters.get("filename*"))
    return Part(part_name, filename, headers.get("content-type", "").lower(), start, 0, None)


_KNOWN_PARAMETERS = frozenset({"name", "filename", "filename*"})
