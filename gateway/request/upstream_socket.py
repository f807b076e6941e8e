"""Step 4's wire for sessions: one WebSocket, of either side, and the way to open one to an upstream.

Frames are bytes, text or not, and are neither decoded nor compressed here.
"""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import aiohttp
from aiohttp import web
from yarl import URL

from gateway.errors import Failure, UpstreamTimedOut, UpstreamUnreachable
from gateway.request.admit import Route
from gateway.request.ask import address

# A peer that has vanished is found by a ping without an answer.
PING_SECONDS = 30.0
CLOSE_SECONDS_MAX = 2.0
HANDSHAKE_SECONDS_MAX = 30.0
# Codes that say how a connection ended where no close frame was seen; they are never sent.
_UNSENDABLE = frozenset({1004, 1005, 1006, 1015})
ABNORMAL = 1006


class Frame(NamedTuple):
    """One message. `close_code` is set where the other side has closed instead, ABNORMAL where it just went."""

    data: bytes
    is_text: bool = True
    close_code: int | None = None
    reason: str = ""


class Socket:
    """One WebSocket."""

    def __init__(
        self,
        socket: "web.WebSocketResponse[bool] | aiohttp.ClientWebSocketResponse[bool]",
        transport: asyncio.Transport | None,
    ) -> None:
        self._socket = socket
        self._transport = transport

    async def receive(self) -> Frame:
        """The next message, or how the other side ended it. Only one may wait at a time."""
        message = await self._socket.receive()
        if message.type is aiohttp.WSMsgType.TEXT or message.type is aiohttp.WSMsgType.BINARY:
            data = message.data.encode() if isinstance(message.data, str) else message.data
            return Frame(data, message.type is aiohttp.WSMsgType.TEXT)
        if message.type is aiohttp.WSMsgType.CLOSE:
            code = message.data if isinstance(message.data, int) and message.data else 1005
            return Frame(b"", close_code=code, reason=str(message.extra or ""))
        return Frame(b"", close_code=ABNORMAL)

    async def send(self, data: bytes, *, is_text: bool = True) -> None:
        """Send one message; waits while the other side does not read. Raises ConnectionError."""
        kind = aiohttp.WSMsgType.TEXT if is_text else aiohttp.WSMsgType.BINARY
        await self._socket.send_frame(data, kind)

    async def close(self, code: int, reason: str = "") -> None:
        """Close it, giving the other side a moment to say the same."""
        if code in _UNSENDABLE or not 1000 <= code < 5000:
            code = 1011
        try:
            async with asyncio.timeout(CLOSE_SECONDS_MAX):
                await self._socket.close(code=code, message=reason.encode()[:123])
        except (TimeoutError, ConnectionError):
            self.abort()

    def abort(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self._transport.abort()


class Dialler:
    """Opens WebSockets to upstreams over the connector that calls use, whose owner closes it."""

    def __init__(self, connector: aiohttp.BaseConnector, *, frame_bytes_max: int) -> None:
        self._connector = connector
        self._session: aiohttp.ClientSession | None = None
        self.frame_bytes_max = frame_bytes_max

    async def dial(
        self,
        route: Route,
        path: str,
        headers: Sequence[tuple[str, str]],
        protocols: Sequence[str],
    ) -> Socket:
        """Raises UpstreamUnreachable, UpstreamTimedOut; its status is the upstream's where that refused."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=self._connector,
                connector_owner=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
            )
        upstream = route.upstream
        # Azure's deployments are named by a member of their own.
        name = "deployment" if upstream.paths == "deployments" else "model"
        url = URL(address(upstream, path, route.model)).update_query({name: route.model})
        try:
            async with asyncio.timeout(min(upstream.first_byte_seconds, HANDSHAKE_SECONDS_MAX)):
                socket = await self._session.ws_connect(
                    url,
                    headers=headers,
                    protocols=protocols,
                    autoclose=False,
                    heartbeat=PING_SECONDS,
                    max_msg_size=self.frame_bytes_max,
                    decode_text=False,
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_SECONDS_MAX),
                )
        except TimeoutError:
            raise UpstreamTimedOut("The upstream did not open the session in time. Nothing was charged.") from None
        except aiohttp.WSServerHandshakeError as error:
            raise _refused(error.status) from None
        except (aiohttp.ClientError, OSError):
            raise UpstreamUnreachable from None
        return Socket(socket, _transport(socket))


def _transport(socket: "aiohttp.ClientWebSocketResponse[bool]") -> asyncio.Transport | None:
    connection = socket._response.connection  # noqa: SLF001 - aiohttp lends it no other way
    return None if connection is None else connection.transport


def _refused(status: int) -> Failure:
    message = f"The upstream refused the session with status {status}. Nothing was charged."
    failure = UpstreamUnreachable(message, code="upstream_refused")
    if 400 <= status < 500:
        failure.status = status
    return failure
