"""Calls about a response that an upstream keeps: by the wallet that made it only, where it was made, and free.

A response that works in the background is settled by what such a call brings, before its client has it.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import StrEnum

import aiohttp

from gateway.db.pool import Database
from gateway.db.responses import Owner
from gateway.endpoints.endpoint import Changes
from gateway.endpoints.responses import InputTokensEndpoint, ResponsesEndpoint
from gateway.endpoints.responses_stream import ResponsesStream
from gateway.errors import Overloaded, ResponseNotFound, ResponseUnfinished, Stopping
from gateway.metrics import Metrics
from gateway.request.admit import admit
from gateway.request.authenticate import Principal
from gateway.request.background import Background, Kept, path_of
from gateway.request.handle import Finish, Gateway, Inbound
from gateway.request.hold import Holds
from gateway.request.owned import Owned
from gateway.request.passing import Passing
from gateway.request.settle import Settler
from gateway.request.watch import Call, Client
from gateway.settings import Settings, UpstreamSettings

_INPUT_TOKENS = InputTokensEndpoint()


class What(StrEnum):
    """What is asked; the label of farebox_passed_calls_total."""

    GET = "get"
    DELETE = "delete"
    CANCEL = "cancel"
    INPUT_ITEMS = "input_items"
    INPUT_TOKENS = "input_tokens"


_METHODS = {What.GET: "GET", What.DELETE: "DELETE", What.CANCEL: "POST", What.INPUT_ITEMS: "GET"}
_BELOW = {What.CANCEL: "cancel", What.INPUT_ITEMS: "input_items"}


async def about(
    gateway: Gateway, passing: Passing, what: What, response_id: str, query: str, inbound: Inbound, client: Client
) -> Finish:
    """Serve one call about a response; `query` is passed on as it is. Raises Failure, LedgerAway."""
    principal = await _authenticated(gateway, inbound)
    owner = await gateway.kept.owned.owner(principal, response_id)
    upstream = gateway.kept.background.upstream(owner.upstream)
    if upstream is None:
        raise ResponseNotFound(f"Response with id '{response_id}' is no longer served here.")
    if what is What.DELETE and owner.unsettled is not None and not await gateway.kept.background.look(owner):
        # Once it is gone nobody could tell what it used.
        raise ResponseUnfinished
    path = path_of(owner.response_id, _BELOW.get(what)) + (f"?{query}" if query else "")
    asked = (_METHODS[what], path, inbound.headers, b"")
    if what not in (What.GET, What.CANCEL) or owner.unsettled is None:
        return await _passed(gateway, passing, what, upstream, asked, client)
    reader = ResponsesStream()
    try:
        return await _passed(gateway, passing, what, upstream, asked, client, _heard(gateway, owner), reader.feed)
    finally:
        # Asked for as a stream it is not settled here, but what came of it counts, should it be cancelled.
        if output_count := reader.output_tokens_estimate():
            await gateway.kept.owned.relayed(owner, output_count)


async def count_input_tokens(gateway: Gateway, passing: Passing, inbound: Inbound, client: Client) -> Finish:
    """Have the upstream count what a response would read. Raises Failure, LedgerAway."""
    principal = await _authenticated(gateway, inbound)
    body = await inbound.read_body()
    assert isinstance(body, bytes), "no form is taken here"
    offer = admit(
        principal,
        _INPUT_TOKENS,
        body,
        gateway.shelf(),
        min_output_tokens=gateway.min_output_tokens,
        hold_slice_tokens=gateway.hold_slice_tokens,
        auto_service_tier=gateway.auto_service_tier,
    )
    offer = await gateway.kept.owned.allow(principal, offer)
    route = offer.routes[0]
    model = route.model if route.model != offer.request.model else None
    sent = _INPUT_TOKENS.upstream_body(body, Changes(model))
    asked = ("POST", "/responses/input_tokens", inbound.headers, sent)
    return await _passed(gateway, passing, What.INPUT_TOKENS, route.upstream, asked, client)


async def _authenticated(gateway: Gateway, inbound: Inbound) -> Principal:
    if gateway.stopping:
        raise Stopping
    if len(gateway.watch) >= gateway.calls_in_flight_max:
        raise Overloaded
    return await gateway.authenticator.authenticate(inbound.headers, inbound.peer)


async def _passed(
    gateway: Gateway,
    passing: Passing,
    what: What,
    upstream: UpstreamSettings,
    asked: tuple[str, str, Mapping[str, str], bytes],
    client: Client,
    heard: Callable[[bytes], Awaitable[None]] | None = None,
    seen: Callable[[bytes], object] = len,
) -> Finish:
    gateway.metrics.passed_by_id.labels(what).inc()
    call = Call(client, drain_seconds=0.0)  # nothing is read on for a client that left
    gateway.watch.enter(call)
    try:
        return await passing.pass_on(upstream, *asked, call, heard, seen)
    finally:
        gateway.watch.leave(call)


def _heard(gateway: Gateway, owner: Owner) -> Callable[[bytes], Awaitable[None]]:
    async def heard(body: bytes) -> None:
        await gateway.kept.background.hear(owner, body, is_last=False)

    return heard


def kept_responses(
    database: Database,
    connector: aiohttp.BaseConnector,
    holds: Holds,
    settler: Settler,
    metrics: Metrics,
    upstreams: Callable[[], Sequence[UpstreamSettings]],
    *,
    settings: Settings,
) -> tuple[Kept, Passing]:
    """Wire what looks after them, and what asks for them; `upstreams` gives those of the settings in force."""
    passing = Passing(connector, metrics)
    owned = Owned(database, metrics, references=settings.unowned_references)
    background = Background(
        database,
        owned,
        holds,
        settler,
        passing,
        metrics,
        endpoint=ResponsesEndpoint(),
        upstreams=upstreams,
        seconds_max=settings.background_total_seconds,
    )
    return Kept(passing, owned, background), passing
