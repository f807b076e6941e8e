"""Reads a stream of chat or text completions as it passes: its usage, its output, its end.

Theory. A block of whole events that holds nothing of interest is passed on as it is, at the cost of a few substring
searches. Its output is counted later, a few kilobytes at a time, or never: a stream that reports its usage needs no
count of its last blocks. Blocks that may hold usage, an error or the end are read event by event.

What the client may only have after the settle is withheld: `[DONE]` with all that follows, and a usage-only event
while nothing but comments has followed it.
"""

import re
from collections.abc import Mapping
from enum import Enum, auto

import orjson

from gateway.core.estimate import OutputCounter, utf8_bytes
from gateway.core.json_members import parse
from gateway.core.sse import EVENT_BYTES_MAX, Kind, SseSplitter, event_data, is_whole, split_events
from gateway.core.usage import merge_usage
from gateway.core.usage_json import LargeReply

# How many relayed bytes may wait to be counted. Small, for there are as many of them as open streams.
UNCOUNTED_BYTES_MAX = 32_768
# Room for a usage event and an end event of any size that is read at all. After the end, what is over it is dropped:
# no client reads on after `[DONE]`, and an upstream that never stops must not fill our memory.
WITHHELD_BYTES_MAX = 2 * EVENT_BYTES_MAX

# The deltas of nearly every stream: one with text and nothing else, and those that begin and end a reply.
_TEXT_DELTA = b'"delta":{"content":"'
_EMPTY_DELTAS = (
    b'"delta":{}',
    b'"delta":{"role":"assistant","content":""}',
    b'"delta":{"role":"assistant","content":"","refusal":null}',
)
_TEXT_DELTA_REST = re.compile(rb'((?:[^"\\]++|\\.)*+)"\}')


class _Fate(Enum):
    """What became of an event; the second half of its CRLF may arrive later and shares it."""

    RELAYED = auto()
    WITHHELD = auto()
    REMOVED = auto()


