"""Listening sockets. aiohttp's low-level server, with the limits that it leaves to its user."""

import asyncio
import socket
from typing import Any

from aiohttp import web

from gateway.web.routes import Handler


class Listener:
    """One port. A connection must bring the head of its first request in `header_seconds`."""

    def __init__(
        self,
        handler: Handler,
        *,
        header_seconds: float,
        header_bytes_max: int,
        body_bytes_max: int,
        keep_alive_seconds: float,
    ) -> None:
        self._header_seconds = header_seconds
        self._body_bytes_max = body_bytes_max
        self._asked: set[Any] = set()
        self._server = web.Server(
            handler,
            request_factory=self._request,
            keepalive_timeout=keep_alive_seconds,
            max_line_size=header_bytes_max,
            max_field_size=header_bytes_max,
            access_log=None,
            handler_cancellation=False,
        )
        self._sockets: asyncio.Server | None = None

    async def open(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._sockets = await loop.create_server(self._connection, host, port, backlog=1024)
        address = self._sockets.sockets[0].getsockname()
        return int(address[1])

    def close_door(self) -> None:
        """Take no new connections; those that are open go on."""
        if self._sockets is not None:
            self._sockets.close()

    async def close(self, *, timeout_seconds: float) -> None:
        """Close every connection, giving handlers a moment to end."""
        self.close_door()
        await self._server.shutdown(timeout_seconds)

    def _connection(self) -> asyncio.Protocol:
        protocol = self._server()
        asyncio.get_running_loop().call_later(self._header_seconds, self._check, protocol)
        return protocol

    def _request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        self._asked.add(protocol)
        return web.BaseRequest(
            message, payload, protocol, writer, task, asyncio.get_running_loop(), client_max_size=self._body_bytes_max
        )

    def _check(self, protocol: Any) -> None:
        if protocol in self._asked:
            # From here on keep_alive_seconds bounds the wait for each further request.
            self._asked.discard(protocol)
        elif protocol.transport is not None:
            protocol.transport.abort()


def free_port(host: str) -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
