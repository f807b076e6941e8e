"""One POST to an upstream over pooled connections: step 4's wire.

A metered call has its whole body and its headers at hand, so its head and body go out in one write. aiohttp's
connector gives the connection (pool, DNS, TLS) and its parser reads the reply; what ClientSession builds around them
for each call (cookies, redirects, tracing, payloads, timers) is nothing that is used here.
"""

import asyncio
from collections.abc import Iterable
from functools import cached_property

import aiohttp
from aiohttp import client_reqrep
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDictProxy
from yarl import URL

_READ_BYTES = 2**16
_HEAD_LINE_BYTES_MAX = 16_384
_JOINED_BYTES_MAX = 65_536  # copying a longer body costs more than a second buffer
_INTERIM = range(100, 200)


class _Door(aiohttp.ClientRequest):
    """What the connector asks of a request: where to, and how. One for all calls to a target."""

    @cached_property
    def connection_key(self) -> client_reqrep.ConnectionKey:
        return super().connection_key


class Target:
    """One path of one upstream. `connect_seconds` bounds the making of a new connection."""

    __slots__ = ("_door", "_timeout", "authorization", "head")

    def __init__(self, url: URL, *, authorization: str | None, connect_seconds: float) -> None:
        self._door = _Door("POST", url, loop=asyncio.get_running_loop())
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_seconds)
        self.authorization = authorization
        self.head = f"POST {url.raw_path_qs} HTTP/1.1\r\nHost: {url.host_port_subcomponent}\r\n"

    async def connect(self, connector: aiohttp.BaseConnector) -> Connection:
        """A connection on which nothing is waiting to be read. Raises aiohttp.ClientError, OSError."""
        while True:
            try:
                connection = await connector.connect(self._door, [], self._timeout)
            except TimeoutError as error:
                raise aiohttp.ConnectionTimeoutError(str(error)) from error
            if connection.protocol is not None and not connection.protocol.should_close:
                return connection
            # It said something while it lay in the pool, such as a 408: that must not be taken for our reply.
            connection.close()


class Reply:
    """An upstream's reply: its head is here, its body is read from `content`. It ends with release or close."""

    __slots__ = ("_connection", "content", "headers", "status")

    def __init__(
        self, status: int, headers: CIMultiDictProxy[str], content: aiohttp.StreamReader, connection: Connection
    ) -> None:
        self.status = status
        self.headers = headers
        self.content = content
        self._connection = connection

    def release(self) -> None:
        """The body was read to its end: the connection may be used again, unless ours is still on its way."""
        transport = self._connection.transport
        if transport is not None and not transport.get_write_buffer_size():
            self._connection.release()
        else:
            self._connection.close()

    def close(self) -> None:
        """Drop the connection; whoever reads the body is told."""
        if not self.content.is_eof() and self.content.exception() is None:
            self.content.set_exception(aiohttp.ClientConnectionError("Connection closed"))
        self._connection.close()


async def post(
    connector: aiohttp.BaseConnector, target: Target, headers: Iterable[tuple[str, str]], body: bytes
) -> Reply:
    """Send one request and read the head of its reply. Raises aiohttp.ClientError, OSError."""
    lines = [f"{name}: {value}\r\n" for name, value in headers]
    head = f"{target.head}{''.join(lines)}Content-Length: {len(body)}\r\n\r\n"
    # A line break inside a value would be a header of its own, or another request.
    if head.count("\n") != len(lines) + 4 or head.count("\r") != len(lines) + 4:
        raise aiohttp.InvalidURL("a header has a line break")
    sent = head.encode("utf-8", "surrogateescape")
    connection = await target.connect(connector)
    try:
        protocol, transport = connection.protocol, connection.transport
        if protocol is None or transport is None:
            raise aiohttp.ServerDisconnectedError
        protocol.set_response_params(
            read_until_eof=True,
            auto_decompress=False,
            read_bufsize=_READ_BYTES,
            max_line_size=_HEAD_LINE_BYTES_MAX,
            max_field_size=_HEAD_LINE_BYTES_MAX,
        )
        if len(body) <= _JOINED_BYTES_MAX:
            transport.write(sent + body)
        else:
            transport.writelines((sent, body))
        message, content = await protocol.read()
        while message.code in _INTERIM and message.code != 101:
            message, content = await protocol.read()
    except HttpProcessingError as error:
        connection.close()
        raise aiohttp.ClientPayloadError("the reply is not HTTP") from error
    except BaseException:
        connection.close()
        raise
    return Reply(message.code, message.headers, content, connection)
