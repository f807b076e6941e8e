"""Listening sockets. aiohttp's low-level server, with the limits that it leaves to its user."""

import asyncio
from typing import Any

from aiohttp import web

from gateway.errors import Failure, MalformedRequest
from gateway.web.envelope import failure_response
from gateway.web.routes import Handler


class _Connection(web.RequestHandler):
    """aiohttp's connection, but for the reply to what is not HTTP: our envelope, which quotes nothing."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,  # noqa: ARG002 - aiohttp's signature
        message: str | None = None,  # noqa: ARG002
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("a reply has begun already")
        bad = MalformedRequest("The request is not valid HTTP/1.1, or its head is too large.", code="invalid_http")
        response = failure_response(bad if status < 500 else Failure("Farebox failed unexpectedly."))
        response.force_close()
        return response


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


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
        self._silent: dict[Any, asyncio.TimerHandle] = {}
        self._server = _Server(
            handler,
            request_factory=self._request,
            keepalive_timeout=keep_alive_seconds,
            max_line_size=header_bytes_max,
            max_field_size=header_bytes_max,
            access_log=None,
            auto_decompress=False,  # a body that is small on the wire must not be large in memory
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
        self._server.pre_shutdown()  # idle connections end at once, and are not waited for
        await self._server.shutdown(timeout_seconds)

    def _connection(self) -> asyncio.Protocol:
        protocol = self._server()
        loop = asyncio.get_running_loop()
        self._silent[protocol] = loop.call_later(self._header_seconds, self._give_up, protocol)
        return protocol

    def _request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        if self._silent and (timer := self._silent.pop(protocol, None)) is not None:
            # From here on keep_alive_seconds bounds the wait for each further request.
            timer.cancel()
        return web.BaseRequest(
            message, payload, protocol, writer, task, asyncio.get_running_loop(), client_max_size=self._body_bytes_max
        )

    def _give_up(self, protocol: Any) -> None:
        """The head of a first request did not come in time, or the connection was closed before."""
        del self._silent[protocol]
        if protocol.transport is not None:
            protocol.transport.abort()
