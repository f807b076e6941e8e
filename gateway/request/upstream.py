"""One request, mostly a POST, to an upstream over pooled connections: step 4's wire.

A metered call has its whole body and its headers at hand, so its head and body go out in one write. aiohttp's
connector gives the connection (pool, DNS, TLS); what its ClientSession builds around that for each call (cookies,
redirects, tracing, payloads, timers) is nothing that is used here.
"""

import asyncio
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import NamedTuple

import aiohttp
from aiohttp import client_reqrep
from aiohttp.connector import Connection
from yarl import URL

from gateway.request.upstream_reply import Reply

_JOINED_BYTES_MAX = 65_536  # copying a longer body costs more than a second buffer


class _Door(aiohttp.ClientRequest):
    """What the connector asks of a request: where to, and how. One for all calls to a target."""

    @cached_property
    def connection_key(self) -> client_reqrep.ConnectionKey:
        return super().connection_key


class Target:
    """One path of one upstream. `connect_seconds` bounds the making of a new connection."""

    __slots__ = ("_door", "_timeout", "authorization", "head")

    def __init__(self, url: URL, *, authorization: str | None, connect_seconds: float, method: str = "POST") -> None:
        self._door = _Door(method, url, loop=asyncio.get_running_loop())
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_seconds)
        self.authorization = authorization
        self.head = f"{method} {url.raw_path_qs} HTTP/1.1\r\nHost: {url.host_port_subcomponent}\r\n"

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


class Upload(NamedTuple):
    """A body too large to be in memory, in pieces."""

    size_bytes: int
    pieces: Iterator[bytes]


async def post(
    connector: aiohttp.BaseConnector, target: Target, headers: Iterable[tuple[str, str]], body: bytes | Upload
) -> Reply:
    """Send one request and read the head of its reply. Raises aiohttp.ClientError, OSError."""
    size = len(body) if isinstance(body, bytes) else body.size_bytes
    lines = [f"{name}: {value}\r\n" for name, value in headers]
    head = f"{target.head}{''.join(lines)}Content-Length: {size}\r\n\r\n"
    # A line break inside a value would be a header of its own, or another request.
    if head.count("\n") != len(lines) + 4 or head.count("\r") != len(lines) + 4:
        raise aiohttp.InvalidURL("a header has a line break")
    sent = head.encode("utf-8", "surrogateescape")
    connection = await target.connect(connector)
    try:
        reply = Reply(connection)
        transport = connection.transport
        if transport is None:
            raise aiohttp.ServerDisconnectedError
        if not isinstance(body, bytes):
            transport.write(sent)
            await _upload(connection, reply, body)
        elif size <= _JOINED_BYTES_MAX:
            transport.write(sent + body)
        else:
            transport.writelines((sent, body))
        await reply.head()
    except BaseException:
        connection.close()
        raise
    return reply


async def _upload(connection: Connection, reply: Reply, body: Upload) -> None:
    """Send as fast as the upstream takes it, until it answers: a refusal may come before the end, and counts.

    Raises aiohttp.ClientError, OSError.
    """
    left = body.size_bytes
    for piece in body.pieces:
        protocol, transport = connection.protocol, connection.transport
        if reply.status >= 400 or protocol is None or transport is None or transport.is_closing():
            break
        transport.write(piece)
        left -= len(piece)
        try:
            await protocol._drain_helper()  # noqa: SLF001 - the wait behind every write of aiohttp's own
        except aiohttp.ClientConnectionError:
            break  # what it said before it hung up is read, if it said anything
    if left:
        reply.sent_in_part()
