"""An upstream's reply, parsed as its bytes arrive on one of aiohttp's connections.

A stream is a few hundred chunks that mostly come several to a read. aiohttp's StreamReader takes some 300 bytecodes for
each of them; here the parser (llhttp, by httptools) leaves each in a list, and a read takes what has come as one piece.
Memory is bounded: beyond `UNTAKEN_BYTES_MAX` the socket is not read until the body is.
"""

import asyncio

import aiohttp
import httptools
from aiohttp.connector import Connection
from multidict import CIMultiDict

# Of a body that nobody takes yet, or of a head, chunk extensions or trailers without end.
UNTAKEN_BYTES_MAX = 2**17
HEADERS_MAX = 256
_SWITCHING = 101
_ANY_BYTES = "surrogateescape"
_NO_HEADERS: CIMultiDict[str] = CIMultiDict()


class Reply:
    """A reply from its first byte on. It ends with `release` where the body was read to its end, else with `close`.

    `status` and `headers` are there once `head()` has returned.
    """

    __slots__ = (
        "_chunks",
        "_connection",
        "_error",
        "_fields",
        "_is_dirty",
        "_is_paused",
        "_parser",
        "_stays_open",
        "_untaken_bytes",
        "_waiter",
        "headers",
        "is_ended",
        "on_body",
        "status",
    )

    def __init__(self, connection: Connection) -> None:
        self.status = 0
        self.headers: CIMultiDict[str] = _NO_HEADERS
        self.is_ended = False  # all of it has come, though it may not have been read yet
        self._connection = connection
        self._fields: list[tuple[bytes, bytes]] = []
        self._chunks: list[bytes] = []
        self.on_body = self._chunks.append  # what the parser calls for each piece of the body
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._untaken_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self._is_paused = False
        self._stays_open = False
        self._is_dirty = False  # the upstream said more than its reply
        protocol = connection.protocol
        if protocol is None:
            raise aiohttp.ServerDisconnectedError
        protocol.set_parser(self, None)

    async def head(self) -> None:
        """Wait for status and headers. Raises aiohttp.ClientError."""
        while not self.status:
            await self._more()

    def sent_in_part(self) -> None:
        """The upstream answered before it had the whole request: the connection is of no more use."""
        self._is_dirty = True

    async def read(self) -> bytes:
        """What has come of the body, as soon as there is some; b"" at its end. Raises aiohttp.ClientError."""
        chunks = self._chunks
        while not chunks:
            if self.is_ended:
                return b""
            await self._more()
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._untaken_bytes = 0
        if self._is_paused:
            self._is_paused = False
            transport = self._connection.transport
            if transport is not None and not transport.is_closing():
                transport.resume_reading()
        return data

    async def _more(self) -> None:
        if self._error is not None:
            raise self._error
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def release(self) -> None:
        """Let the connection be used again, if both sides have said all they had to say."""
        self._parser = None  # it refers to us
        self._error = None  # and so does the traceback of what was raised
        protocol, transport = self._connection.protocol, self._connection.transport
        if protocol is None or transport is None:
            self._connection.close()
            return
        is_done = self.is_ended and self._stays_open and not self._is_dirty
        if is_done and not self._is_paused and not transport.get_write_buffer_size():
            protocol.set_parser(None, None)
            self._connection.release()
        else:
            self._connection.close()

    def close(self) -> None:
        """Drop the connection; whoever reads the body is told once it has what has come."""
        self._parser = None
        if not self.is_ended:
            self._fail(aiohttp.ClientConnectionError("Connection closed"))
        self._connection.close()

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # What aiohttp's connection calls.

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Take one read of the socket; says whether the connection is beyond use, as aiohttp's parsers do."""
        if self._parser is None or self._error is not None:
            return True, b""
        self._untaken_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._is_dirty = True
        except httptools.HttpParserError as error:
            self._is_dirty = True
            self._fail(aiohttp.ClientPayloadError(f"the reply is not HTTP: {type(error).__name__}"))
            return True, b""
        if self._untaken_bytes > UNTAKEN_BYTES_MAX:
            self._overflow()
        if self._waiter is not None:
            self._wake()
        return self._error is not None, b""

    def _overflow(self) -> None:
        """More has come than was taken: of a body, which can wait, or of what has no end."""
        transport = self._connection.transport
        if self._chunks or self.is_ended:
            if not self._is_paused and transport is not None:
                self._is_paused = True
                transport.pause_reading()
        else:
            self._fail(aiohttp.ClientPayloadError("the reply has no end to its head or its trailers"))

    def feed_eof(self) -> None:
        """The upstream closed the connection: the end of a reply without a length, and the breaking of any other."""
        if self.is_ended:
            return
        if not self.status:
            self._fail(aiohttp.ServerDisconnectedError())
        elif "Content-Length" in self.headers or self.headers.get("Transfer-Encoding", "").lower().endswith("chunked"):
            self._fail(aiohttp.ClientPayloadError("the reply broke off"))
        else:
            self.is_ended = True
            self._wake()

    # What the parser calls.

    def on_message_begin(self) -> None:
        """A second message is nobody's: nothing of it may be taken for the body."""
        if self.is_ended:
            raise ValueError("more than one reply")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header of a head or, to be dropped, of a trailer. The parser refuses line breaks in a value."""
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is whole; an interim one (RFC 9110, section 15.2) only says that another follows."""
        parser = self._parser
        if parser is None or self.is_ended:
            return
        status = parser.get_status_code()
        fields, self._fields = self._fields, []
        if status < 100 or len(fields) > HEADERS_MAX:
            raise ValueError("a head that cannot be passed on")
        if status >= 200 or status == _SWITCHING:
            self.headers = CIMultiDict(
                [(name.decode("utf-8", _ANY_BYTES), value.decode("utf-8", _ANY_BYTES)) for name, value in fields]
            )
            self.status = status
            self._untaken_bytes = 0

    def on_message_complete(self) -> None:
        """The end of the reply, or of an interim one."""
        if self.status and not self.is_ended:
            self.is_ended = True
            self._stays_open = self._parser is not None and self._parser.should_keep_alive()
