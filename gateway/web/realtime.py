"""The WebSocket of a realtime session: the query and the handshake are read here, the frames by the request flow."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl

from aiohttp import web

from gateway.errors import MalformedRequest, UpgradeRequired
from gateway.request.handle import Gateway
from gateway.request.open_session import serve_session
from gateway.request.session import SessionLimits
from gateway.request.upstream_socket import CLOSE_SECONDS_MAX, PING_SECONDS, Dialler, Socket

# What a browser must be answered with, of what it offers.
_PROTOCOL = "realtime"


@dataclass(frozen=True, slots=True)
class Sessions:
    """What sessions need beside the gateway."""

    dialler: Dialler
    limits: SessionLimits


async def serve(gateway: Gateway, sessions: Sessions, request: web.BaseRequest) -> web.StreamResponse:
    """Serve one session. Raises Failure for what is refused before the upgrade."""
    model = _model(request)
    response: web.WebSocketResponse[bool] = web.WebSocketResponse(
        protocols=(_PROTOCOL,),
        compress=False,
        autoclose=False,
        heartbeat=PING_SECONDS,
        timeout=CLOSE_SECONDS_MAX,
        max_msg_size=sessions.limits.frame_bytes_max,
        decode_text=False,
    )
    if not response.can_prepare(request):
        raise UpgradeRequired(headers={"Upgrade": "websocket"})

    async def accept(headers: Mapping[str, str]) -> Socket:
        response.headers.update(headers)
        await response.prepare(request)
        return Socket(response, request.transport)

    offered = request.headers.get("Sec-WebSocket-Protocol", "")
    protocols = [name.strip() for name in offered.split(",") if name.strip()]
    await serve_session(
        gateway,
        sessions.dialler,
        sessions.limits,
        request.headers,
        request.remote or "",
        model,
        protocols,
        accept,
    )
    return response


def _model(request: web.BaseRequest) -> str:
    """Raises MalformedRequest for a query that names no model, or anything else, which may decide the cost."""
    query = parse_qsl(request.query_string, keep_blank_values=True)
    for name, _ in query:
        if name != "model":
            message = "A session takes 'model' in its query, and nothing else: Farebox cannot meter another kind."
            raise MalformedRequest(message, code="not_metered", param=name[:40])
    if len(query) != 1:
        raise MalformedRequest("Name the model of the session once: ?model=…", param="model")
    return query[0][1]