class ChatStream:
    """The StreamReader of chat completions. Bytes out are bytes in, but for usage-only events where they are removed.

    Asking for the estimate counts what was relayed since it was last asked, about 2 µs an event: do not ask per read.
    """

    __slots__ = (
        "_counter",
        "_fate",
        "_in_opaque",
        "_open",
        "_remove_usage",
        "_splitter",
        "_uncounted",
        "_usage",
        "_withheld",
        "ended",
        "failed",
        "service_tier",
    )

    def __init__(self, *, remove_usage: bool) -> None:
        self.ended = False
        self.failed = False
        self.service_tier = ""
        self._remove_usage = remove_usage
        self._splitter = SseSplitter()
        self._counter = OutputCounter()
        self._usage: Mapping[str, object] | None = None
        self._uncounted = bytearray()  # whole events that were relayed and hold nothing but output
        self._withheld = bytearray()
        self._open = True  # nothing is withheld, and the end was not seen
        self._fate = _Fate.RELAYED
        self._in_opaque = False

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
        if self._splitter.idle and is_whole(data):
            end = _plain_end(data) if self._open else 0
            if end == len(data):
                self._uncounted += data
                if len(self._uncounted) > UNCOUNTED_BYTES_MAX:
                    self._count()
                return data
            out = bytearray()
            self._take_block(data, end, out)
            return bytes(out)
        out = bytearray()
        for kind, piece in self._splitter.feed(data):
            if kind is Kind.EVENTS:
                self._take_block(piece, _plain_end(piece) if self._open else 0, out)
            elif kind is Kind.LINE_FEED:
                self._put(piece, out)
            else:
                self._take_opaque(piece, out)
        return bytes(out)

    def finish(self) -> bytes:
        out = bytearray()
        # An upstream that leaves out its last blank line may still have sent its usage or its end.
        if tail := self._splitter.rest():
            self._take_event(tail, out)
        out += self._withheld
        self._withheld.clear()
        return bytes(out)

    def _take_block(self, block: bytes, end: int, out: bytearray) -> None:
        """Take whole events, of which those before `end` are plain."""
        if end:
            plain = block[:end]
            self._fate = _Fate.RELAYED
            self._in_opaque = False
            out += plain
            self._uncounted += plain
            if len(self._uncounted) > UNCOUNTED_BYTES_MAX:
                self._count()
        if end < len(block):
            self._take_events(block[end:], out)

    def _take_events(self, block: bytes, out: bytearray) -> None:
        self._in_opaque = False
        for event in split_events(block):
            self._take_event(event, out)

    def _take_opaque(self, piece: bytes, out: bytearray) -> None:
        """Pass on a part of an event too large to read; what it carried is at least one token."""
        if not self._in_opaque:
            self._in_opaque = True
            self._counter.add(0)
        self._settle_fate(out)
        self._put(piece, out)

    def _take_event(self, event: bytes, out: bytearray) -> None:
        data = event_data(event)
        if data is None:
            # A comment or a blank line ends nothing and proves nothing: it stays in its place.
            self._fate = _Fate.RELAYED if self._open else _Fate.WITHHELD
        elif data.startswith(b"[DONE]"):
            self.ended = True
            self._open = False
            self._fate = _Fate.WITHHELD
        elif self._read_chunk(data):
            if self._remove_usage:
                self._fate = _Fate.REMOVED
            else:
                self._settle_fate(out)
                self._open = False
                self._fate = _Fate.WITHHELD
        else:
            self._settle_fate(out)
        self._put(event, out)

    def _settle_fate(self, out: bytearray) -> None:
        """The fate of an event that is more of the stream: relayed, after whatever waited for the end."""
        if self.ended:
            self._fate = _Fate.WITHHELD
            return
        self._release(out)
        self._fate = _Fate.RELAYED

    def _release(self, out: bytearray) -> None:
        out += self._withheld
        self._withheld.clear()
        self._open = True

    def _put(self, piece: bytes, out: bytearray) -> None:
        if self._fate is _Fate.RELAYED:
            out += piece
        elif self._fate is _Fate.WITHHELD:
            room = WITHHELD_BYTES_MAX - len(self._withheld)
            if len(piece) > room and not self.ended:
                self._release(out)
                self._fate = _Fate.RELAYED
                out += piece
            else:
                self._withheld += piece[:room]

    def _read_chunk(self, data: bytes) -> bool:
        """Take in one chunk; whether it holds usage and nothing else."""
        try:
            chunk = parse(data)
        except orjson.JSONDecodeError:
            self._take_unparsed(data)
            return False
        if not isinstance(chunk, dict):
            return False
        if is_error(chunk):
            self.failed = True
        else:
            count_choices(chunk.get("choices"), self._counter)
        groq = chunk.get("x_groq")
        usage = chunk.get("usage")
        for candidate in (groq.get("usage") if isinstance(groq, dict) else None, usage):
            if isinstance(candidate, dict):
                self._usage = merge_usage(self._usage, candidate)
                # The tier beside the usage is the one it was used in; which other chunks are read depends on the reads.
                if isinstance(tier := chunk.get("service_tier"), str):
                    self.service_tier = tier
        return chunk.get("choices") == [] and isinstance(usage, dict) and not is_error(chunk)

    def _take_unparsed(self, data: bytes) -> None:
        """A chunk that our parser refuses and a client's may not, such as one with NaN: a token, and its usage."""
        scanned = LargeReply()
        scanned.feed(data)
        if scanned.is_complete:
            self._counter.add(0)
            self._usage = merge_usage(self._usage, scanned.usage)

    def _count(self) -> None:
        if self._uncounted:
            _count_block(bytes(self._uncounted), self._counter)
            self._uncounted.clear()


def is_error(document: Mapping[str, object]) -> bool:
    """Whether a chunk or a reply is an error: OpenAI's envelope, Mistral's, or the flat form. `error: null` is none."""
    return bool(document.get("error")) or document.get("object") == "error" or document.get("type") == "error"


def count_choices(choices: object, counter: OutputCounter) -> None:
    """Count the generated text of `choices`, of a chunk or of a whole reply; each that carries any is one event."""
    if not isinstance(choices, list):
        return
    for choice in choices:
        if not isinstance(choice, dict):
            continue
        part = choice.get("delta") or choice.get("message")
        part = part if isinstance(part, dict) else {}
        text_bytes = carried = 0
        # Some servers send the same text twice: reasoning under both of its names, content also as `text`.
        content = part.get("content") or choice.get("text")
        reasoning = part.get("reasoning_content") or part.get("reasoning")
        for text in (content, reasoning, part.get("refusal")):
            if text:
                carried = 1
                text_bytes += utf8_bytes(text) if isinstance(text, str) else _parts_bytes(text)
        if isinstance(audio := part.get("audio"), dict):
            carried = 1
            text_bytes += _audio_bytes(audio)
        if (calls := part.get("tool_calls")) or part.get("function_call"):
            carried = 1
            text_bytes += _calls_bytes(calls, part.get("function_call"))
        counter.add(text_bytes, carried)


def _parts_bytes(content: object) -> int:
    """The text in content that is a list of parts, such as Mistral's `thinking` before its `text`."""
    total = 0
    waiting = [content]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            total += utf8_bytes(item)
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, dict):
            waiting += (item.get("text"), item.get("thinking"))
    return total


