"""The top-level members of a JSON object, found and set without parsing or rewriting the rest of it.

Theory. Only quotes, brackets and top-level commas need looking at. `_CONTENT` steps over strings, plain text and
nested values that lie whole in the data, a few levels deep, in one match; what is deeper or cut off is followed with
a counter. So nothing recurses, and neither megabytes of base64 nor long lists cost a step in Python each.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from enum import Enum, auto

import orjson

VALUE_BYTES_MAX = 65_536
# A longer name is none of ours; the limit bounds what a scan retains.
NAME_BYTES_MAX = 1_024
_CLOSING_BRACE = ord("}")
# Steps in Python that one whole body may cost: a few tenths of a second. No honest body comes near.
STEPS_MAX = 100_000

_SPACE_PATTERN = rb"[ \t\r\n]*+"
_STRING_PATTERN = rb'"(?:[^"\\]++|\\.)*+"'
_SPACE = re.compile(_SPACE_PATTERN)
_SCALAR = re.compile(rb"[^ \t\r\n,\]}]*+")
# A name, and its value with what follows it where that is no object and no list.
_MEMBER = re.compile(
    rb"%b(%b)%b:%b(?:(%b|[^ \t\r\n,\[\]{}\"]++)%b([,}]))?+"
    % (_SPACE_PATTERN, _STRING_PATTERN, _SPACE_PATTERN, _SPACE_PATTERN, _STRING_PATTERN, _SPACE_PATTERN),
    re.DOTALL,
)
_AFTER_VALUE = re.compile(_SPACE_PATTERN + rb"([,}])")
_STRING_REST = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_LONE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


def _content_pattern(depth: int) -> bytes:
    """Everything up to an unmatched bracket or quote, with nested values up to `depth` levels stepped over."""
    nested = b"" if depth == 0 else rb"|[\[{]" + _content_pattern(depth - 1) + rb"[\]}]"
    return rb'(?:[^"\[\]{}]++|' + _STRING_PATTERN + nested + rb")*+"


_CONTENT = re.compile(_content_pattern(5), re.DOTALL)
# Of nested values at a time, where they are followed as they come.
_LOOKED_AT_BYTES = 4_096
# From here on stepping over text by its length beats matching what cannot be stepped over.
_DEEP = 16


class MalformedJson(ValueError):
    """Not a JSON object, as far as its top level shows, or one too entangled to read in bounded time."""


def parse(document: bytes) -> object:
    """The parsed JSON. Raises orjson.JSONDecodeError, a ValueError.

    Half of a surrogate pair, which JavaScript writes when it cuts a string and which orjson refuses, reads as U+FFFD.
    """
    try:
        return orjson.loads(document)
    except orjson.JSONDecodeError:
        if not _LONE_SURROGATE.search(document):
            raise
    return orjson.loads(_LONE_SURROGATE.sub(rb"\\ufffd", document))


def duplicate_member(body: bytes, names: frozenset[str]) -> str | None:
    """The first of `names` that occurs twice at top level, after unescaping and case-folding. Raises MalformedJson."""
    seen: set[str] = set()
    for name, _, _ in _members(body):
        folded = name.casefold()
        if folded in names:
            if folded in seen:
                return folded
            seen.add(folded)
    return None


def member_values(body: bytes, names: frozenset[str]) -> dict[str, bytes]:
    """The raw values of the wanted top-level members, the last of each. Raises MalformedJson."""
    if not _spelled(body, names):
        return {}
    return {name: body[start:end] for name, start, end in _members(body) if name in names}


def with_members(body: bytes, members: Mapping[str, object]) -> bytes:
    """`body` with top-level members set, every other byte unchanged. Raises MalformedJson.

    A member that is there has its value replaced, each time it occurs; a new one goes right after the opening brace.
    """
    if not members:
        return body
    opening = _opening(body)
    values = {name: orjson.dumps(value) for name, value in members.items()}
    pieces: list[bytes] = []
    position, found = opening, set()
    spelled = _spelled(body, values)
    for name, start, end in _members(body) if spelled else ():
        if name in values:
            pieces += (body[position:start], values[name])
            position = end
            found.add(name)
            spelled -= 1
            if spelled == 0:
                break
    added = [orjson.dumps(name) + b":" + value for name, value in values.items() if name not in found]
    if added and body[_skip_space(body, opening)] != _CLOSING_BRACE:
        added.append(b"")  # a comma before the first member that was there
    return b"".join((body[:opening], b",".join(added), *pieces, body[position:]))


def _spelled(body: bytes, names: Collection[str]) -> int:
    """How many members of any of `names` there are at most, at any depth, counted without a scan."""
    if body.find(b"\\u") >= 0 or not all(name.isidentifier() for name in names):
        return len(body)  # anything may be spelled in escapes
    return sum(body.count(b'"%b"' % name.encode()) for name in names)


def _opening(body: bytes) -> int:
    """The position right after the opening brace."""
    start = _skip_space(body, 0)
    if body[start : start + 1] != b"{":
        raise MalformedJson("not a JSON object")
    if _skip_space(body, start + 1) == len(body):
        raise MalformedJson("the object does not end")
    return start + 1


def _members(body: bytes) -> Iterator[tuple[str, int, int]]:
    """Name, and start and end of the value, of each top-level member."""
    position = _opening(body)
    if body[_skip_space(body, position)] == _CLOSING_BRACE:
        return
    for _ in range(STEPS_MAX):
        member = _MEMBER.match(body, position)
        if member is None:
            raise MalformedJson(f"byte {position}: a member must stand here")
        name = _unescape(member.group(1))
        after = member
        if member.group(2) is not None:
            yield name, member.start(2), member.end(2)
            last = member.group(3)
        else:
            start = member.end()
            end = _nested_end(body, start)
            yield name, start, end
            following = _AFTER_VALUE.match(body, end)
            if following is None:
                raise MalformedJson(f"byte {end}: a comma or a closing brace must stand here")
            after, last = following, following.group(1)
        if last == b"}":
            return
        position = after.end()
    raise MalformedJson("too many members")


def _nested_end(body: bytes, start: int) -> int:
    """Where the object or list that must begin at `start` ends."""
    if body[start : start + 1] not in (b"{", b"["):
        raise MalformedJson(f"byte {start}: a value must stand here")
    depth, end = 1, start + 1
    for _ in range(STEPS_MAX):
        if depth >= _DEEP:
            end, depth = _skip_deep(body, end, depth)
        end = _matched_end(_CONTENT, body, end) + 1
        bracket = body[end - 1 : end]
        if bracket in (b"]", b"}"):
            depth -= 1
        elif bracket in (b"[", b"{"):
            depth += 1
        else:
            raise MalformedJson(f"byte {end - 1}: the value does not end")
        if depth == 0:
            return end
    raise MalformedJson("too deeply nested")


def _skip_deep(data: bytes, start: int, depth: int) -> tuple[int, int]:
    """Skip text without strings, and count its brackets: fewer bytes than `depth` cannot close the value."""
    end = min(start + depth - 1, len(data))
    if (quote := data.find(b'"', start, end)) >= 0:
        end = quote
    opening = data.count(b"[", start, end) + data.count(b"{", start, end)
    closing = data.count(b"]", start, end) + data.count(b"}", start, end)
    return end, depth + opening - closing


def _skip_space(body: bytes, start: int) -> int:
    return _matched_end(_SPACE, body, start)


def _matched_end(pattern: re.Pattern[bytes], data: bytes, start: int) -> int:
    """Where the match of a pattern that may match nothing ends."""
    match = pattern.match(data, start)
    return match.end() if match else start


def _unescape(name: bytes) -> str:
    """The text of a JSON string, quotes included; one that no parser accepts equals no name of ours."""
    if b"\\" not in name:
        return name[1:-1].decode("utf-8", "replace")
    try:
        return str(parse(name))
    except orjson.JSONDecodeError:
        return ""


class _At(Enum):
    """Where in the object a scan stands."""

    OPENING = auto()
    NAME_OR_END = auto()
    NAME = auto()
    NAME_TEXT = auto()
    COLON = auto()
    VALUE = auto()
    STRING = auto()
    SCALAR = auto()
    NESTED = auto()
    NESTED_STRING = auto()
    COMMA_OR_END = auto()
    END = auto()


class MemberScanner:
    """Finds the raw values of wanted top-level members in a JSON object that arrives in pieces.

    Memory is bounded by `value_bytes_max` for each wanted name; a longer value is not kept. Of a member that occurs
    twice the last counts. Below the top level only quotes and the number of brackets are looked at.
    `complete`: the closing brace of the object was seen. `malformed`: this is no JSON object; nothing more is read.
    """

    __slots__ = (
        "_at",
        "_depth",
        "_escaped",
        "_kept",
        "_name",
        "_name_text",
        "_names",
        "_value_bytes_max",
        "malformed",
        "values",
    )

    def __init__(self, names: frozenset[str], value_bytes_max: int = VALUE_BYTES_MAX) -> None:
        self._names = names
        self._value_bytes_max = value_bytes_max
        self._at = _At.OPENING
        self._depth = 0  # of brackets around us, inside a nested value
        self._escaped = False  # the string goes on after a backslash that ended the last piece
        self._name_text = bytearray()  # the raw name that is being read
        self._name = ""
        self._kept: bytearray | None = None  # the value so far, if it is wanted
        self.malformed = False
        self.values: dict[str, bytes] = {}

    @property
    def complete(self) -> bool:
        return self._at is _At.END and not self.malformed

    def feed(self, data: bytes) -> None:
        position = 0
        while position < len(data) and not self.malformed:
            if self._at in (_At.STRING, _At.NESTED_STRING, _At.NAME_TEXT):
                position = self._feed_string(data, position)
            elif self._at is _At.NESTED:
                position = self._feed_nested(data, position)
            elif self._at is _At.SCALAR:
                position = self._feed_scalar(data, position)
            else:
                position = self._feed_between(data, position)

    def _feed_between(self, data: bytes, position: int) -> int:
        """One step between the tokens of the top level."""
        position = _skip_space(data, position)
        if position == len(data):
            return position
        byte = data[position : position + 1]
        match self._at, byte:
            case _At.OPENING, b"{":
                self._at = _At.NAME_OR_END
            case ((_At.NAME_OR_END | _At.NAME), b'"'):
                self._name_text.clear()
                self._at = _At.NAME_TEXT
            case _At.COLON, b":":
                self._at = _At.VALUE
            case _At.VALUE, _:
                return self._begin_value(byte, position)
            case _At.COMMA_OR_END, b",":
                self._at = _At.NAME
            case ((_At.COMMA_OR_END | _At.NAME_OR_END), b"}"):
                self._at = _At.END
            case _:
                self.malformed = True
        return position + 1

    def _begin_value(self, first: bytes, position: int) -> int:
        self._kept = bytearray() if self._name in self._names else None
        if first in (b",", b"}", b"]", b":"):
            self.malformed = True
        elif first == b'"':
            self._at = _At.STRING
        elif first in (b"{", b"["):
            self._at, self._depth = _At.NESTED, 1
        else:
            self._at = _At.SCALAR
            return position
        self._keep(first, 0, 1)
        return position + 1

    def _feed_string(self, data: bytes, start: int) -> int:
        """The rest of a string, up to and including its closing quote if that is here."""
        end = start
        if self._escaped:
            self._escaped = False
            end += 1
        end = _string_rest_end(data, end)
        closed = data[end : end + 1] == b'"'
        if not closed and end < len(data):
            # A backslash at the very end is all that the pattern leaves.
            self._escaped = True
            end += 1
        if self._at is _At.NAME_TEXT:
            room = NAME_BYTES_MAX + 1 - len(self._name_text)
            self._name_text += data[start : min(end, start + room)]
        else:
            self._keep(data, start, end + closed)
        if closed:
            self._leave_string()
            end += 1
        return end

    def _leave_string(self) -> None:
        if self._at is _At.NAME_TEXT:
            fits = len(self._name_text) <= NAME_BYTES_MAX
            self._name = _unescape(b'"%b"' % bytes(self._name_text)) if fits else ""
            self._at = _At.COLON
        elif self._at is _At.NESTED_STRING:
            self._at = _At.NESTED
        else:
            self._end_value()

    def _feed_nested(self, data: bytes, start: int) -> int:
        """Inside brackets, up to the next one that closes, or opens and does not close in what is looked at."""
        end = start
        if self._depth >= _DEEP:
            end, self._depth = _skip_deep(data, start, self._depth)
        # No further: what is cut off is matched in vain, once for each level that it is nested in.
        limit = min(len(data), end + _LOOKED_AT_BYTES)
        match = _CONTENT.match(data, end, limit)
        end = match.end() if match else end
        if end < limit:
            byte = data[end]
            end += 1
            if byte in b"]}":
                self._depth -= 1
            elif byte in b"[{":
                self._depth += 1
            else:
                self._at = _At.NESTED_STRING
        self._keep(data, start, end)
        if self._depth == 0:
            self._end_value()
        return end

    def _feed_scalar(self, data: bytes, start: int) -> int:
        end = _matched_end(_SCALAR, data, start)
        self._keep(data, start, end)
        if end < len(data):
            self._end_value()
        return end

    def _keep(self, data: bytes, start: int, end: int) -> None:
        if self._kept is not None:
            if len(self._kept) + end - start <= self._value_bytes_max:
                self._kept += data[start:end]
            else:
                self._kept = None
                self.values.pop(self._name, None)

    def _end_value(self) -> None:
        if self._kept is not None:
            self.values[self._name] = bytes(self._kept)
            self._kept = None
        self._at = _At.COMMA_OR_END


def _string_rest_end(data: bytes, start: int) -> int:
    """Where the closing quote stands, or a backslash that ends the data, or the end of the data."""
    # Long strings are base64 without escapes: finding a byte is twenty times as fast as matching a class.
    quote = data.find(b'"', start)
    quote = len(data) if quote < 0 else quote
    backslash = data.find(b"\\", start, quote)
    return quote if backslash < 0 else _matched_end(_STRING_REST, data, backslash)
