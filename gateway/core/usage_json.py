"""Usage of a JSON reply too large to hold: found by an incremental scan while it passes, its last bytes kept back."""

from collections.abc import Mapping

import orjson

from gateway.core.estimate import tokens_from_bytes
from gateway.core.json_members import MemberScanner, parse

# Enough that a client without them has no whole JSON document, and little to hold back.
_KEPT_BYTES = 16


class LargeReply:
    """Look at the reply as it comes. What is passed on unseen goes through `pass_on`, which keeps its end back."""

    def __init__(self) -> None:
        self._scanner = MemberScanner(frozenset({"id", "tool_usage", "usage"}))
        self._kept = b""
        self._bytes = 0

    def feed(self, data: bytes) -> bytes:
        """Look, and pass on."""
        self.look(data)
        return self.pass_on(data)

    def look(self, data: bytes) -> None:
        """Take the next piece."""
        self._scanner.feed(data)
        self._bytes += len(data)

    def pass_on(self, data: bytes) -> bytes:
        """All but the last few bytes so far."""
        data = self._kept + data
        self._kept = data[-_KEPT_BYTES:]
        return data[:-_KEPT_BYTES]

    def finish(self) -> bytes:
        """The bytes kept back."""
        kept, self._kept = self._kept, b""
        return kept

    @property
    def is_complete(self) -> bool:
        """Whether the closing brace of the reply was seen."""
        return self._scanner.complete

    @property
    def usage(self) -> Mapping[str, object] | None:
        """The raw usage object, with the `tool_usage` beside it, or None; what is no JSON, such as with a NaN in it,
        says nothing."""
        usage, tools = self._member("usage"), self._member("tool_usage")
        if not isinstance(usage, dict):
            return None
        return usage if tools is None else {**usage, "tool_usage": tools}

    @property
    def reply_id(self) -> str | None:
        """The reply's own id, if it has been seen."""
        reply_id = self._member("id")
        return reply_id if isinstance(reply_id, str) else None

    def _member(self, name: str) -> object:
        try:
            return parse(self._scanner.values.get(name, b"null"))
        except orjson.JSONDecodeError:
            return None

    def count_output(self) -> int:
        """From all bytes of the reply: its syntax is small beside a text of this size."""
        return tokens_from_bytes(self._bytes)
