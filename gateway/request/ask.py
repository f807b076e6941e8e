"""The first half of step 4: ask the upstreams in turn, until one answers with a reply that is worth having.

Which is asked when is decided in gateway/request/routing.py; here it is done, and what became of it remembered.
Nothing has been sent to the client before `ask` returns, so another upstream may still be asked.
"""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import aiohttp
from yarl import URL

from gateway import points
from gateway.clock import monotonic_seconds
from gateway.core.multipart import Form
from gateway.core.variants import is_by_deployment, url_of
from gateway.endpoints.endpoint import Changes
from gateway.errors import Failure, UpstreamFailed, UpstreamsBusy, UpstreamTimedOut, UpstreamUnreachable
from gateway.metrics import Metrics
from gateway.request.admit import Offer, Route
from gateway.request.breaker import Breaker, BreakerLimits, State
from gateway.request.headers import request_headers
from gateway.request.hold import Hold
from gateway.request.routing import drawn, is_drawn, with_the_ill_last
from gateway.request.upstream import Target, Upload, post
from gateway.request.upstream_reply import Reply
from gateway.request.watch import Call
from gateway.settings import UpstreamSettings

_WAYS_MAX = 1_000  # by deployment there is one for each model, and paths that are passed on have ids in them
_LOTS = 2**32
# Steps of the golden ratio spread lots more evenly than dice do, and ask the system for nothing.
_GOLDEN = 0.618_033_988_749_894_9
# Failures that say nothing about the upstream: the request was wrong, or so is our configuration.
_NOT_ITS_FAULT = frozenset({"status_4xx"})


class Standing:
    """One upstream, as this process knows it."""

    __slots__ = ("breaker", "in_flight")

    def __init__(self) -> None:
        self.breaker = Breaker()
        self.in_flight = 0  # calls of this process that it has been sent and not yet answered to the end

    def leave(self) -> None:
        """A call is over."""
        self.in_flight -= 1


class Asked(NamedTuple):
    """Who answered, and what; or why there is no answer. `route` is None where nobody could be asked.

    With a reply the call counts as in flight there until `standing.leave()`.
    """

    reply: Reply | None
    route: Route | None
    failure: Failure | None = None
    standing: Standing | None = None


class _Answer(NamedTuple):
    reply: Reply | None
    failure: Failure | None = None
    may_go_on: bool = True  # another upstream may be asked without risking a second bill


class _Way(NamedTuple):
    target: Target
    headers: Sequence[tuple[str, str]]
    limits: BreakerLimits


