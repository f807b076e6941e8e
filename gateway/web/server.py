"""Listening sockets. aiohttp's low-level server, with the limits that it leaves to its user."""

import asyncio
import logging
import socket
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from gateway.errors import Failure, MalformedRequest
from gateway.tasks import spawn
from gateway.web.envelope import failure_response
from gateway.web.routes import Handler

_log = logging.getLogger("farebox.web")

BACKLOG = 1024
LOOK_AWAY_SECONDS = 0.001
FAILED_ACCEPT_SECONDS = 1.0  # such as too many open files


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


def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on every address of `host`, all on one port, to be handed to workers. Raises OSError."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            listening = socket.socket(family, kind, protocol)
            sockets.append(listening)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # With port 0 the system chooses once, and the other families follow.
            listening.bind((address[0], port or sockets[0].getsockname()[1], *address[2:]))
            listening.listen(BACKLOG)
            listening.setblocking(False)
    except OSError:
        for listening in sockets:
            listening.close()
        raise
    return sockets


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
        self._doors: list[asyncio.Server] = []
        self._shared: list[socket.socket] = []
        self._retiring = False

    async def open(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises OSError."""
        loop = asyncio.get_running_loop()
        door = await loop.create_server(self._connection, host, port, backlog=BACKLOG)
        self._doors.append(door)
        return int(door.sockets[0].getsockname()[1])

    def open_on(self, sockets: Sequence[socket.socket]) -> None:
        """Take connections from sockets that listen already, and that other processes share."""
        self._shared.extend(sockets)
        for listening in sockets:
            self._watch(listening)

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._server.connections)

    def close_door(self) -> None:
        """Take no new connections; those that are open go on."""
        for door in self._doors:
            door.close()
        self._doors.clear()
        for listening in self._shared:
            asyncio.get_running_loop().remove_reader(listening)
            listening.close()
        self._shared.clear()

    def retire(self) -> None:
        """Take no new connections, and end each open one with its next reply, which says so; none is dropped."""
        self._retiring = True
        self.close_door()

    async def close(self, *, timeout_seconds: float) -> None:
        """Close every connection, giving handlers a moment to end."""
        self.close_door()
        self._server.pre_shutdown()  # idle connections end at once, and are not waited for
        await self._server.shutdown(timeout_seconds)

    def _watch(self, listening: socket.socket) -> None:
        if listening in self._shared:
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        """Take one connection, and look away for a moment: the next is for another process, if one is free.

        The event loop's own server takes all that wait, and one process then serves most of a burst.
        """
        loop = asyncio.get_running_loop()
        try:
            accepted, _ = listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another process was faster, or the client thought better of it
        except OSError as error:
            _log.error("no connection can be taken", extra={"fields": {"error": error.strerror}})
            loop.remove_reader(listening)
            loop.call_later(FAILED_ACCEPT_SECONDS, self._watch, listening)
            return
        loop.remove_reader(listening)
        loop.call_later(LOOK_AWAY_SECONDS, self._watch, listening)
        accepted.setblocking(False)
        spawn(self._take(accepted), name="connection")

    async def _take(self, accepted: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._connection, accepted)
        except OSError:
            accepted.close()  # the client has gone already

    def _connection(self) -> asyncio.Protocol:
        protocol = self._server()
        loop = asyncio.get_running_loop()
        self._silent[protocol] = loop.call_later(self._header_seconds, self._give_up, protocol)
        return protocol

    def _request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        if self._silent and (timer := self._silent.pop(protocol, None)) is not None:
            # From here on keep_alive_seconds bounds the wait for each further request.
            timer.cancel()
        if self._retiring:
            message = message._replace(should_close=True)
        return web.BaseRequest(
            message, payload, protocol, writer, task, asyncio.get_running_loop(), client_max_size=self._body_bytes_max
        )

    def _give_up(self, protocol: Any) -> None:
        """The head of a first request did not come in time, or the connection was closed before."""
        del self._silent[protocol]
        if protocol.transport is not None:
            protocol.transport.abort()
