"""Undo a content encoding that the upstream used although it was asked not to, in bounded memory."""

import zlib
from typing import Self

_OUT_BYTES_MAX = 64 * 2**20  # what one read may expand to; past it the reply is a bomb


class UnknownEncoding(ValueError):
    """An encoding that cannot be undone here; its bytes are relayed as they are and their usage is unknown."""


class Inflater:
    """Incremental gzip or deflate, including several gzip members in a row (RFC 1952, section 2.2)."""

    def __init__(self, window_bits: int) -> None:
        self._window_bits = window_bits
        self._inflate = zlib.decompressobj(window_bits)

    @classmethod
    def of(cls, encoding: str | None) -> Self | None:
        """The inflater for a Content-Encoding, or None for none. Raises UnknownEncoding."""
        if encoding is None or encoding.lower() in ("", "identity"):
            return None
        if encoding.lower() in ("gzip", "x-gzip", "deflate"):
            return cls(zlib.MAX_WBITS | 32)  # zlib and gzip headers alike
        raise UnknownEncoding(encoding)

    def feed(self, data: bytes) -> bytes:
        """Plain bytes for `data`. Raises ValueError for damaged or explosive data."""
        try:
            out = self._inflate.decompress(data, _OUT_BYTES_MAX)
            while self._inflate.eof and self._inflate.unused_data:
                data = self._inflate.unused_data
                self._inflate = zlib.decompressobj(self._window_bits)
                out += self._inflate.decompress(data, _OUT_BYTES_MAX)
        except zlib.error as error:
            raise ValueError("damaged content encoding") from error
        if self._inflate.unconsumed_tail:
            raise ValueError("content encoding expands too far")
        return out