class Asker:
    """All upstreams, over one pool of keep-alive connections."""

    def __init__(self, connector: aiohttp.BaseConnector, metrics: Metrics) -> None:
        self._connector = connector
        self._metrics = metrics
        self._ways: dict[tuple[str, str, str, str], _Way] = {}
        self._standings: dict[str, Standing] = {}
        self._lot = secrets.randbelow(_LOTS) / _LOTS  # each process begins elsewhere

    def forget(self) -> None:
        """The settings of upstreams may have changed: they get a new chance. What is in flight still counts."""
        self._ways.clear()
        for name, standing in list(self._standings.items()):
            standing.breaker = Breaker()
            if not standing.in_flight:
                del self._standings[name]

    def report(self) -> None:
        """Bring the gauges up to date."""
        up, in_flight = self._metrics.upstream_up, self._metrics.upstream_in_flight
        up.clear()
        in_flight.clear()
        for name, standing in self._standings.items():
            up.labels(name).set(standing.breaker.state is State.CLOSED)
            in_flight.labels(name).set(standing.in_flight)

    @property
    def standings(self) -> Mapping[str, Standing]:
        """By name, those that have been asked."""
        return self._standings

    @property
    def ill(self) -> list[str]:
        """The upstreams that are not known to be well."""
        return sorted(name for name, one in self._standings.items() if one.breaker.state is not State.CLOSED)

    async def ask(self, path: str, headers: Mapping[str, str], offer: Offer, hold: Hold, call: Call) -> Asked:
        """The first reply that is worth having. Raises nothing that an upstream may cause."""
        turn = self.turn(offer.routes)
        asked: Asked | None = None
        for position, route in enumerate(turn):
            standing = self._standing(route.upstream)
            if self._is_full(route):
                self._metrics.upstream_skipped.labels(route.upstream.name, "full").inc()
                continue
            standing.in_flight += 1
            answer = None
            try:
                answer = await self._ask_one(path, headers, offer, hold, call, route, standing)
            finally:
                if answer is None or answer.reply is None:
                    standing.leave()
            if answer.reply is None:
                asked = Asked(None, route, answer.failure)
                if answer.may_go_on and not call.is_over:
                    continue
                return asked
            is_poor = answer.reply.status == 429 or answer.reply.status >= 500
            if is_poor and not all(self._is_full(one) for one in turn[position + 1 :]):
                answer.reply.close()
                standing.leave()
                continue
            return Asked(answer.reply, route, None, standing)
        return asked or Asked(None, None, UpstreamsBusy())

    def turn(self, routes: Sequence[Route]) -> Sequence[Route]:
        """In which order to ask them now."""
        if len(routes) == 1:
            return routes
        if is_drawn(routes):
            self._lot = (self._lot + _GOLDEN) % 1.0
            routes = drawn(routes, self._lot)
        for route in routes:
            if self._standing(route.upstream).breaker.state is not State.CLOSED:
                breakers = {route.upstream.name: self._standing(route.upstream).breaker for route in routes}
                return with_the_ill_last(routes, breakers, monotonic_seconds())
        return routes

    def _standing(self, upstream: UpstreamSettings) -> Standing:
        standing = self._standings.get(upstream.name)
        if standing is None:
            standing = self._standings[upstream.name] = Standing()
        return standing

    def _is_full(self, route: Route) -> bool:
        limit = route.upstream.calls_in_flight_max
        return limit is not None and self._standing(route.upstream).in_flight >= limit

    async def _ask_one(
        self,
        path: str,
        headers: Mapping[str, str],
        offer: Offer,
        hold: Hold,
        call: Call,
        route: Route,
        standing: Standing,
    ) -> _Answer:
        """One upstream's reply, from its head on. Its breaker is told what came of it."""
        upstream = route.upstream
        name = upstream.name
        body = _body(offer, hold, route)
        way = self._way(route, path, offer.method)
        sent_headers = request_headers(headers, way.target.authorization, hold, way.headers)
        self._metrics.upstream_calls.labels(name).inc()
        began = monotonic_seconds()
        standing.breaker.asked(began)
        call.asked_at_seconds = call.asked_at_seconds or began
        call.await_first_byte(upstream.first_byte_seconds)
        try:
            response = await post(self._connector, way.target, sent_headers, body)
        except asyncio.CancelledError:
            if not call.took_too_long():
                standing.breaker.left()
                raise
            if call.is_client_gone or call.is_stopped:
                # It was not the upstream that took too long.
                standing.breaker.left()
                return _Answer(None, UpstreamTimedOut(), may_go_on=False)
            return _Answer(None, self.failed(upstream, "first_byte_timeout", UpstreamTimedOut()), may_go_on=False)
        except (aiohttp.ClientError, OSError) as error:
            return _Answer(None, self.failed(upstream, kind_of(error), UpstreamUnreachable()))
        except BaseException:
            standing.breaker.left()
            raise
        finally:
            call.first_byte_by_seconds = 0.0
        self._metrics.upstream_first_byte.labels(name).observe(monotonic_seconds() - began)
        try:
            if points.armed:
                points.reach("relay.connected")
        except BaseException:
            standing.breaker.left()
            response.close()
            raise
        return self._judged(response, upstream, standing, way.limits)

    def _judged(
        self, response: Reply, upstream: UpstreamSettings, standing: Standing, limits: BreakerLimits
    ) -> _Answer:
        status = response.status
        if 200 <= status < 300:
            standing.breaker.answered(monotonic_seconds(), limits)
        elif status >= 400:
            self.failed(upstream, "status_429" if status == 429 else f"status_{status // 100}xx", None)
            if status < 500 and status != 429:
                # It is there, and knows what it does not want.
                standing.breaker.answered(monotonic_seconds(), limits)
        else:
            # A redirect would lead the client past the meter, its key in hand.
            response.close()
            return _Answer(
                None, self.failed(upstream, "redirect", UpstreamFailed("The upstream answered with a redirect."))
            )
        return _Answer(response)

    def failed(self, upstream: UpstreamSettings, kind: str, failure: Failure | None) -> Failure | None:
        """Count a failure of this kind, and remember it; `failure` is what the client is told."""
        self._metrics.upstream_errors.labels(upstream.name, kind).inc()
        if kind not in _NOT_ITS_FAULT:
            self._standing(upstream).breaker.failed(monotonic_seconds(), limits_of(upstream))
        return failure

    def _way(self, route: Route, path: str, method: str) -> _Way:
        upstream = route.upstream
        named = route.model if upstream.paths == "deployments" and is_by_deployment(path) else ""
        way = self._ways.get((upstream.name, method, path, named))
        if way is None:
            if len(self._ways) >= _WAYS_MAX:
                self._ways.clear()
            authorization, headers = own_headers(upstream)
            target = Target(
                URL(address(upstream, path, route.model)),
                authorization=authorization,
                connect_seconds=upstream.connect_seconds,
                method=method,
            )
            way = self._ways[upstream.name, method, path, named] = _Way(target, headers, limits_of(upstream))
        return way