def _audio_bytes(audio: Mapping[str, object]) -> int:
    """As many bytes as a text of so many tokens has: its transcript, or its sound where that is more.

    A second of sound is 20 tokens, and 64,000 characters of base64 where it is pcm16, as it is in a stream.
    """
    transcript, data = audio.get("transcript"), audio.get("data")
    said = utf8_bytes(transcript) if isinstance(transcript, str) else 0
    return max(said, len(data) // 800 if isinstance(data, str) else 0)


def _calls_bytes(calls: object, function_call: object) -> int:
    """The arguments of tool calls, of the older single function call, and the input of custom tools."""
    total = 0
    functions = [function_call]
    for call in calls if isinstance(calls, list) else []:
        if isinstance(call, dict):
            functions += (call.get("function"), call.get("custom"))
    for function in functions:
        if isinstance(function, dict):
            text = function.get("arguments") or function.get("input")
            total += utf8_bytes(text) if isinstance(text, str) else 0
    return total


def _plain_end(block: bytes) -> int:
    """Where those events of a block end that come before the first with anything to read in it: usage, an error or the
    end. Mostly that is the end of the block.

    The bare words are searched, since a search for a quote stops at every quote, and with `find`, which is twice as
    fast as `in`. A word in the text of the reply only costs a closer look, and a member name spelled in escapes is one
    that no upstream sends.
    """
    at = block.rfind(b"usage")
    one_null = at >= 0 and block.startswith(b'":null', at + 5) and block.find(b"usage", 0, at) < 0
    is_plain = at < 0 or one_null or _only_null(block, b"usage", at)
    if is_plain and (at := block.rfind(b"error")) >= 0:
        is_plain = _only_null(block, b"error", at)
    first = block.find(b"[DONE]")
    if is_plain and first < 0:
        return len(block)
    if first < 0:
        first = len(block)
    for name in (b"usage", b"error"):
        at = block.find(name, 0, first)
        while at >= 0 and block.startswith(b'":null', at + len(name)):
            at = block.find(name, at + len(name), first)
        if at >= 0:
            first = at
    return block.rfind(b"\n\n", 0, first) + 2 if block.find(b"\n\n", 0, first) >= 0 else 0


def _only_null(block: bytes, name: bytes, last: int) -> bool:
    """Whether `name`, which stands at `last` for the last time, stands in `block` only as a member that is null."""
    if not block.startswith((b'":null', b'": null'), last + len(name)):
        return False
    count = block.count(name) - block.count(b'"%b":null' % name)
    return count == 0 or count == block.count(b'"%b": null' % name)


def _count_block(block: bytes, counter: OutputCounter) -> None:
    """Count the output in whole plain events."""
    if _count_text_only(block, counter):
        return
    try:
        # JSON has no raw line end in a string, so this cuts between events only, and one parse costs less than many.
        chunks = parse(b"[%b]" % block[6:-2].replace(b"\n\ndata: ", b","))
    except orjson.JSONDecodeError:
        chunks = [_parsed(event_data(event)) for event in split_events(block)]
    for chunk in chunks if isinstance(chunks, list) else []:
        if isinstance(chunk, dict):
            count_choices(chunk.get("choices"), counter)


def _count_text_only(block: bytes, counter: OutputCounter) -> bool:
    """Count events with one delta each that has only `content`, without a parse; False if this is no such block."""
    texts = block.split(_TEXT_DELTA)
    del texts[0]
    events = block.count(b"\n\n")
    if not texts:
        return False
    if len(texts) != events and len(texts) != events - sum(block.count(delta) for delta in _EMPTY_DELTAS):
        return False
    ends = [text.find(b'"') for text in texts]
    if block.find(b"\\") < 0 and min(ends) > 0 and ends == [text.find(b'"}') for text in texts]:
        counter.add(sum(ends), len(texts))  # nothing is escaped, so each first quote ends its text, and its delta
        return True
    text_bytes = 0
    for text, end in zip(texts, ends, strict=True):
        if text.find(b"\\", 0, end) >= 0:
            if (escaped := _TEXT_DELTA_REST.match(text)) is None:
                return False
            text_bytes += _unescaped_bytes(escaped.group(1))
        elif end > 0 and text.startswith(b"}", end + 1):
            text_bytes += end
        else:
            return False
    counter.add(text_bytes, len(texts))
    return True


def _unescaped_bytes(text: bytes) -> int:
    """The size of the inside of a JSON string once it is unescaped."""
    parsed = _parsed(b'"%b"' % text)
    return utf8_bytes(parsed) if isinstance(parsed, str) else len(text)


def _parsed(data: bytes | None) -> object:
    if data is None:
        return None
    try:
        return parse(data)
    except orjson.JSONDecodeError:
        return None
