"""Usage of a JSON reply too large to hold: found by an incremental scan while it passes, its last bytes kept back."""

from collections.abc import Mapping

import orjson

from gateway.core.estimate import tokens_from_bytes
from gateway.core.json_members import MemberScanner, parse

# Enough that a client without them has no whole JSON document, and little to hold back.
_KEPT_BYTES = 16


class LargeReply:
    """Feed it the reply as it comes; it gives back what may be passed on, and at the end the rest."""

    def __init__(self) -> None:
        self._scanner = MemberScanner(frozenset({"usage"}))
        self._kept = b""
        self._bytes = 0

    def feed(self, data: bytes) -> bytes:
        """All but the last few bytes so far."""
        self._scanner.feed(data)
        self._bytes += len(data)
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
        """The raw usage object, or None; one that is no JSON, such as with a NaN in it, says nothing."""
        try:
            usage = parse(self._scanner.values.get("usage", b"null"))
        except orjson.JSONDecodeError:
            return None
        return usage if isinstance(usage, dict) else None

    def count_output(self) -> int:
        """From all bytes of the reply: its syntax is small beside a text of this size."""
        return tokens_from_bytes(self._bytes)