def kind_of(error: Exception) -> str:
    """The class of a failure to get as far as a reply's head."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return "connect"
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "connect_timeout"
    return "reset"  # the request was written and the connection lost: the upstream may or may not have worked


def address(upstream: UpstreamSettings, path: str, model: str) -> str:
    """The URL of `path`, below the prefix and encoded, at this upstream; `model` by its name there."""
    return url_of(
        upstream.base_url,
        path,
        model,
        by_deployment=upstream.paths == "deployments",
        api_version=upstream.api_version,
        query=upstream.query,
    )


def own_headers(upstream: UpstreamSettings) -> tuple[str | None, Sequence[tuple[str, str]]]:
    """What goes into Authorization, or None, and the other headers that are ours."""
    headers = [(name, value.get_secret_value()) for name, value in upstream.headers.items()]
    if upstream.api_key is None:
        return None, headers
    key = upstream.api_key.get_secret_value()
    return (None, [*headers, ("api-key", key)]) if upstream.auth == "api-key" else (f"Bearer {key}", headers)


def limits_of(upstream: UpstreamSettings) -> BreakerLimits:
    """When its breaker opens."""
    return BreakerLimits(
        upstream.open_after_failures,
        upstream.open_at_error_percent,
        upstream.open_window_seconds,
        upstream.open_seconds,
    )


def _body(offer: Offer, hold: Hold, route: Route) -> bytes | Upload:
    upstream, request = route.upstream, offer.request
    model = route.model if route.model != request.model else None
    if not isinstance(offer.body, bytes):
        return _form(offer.body, model)
    # An upstream that reads one member only would not see a cap in the other, nor stop without one.
    is_capped = hold.is_lowered or upstream.cap_member == "max_tokens"
    changes = Changes(
        model,
        include_usage=request.stream and not request.wants_usage and upstream.include_usage,
        output_tokens_cap=hold.output_tokens_max if is_capped else None,
        cap_member=upstream.cap_member,
    )
    return offer.endpoint.upstream_body(offer.body, changes)


def _form(form: Form, model: str | None) -> Upload:
    """A form goes out from where it was put aside, as often as it is asked for."""
    if model is None:
        return Upload(form.size_bytes, form.bytes_of(0, form.size_bytes))
    value = model.encode()
    return Upload(form.size_with("model", value), form.with_value("model", value))
