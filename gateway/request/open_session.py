"""How a realtime session begins: authenticate, admit, hold; ask the upstream; only then answer the client with 101.

Whatever is refused before that is a plain HTTP reply, and every hold that was placed is voided.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence

import orjson

from gateway.clock import monotonic_seconds
from gateway.db.pool import LedgerAway
from gateway.endpoints.endpoint import InvalidRequest
from gateway.endpoints.realtime import RealtimeEndpoint
from gateway.errors import Failure, LedgerUnavailable, MalformedRequest, Overloaded, Stopping, UpstreamUnreachable
from gateway.request.admit import Route, find
from gateway.request.ask import own_headers
from gateway.request.handle import Gateway
from gateway.request.headers import hold_headers, request_headers
from gateway.request.hold import Hold
from gateway.request.session import Session, SessionLimits
from gateway.request.tab import Payer
from gateway.request.upstream_socket import Dialler, Socket

_PATH = "/realtime"
_SECRET_PROTOCOLS = ("openai-insecure-api-key.", "openai-organization.", "openai-project.")
# Answers the client's handshake, with headers of ours.
Accept = Callable[[Mapping[str, str]], Awaitable[Socket]]


def key_headers(headers: Mapping[str, str], protocols: Sequence[str]) -> Mapping[str, str]:
    """`headers`, with the key that a browser can only give as a subprotocol."""
    if "Authorization" in headers or "api-key" in headers or "x-api-key" in headers:
        return headers
    for protocol in protocols:
        if protocol.startswith(_SECRET_PROTOCOLS[0]):
            return {"Authorization": f"Bearer {protocol.removeprefix(_SECRET_PROTOCOLS[0])}"}
    return headers


async def serve_session(
    gateway: Gateway,
    dialler: Dialler,
    limits: SessionLimits,
    headers: Mapping[str, str],
    peer: str,
    model: str,
    protocols: Sequence[str],
    accept: Accept,
) -> None:
    """Serve one session, from its handshake to its end. Raises Failure for what is refused before it is open."""
    if gateway.stopping:
        raise Stopping
    if len(gateway.watch) >= gateway.calls_in_flight_max:
        raise Overloaded
    began = monotonic_seconds()
    presented = key_headers(headers, protocols)
    try:
        principal = await gateway.authenticator.authenticate(presented, peer)
    except LedgerAway:
        raise LedgerUnavailable from None
    try:
        model = RealtimeEndpoint().read_request(orjson.dumps({"model": model})).model
    except InvalidRequest as error:
        raise MalformedRequest(error.message, code=error.code, param=error.param) from None
    routes = find(principal, gateway.shelf(), model)[2]
    payer = Payer(gateway, presented, peer, principal)
    session = Session(payer, model, limits)
    try:
        await session.hold_first()
        hold = session.responses.spares[0].hold
        gateway.metrics.added_seconds.observe(monotonic_seconds() - began)
        upstream, payer.route = await _dial(gateway, dialler, routes, headers, hold, protocols)
        try:
            client = await accept(hold_headers(hold))
        except BaseException:
            await upstream.close(1000)
            raise
    except BaseException:
        await session.give_up()
        raise
    await session.run(upstream, client, payer.route.upstream.total_seconds)


async def _dial(
    gateway: Gateway,
    dialler: Dialler,
    routes: Sequence[Route],
    headers: Mapping[str, str],
    hold: Hold,
    protocols: Sequence[str],
) -> tuple[Socket, Route]:
    """The first upstream that opens a session. Raises UpstreamFailed."""
    offered = [protocol for protocol in protocols if not protocol.startswith(_SECRET_PROTOCOLS)]
    asker = gateway.relay.asker
    failure: Failure = UpstreamUnreachable()
    for route in asker.turn(routes):
        authorization, fixed = own_headers(route.upstream)
        sent = [
            header
            for header in request_headers(headers, authorization, hold, fixed)
            if not header[0].lower().startswith("sec-websocket-")
        ]
        gateway.metrics.upstream_calls.labels(route.upstream.name).inc()
        try:
            return await dialler.dial(route, _PATH, sent, offered), route
        except Failure as error:
            failure = error
            if error.status < 500 and error.status != 429:
                asker.failed(route.upstream, "status_4xx", None)
                break  # the request's fault: another upstream would say the same
            asker.failed(route.upstream, "status_429" if error.status == 429 else "connect", None)
    raise failure
