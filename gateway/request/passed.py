"""Requests that the operator allows although nothing meters them: `[[allow]]` in the settings.

Free: whoever has a key may; nothing is held. Or at a flat price: `model` names a priced model whose price has
`requests`, and the call is held, settled and explained as any other. Either way it goes to the one upstream that is
named, under the account that all callers share: what one stores there, another may read.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from gateway.clock import new_id
from gateway.core.catalogue import Meter, Model, Price
from gateway.core.ceiling import Ceiling
from gateway.core.known_paths import SEGMENT
from gateway.core.pricing import DearestRates
from gateway.endpoints.passed import PassedEndpoint
from gateway.errors import ModelNotFound, Overloaded, Stopping, UpstreamUnreachable
from gateway.request.admit import Offer, Route, find, priced
from gateway.request.authenticate import Principal
from gateway.request.handle import Finish, Gateway, Inbound, serve_offer
from gateway.request.hold import Hold
from gateway.request.watch import Call, Client
from gateway.settings import AllowSettings, UpstreamSettings

_FOREVER = float("inf")
_FREE_MODEL = Model("", 0, 0)
_FREE_PRICE = Price(0, "", datetime.min.replace(tzinfo=UTC), "allowed", {})
_FREE_CEILING = Ceiling(0, 0, 0, 0, None, DearestRates(0, None), 1)


class Rule(NamedTuple):
    """One path that is allowed, and where it goes."""

    pattern: re.Pattern[str]
    path: str
    methods: Sequence[str]
    upstream: UpstreamSettings
    model: str | None


def rules_of(allowed: Iterable[AllowSettings], upstreams: Iterable[UpstreamSettings]) -> tuple[Rule, ...]:
    """The rules, in the order in which they are tried; those of upstreams that are not there are left out."""
    by_name = {upstream.name: upstream for upstream in upstreams}
    return tuple(
        Rule(_pattern(rule.path), rule.path, rule.methods, by_name[rule.upstream], rule.model)
        for rule in allowed
        if rule.upstream in by_name
    )


def matching(rules: Sequence[Rule], method: str, path: str) -> tuple[Rule | None, list[str]]:
    """The first rule for this path, below the prefix, and method; else the methods that it may have."""
    methods: list[str] = []
    for rule in rules:
        if rule.pattern.fullmatch(path):
            if method in rule.methods:
                return rule, []
            methods.extend(rule.methods)
    return None, sorted(set(methods))


async def handle_passed(
    gateway: Gateway, rule: Rule, method: str, target: str, inbound: Inbound, client: Client
) -> Finish:
    """Serve one such call; `target` is its path below the prefix with its query. Raises Failure."""
    if gateway.stopping:
        raise Stopping
    if len(gateway.watch) >= gateway.calls_in_flight_max:
        raise Overloaded
    principal = await gateway.authenticator.authenticate(inbound.headers, inbound.peer)
    body = await inbound.read_body()
    assert isinstance(body, bytes), "forms are taken for metered endpoints only"
    gateway.metrics.passed.labels(rule.path, "free" if rule.model is None else "priced").inc()
    if rule.model is None:
        return await _free(gateway, _free_offer(rule, method, body), principal, target, inbound.headers, client)
    return await serve_offer(
        gateway, principal, _priced_offer(gateway, rule, method, body, principal), target, inbound, client
    )


def _priced_offer(gateway: Gateway, rule: Rule, method: str, body: bytes, principal: Principal) -> Offer:
    """Raises ModelNotFound: also where the price has no rate for requests, or the call would be free."""
    name = rule.model or ""
    model, price, _ = find(principal, gateway.shelf(), name)
    if Meter.REQUESTS not in price.rates:
        raise ModelNotFound(f"The model {name} has no price for requests.", code="model_not_priced")
    endpoint = PassedEndpoint(name)
    route = Route(rule.upstream, name)
    offer = priced(
        endpoint,
        endpoint.read_request(body),
        body,
        (model, price, (route,)),
        min_output_tokens=gateway.min_output_tokens,
        hold_slice_tokens=gateway.hold_slice_tokens,
    )
    return offer._replace(method=method)


def _free_offer(rule: Rule, method: str, body: bytes) -> Offer:
    endpoint = PassedEndpoint("")
    request = endpoint.read_request(body)
    routes = (Route(rule.upstream, ""),)
    return Offer(endpoint, request, body, _FREE_MODEL, _FREE_PRICE, _FREE_CEILING, routes, method)


async def _free(
    gateway: Gateway, offer: Offer, principal: Principal, target: str, headers: Mapping[str, str], client: Client
) -> Finish:
    """Relay what costs nothing: with every deadline, and no hold."""
    hold = Hold(new_id(), principal.wallet_id, principal.key_id, 0, 0, False, _FOREVER, is_none=True)
    call = Call(client, drain_seconds=0.0)
    gateway.watch.enter(call)
    try:
        relayed = await gateway.relay.run(target, headers, offer, hold, call)
    finally:
        gateway.watch.leave(call)
    if not relayed.started and (relayed.failure is not None or not relayed.headers):
        raise relayed.failure or UpstreamUnreachable()
    is_broken = relayed.started and (relayed.failure is not None or not relayed.is_whole)
    return Finish(relayed.status, relayed.headers, relayed.rest, started=relayed.started, is_broken=is_broken)


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile("/".join(SEGMENT if part == "{id}" else re.escape(part) for part in path.split("/")))
