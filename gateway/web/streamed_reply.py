"""A reply that is sent as it comes: each piece one chunk (RFC 9112, section 7.1) and one write.

aiohttp's StreamResponse takes some 170 bytecodes for a chunk, and a stream is hundreds of them.
"""

import asyncio
from typing import cast

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from multidict import CIMultiDict

from gateway.web.whole_reply import head_bytes, taken

_JOINED_BYTES_MAX = 65_536
_LAST_CHUNK = b"0\r\n\r\n"


class StreamedReply(web.StreamResponse):
    """Its head goes out with its first piece, or by itself in the next turn of the event loop; to the server it is a
    response like any other.

    Only for what `whole_reply.is_plain` allows.
    """

    def __init__(self, request: web.BaseRequest, status: int, headers: CIMultiDict[str]) -> None:
        super().__init__(status=status)
        self._stays_open = request.keep_alive
        self._protocol = request.protocol
        self._is_over = False
        self._head = head_bytes(status, headers, "Transfer-Encoding: chunked", stays_open=self._stays_open)
        self._open_transport()  # whoever has left is not waited for
        # What the upstream has sent with its own head is passed on in this turn: one write less for each stream.
        asyncio.get_running_loop().call_soon(self._send_head)

    @property
    def keep_alive(self) -> bool | None:
        """Whether the connection may be used again."""
        return self._stays_open

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:  # noqa: ARG002 - the base names it
        """Nothing is left to be prepared."""
        return None

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send a piece. Raises ConnectionError for a client that left; how long it may take is the watch's to say."""
        if not data:
            return  # an empty chunk would be the end
        size = len(data)
        if size <= _JOINED_BYTES_MAX:
            self._send(b"%x\r\n%b\r\n" % (size, bytes(data)))
        else:
            self._send(b"%x\r\n" % size, data, b"\r\n")
        if self._protocol.writing_paused:
            await self._protocol._drain_helper()  # noqa: SLF001 - the wait behind every write of aiohttp's own

    async def write_eof(self, data: bytes = b"") -> None:
        """Send the last piece and the end, once. Raises ConnectionError for a client that left or does not read."""
        if self._is_over:
            return
        self._is_over = True
        self._send(b"%x\r\n%b\r\n%b" % (len(data), data, _LAST_CHUNK) if data else _LAST_CHUNK)
        if self._protocol.writing_paused:
            await taken(self._protocol)

    def _send_head(self) -> None:
        transport = self._protocol.transport
        if self._head and transport is not None and not transport.is_closing():
            transport.write(self._head)
            self._head = b""

    def _send(self, *pieces: bytes | bytearray | memoryview) -> None:
        transport = self._open_transport()
        if self._head:
            pieces = (self._head + pieces[0], *pieces[1:])
            self._head = b""
        if len(pieces) == 1:
            transport.write(pieces[0])
        else:
            transport.writelines(pieces)

    def _open_transport(self) -> asyncio.WriteTransport:
        transport = self._protocol.transport
        if transport is None or transport.is_closing():
            raise ConnectionError("the client has left")
        return cast(asyncio.WriteTransport, transport)
