"""One metered call, in order: authenticate, admit, hold, relay, meter, settle. Then, and only then, finish.

From the moment that a hold is placed, every way out of `handle` goes through exactly one settle or void, here.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from multidict import CIMultiDict

from gateway import points
from gateway.core.money import format_nanos
from gateway.core.multipart import Form
from gateway.core.pricing import is_tier_priced
from gateway.endpoints.endpoint import Endpoint
from gateway.errors import InsufficientFunds, Overloaded, Stopping, UpstreamUnreachable
from gateway.metrics import Metrics
from gateway.request.admit import Offer, Shelf, admit
from gateway.request.authenticate import Authenticator, Principal
from gateway.request.background import Keeping, Kept
from gateway.request.headers import hold_headers
from gateway.request.hold import Hold, Holds
from gateway.request.meter import Charge, Ending, Seen, estimate, meter, void
from gateway.request.recount import Recounted, Recounter
from gateway.request.relay import Relay, Relayed
from gateway.request.settle import Receipt, Settler
from gateway.request.watch import Call, Client, Watch

_log = logging.getLogger("farebox.handle")

# A stream's client that wants to know the cost asks with this header, and gets an SSE comment near the end.
RECEIPT_HEADER = "x-farebox-receipt"
# A call that carries this one is answered and charged once, however often it is sent.
IDEMPOTENCY_KEY = "idempotency-key"


class Inbound(Protocol):
    """A request as the web gives it: headers at once, the body when it is asked for."""

    headers: Mapping[str, str]
    began_at_seconds: float

    @property
    def peer(self) -> str: ...

    async def read_body(self) -> bytes | Form:
        """Raises BodyTooLarge, RequestTimedOut, MalformedRequest."""


@dataclass(slots=True)
class Finish:
    """What the client gets last. Without `started` it is a whole reply; with it, the end of one."""

    status: int
    headers: CIMultiDict[str]
    body: bytes
    started: bool
    is_broken: bool = False  # the end cannot be well-formed: the connection must be dropped
    is_whole: bool = False  # with what went before, it is all of a model's reply
    pieces: Sequence[bytes] = ()  # of a whole reply, before the body


# Places the hold of a call, with this id if one is given, and serves it to this client.
Serve = Callable[[str | None, Client], Awaitable[Finish]]


class Idempotent(Protocol):
    """What sees to it that a call with an idempotency key is served once (gateway/request/idempotency.py)."""

    async def run(
        self, principal: Principal, offer: Offer, path: str, headers: Mapping[str, str], client: Client, serve: Serve
    ) -> Finish: ...


@dataclass(slots=True)
class Gateway:
    """What a call needs; built once by gateway/app.py."""

    authenticator: Authenticator
    shelf: Callable[[], Shelf]
    holds: Holds
    recounter: Recounter
    relay: Relay
    settler: Settler
    idempotent: Idempotent
    kept: Kept
    watch: Watch
    metrics: Metrics
    min_output_tokens: int
    hold_slice_tokens: int
    drain_seconds: float
    calls_in_flight_max: int
    stopping: bool = False
    in_flight: int = 0  # calls that ask for money or hold it
    unsettled: int = 0  # calls that hold money
    stored_context: str = "ceiling"
    auto_service_tier: str = "default"


async def handle(gateway: Gateway, endpoint: Endpoint, path: str, inbound: Inbound, client: Client) -> Finish:
    """Serve one call. Raises Failure for what is refused before the upstream is asked."""
    if gateway.stopping:
        raise Stopping
    if len(gateway.watch) >= gateway.calls_in_flight_max:
        raise Overloaded
    principal = await gateway.authenticator.authenticate(inbound.headers, inbound.peer)
    if points.armed:
        points.reach("authenticate.done")
    body = await inbound.read_body()
    if isinstance(body, bytes):
        offer = _admitted(gateway, principal, endpoint, body)
    else:
        # To walk through a file of sound can take half a second; nobody else waits for it.
        offer = await asyncio.to_thread(_admitted, gateway, principal, endpoint, body)
    if offer.request.follows is not None or offer.request.unowned is not None:
        offer = await gateway.kept.owned.allow(principal, offer)
    if points.armed:
        points.reach("admit.done")
    try:
        return await serve_offer(gateway, principal, offer, path, inbound, client)
    except InsufficientFunds as refusal:
        if refusal.available_nanos is None:
            raise
        recounted = await gateway.recounter.offer(
            offer,
            refusal.available_nanos,
            min_output_tokens=gateway.min_output_tokens,
            hold_slice_tokens=gateway.hold_slice_tokens,
        )
        if recounted is None:
            raise
    # A decline is for ever: this is another hold, under the same idempotency key if there is one, which was released.
    return await serve_offer(gateway, principal, recounted, path, inbound, client)


def _admitted(gateway: Gateway, principal: Principal, endpoint: Endpoint, body: bytes | Form) -> Offer:
    return admit(
        principal,
        endpoint,
        body,
        gateway.shelf(),
        min_output_tokens=gateway.min_output_tokens,
        hold_slice_tokens=gateway.hold_slice_tokens,
        stored_context=gateway.stored_context,
        auto_service_tier=gateway.auto_service_tier,
    )


async def serve_offer(
    gateway: Gateway, principal: Principal, offer: Offer, path: str, inbound: Inbound, client: Client
) -> Finish:
    """Serve a call that was admitted, once for each idempotency key."""
    if IDEMPOTENCY_KEY in inbound.headers:

        async def serve(hold_id: str | None, to: Client) -> Finish:
            return await _serve(gateway, path, inbound, to, principal, offer, hold_id)

        asked = path if offer.method == "POST" else f"{offer.method} {path}"
        return await gateway.idempotent.run(principal, offer, asked, inbound.headers, client, serve)
    return await _serve(gateway, path, inbound, client, principal, offer, None)


async def _serve(
    gateway: Gateway,
    path: str,
    inbound: Inbound,
    client: Client,
    principal: Principal,
    offer: Offer,
    hold_id: str | None,
) -> Finish:
    """Hold, and see the hold through."""
    gateway.in_flight += 1
    try:
        hold = await gateway.holds.place(principal, offer, hold_id)
        if offer.is_recounted:
            gateway.recounter.note(Recounted.HELD)
        if points.armed:
            points.reach("hold.placed")
        gateway.unsettled += 1
        try:
            return await _held(gateway, path, inbound, client, offer, hold)
        finally:
            gateway.unsettled -= 1
    finally:
        gateway.in_flight -= 1


async def _held(gateway: Gateway, path: str, inbound: Inbound, client: Client, offer: Offer, hold: Hold) -> Finish:
    """Relay, meter, settle. Whatever happens in between, the hold is resolved once."""
    call = Call(client, drain_seconds=gateway.drain_seconds)
    keeping: Keeping | None = None
    if offer.request.keeps:
        keeping = Keeping(gateway.kept, offer, hold)
        call.note = keeping.note
    call.renew = lambda now: _renew(gateway, offer, hold, call, keeping, now)
    gateway.watch.enter(call)
    try:
        relayed = await gateway.relay.run(path, inbound.headers, offer, hold, call)
    except BaseException:
        # A bug or a cancellation: what was relayed until then is charged, and the failure goes on its way.
        seen = Seen(Ending.CRASHED, None, call.output_tokens_estimate)
        await gateway.settler.settle(offer, hold, _metered(gateway, offer, hold, seen), None)
        raise
    finally:
        gateway.watch.leave(call)
        call.let_go()
    if points.armed:
        points.reach("relay.done")
    gateway.metrics.added_seconds.observe(max(0.0, call.asked_at_seconds - inbound.began_at_seconds))
    if keeping is not None and keeping.goes_on(relayed.made):
        # Its hold stays open, and its end settles it (gateway/request/background.py).
        gateway.holds.renew(hold, cost_picos=0, cost_nanos=0, usage={})
        await keeping.hand_over(relayed.seen.count_output())
        return _handed_over(offer, relayed)
    charge = _metered(gateway, offer, hold, relayed.seen)
    if points.armed:
        points.reach("meter.done")
    receipt = await gateway.settler.timed(offer, hold, charge, relayed.upstream)
    if points.armed:
        points.reach("settle.durable")
    if keeping is not None:
        await keeping.settled()
    gateway.metrics.calls.labels(offer.endpoint.name, offer.model.name, relayed.seen.ending, charge.basis).inc()
    wants_receipt = RECEIPT_HEADER in inbound.headers
    return _finish(offer, hold, relayed, charge, receipt, wants_receipt=wants_receipt)


def _metered(gateway: Gateway, offer: Offer, hold: Hold, seen: Seen) -> Charge:
    """The charge; a failure to reckon it is a bug that must not leave the hold open."""
    if seen.service_tier and not is_tier_priced(offer.price, seen.service_tier):
        gateway.metrics.unpriced_tiers.labels(offer.model.name).inc()
    try:
        return meter(offer, hold, seen)
    except Exception as error:
        gateway.metrics.crashes.inc()
        _log.exception("a charge could not be reckoned", exc_info=error, extra={"fields": {"hold": hold.hold_id}})
        return void("meter_failed") if not seen.count_output() else estimate(offer, hold, 0, "meter_failed")


def _renew(gateway: Gateway, offer: Offer, hold: Hold, call: Call, keeping: Keeping | None, now: float) -> None:
    """At half the hold's validity: say what the call has cost so far."""
    if now < hold.renew_at_seconds:
        return
    if keeping is not None:
        keeping.renew()
    tokens = call.output_tokens_estimate()
    so_far = estimate(offer, hold, tokens, "swept") if tokens else void("swept")
    gateway.holds.renew(hold, cost_picos=so_far.cost_picos, cost_nanos=so_far.cost_nanos, usage=so_far.usage)


def _finish(
    offer: Offer, hold: Hold, relayed: Relayed, charge: Charge, receipt: Receipt, *, wants_receipt: bool
) -> Finish:
    """The end of the exchange, now that the charge is durable."""
    seen = relayed.seen
    failure = relayed.failure
    if seen.ending is Ending.STOPPED:
        failure = Stopping("This gateway is shutting down; the reply was ended early.")
    if relayed.started:
        is_events = relayed.headers.get("Content-Type", "").lower().startswith("text/event-stream")
        rest = relayed.rest
        if failure is not None:
            rest = offer.endpoint.error_end(failure.document()) if is_events else b""
        if wants_receipt and is_events:
            rest = _receipt_comment(charge, receipt) + rest
        is_broken = failure is not None and not is_events
        is_whole = relayed.is_whole and failure is None
        return Finish(relayed.status, relayed.headers, rest, started=True, is_broken=is_broken, is_whole=is_whole)
    if failure is not None or (seen.ending in (Ending.REFUSED, Ending.CLIENT_GONE) and not relayed.headers):
        failure = failure or UpstreamUnreachable()
        failure.headers.update(_own_headers(hold, charge, receipt))
        raise failure
    headers = relayed.headers
    headers.update(_own_headers(hold, charge, receipt))
    is_whole, pieces = relayed.is_whole, relayed.pieces
    return Finish(relayed.status, headers, relayed.rest, started=False, is_whole=is_whole, pieces=pieces)


def _handed_over(offer: Offer, relayed: Relayed) -> Finish:
    """The end of a call whose response goes on without it."""
    rest = relayed.rest
    if relayed.failure is not None or relayed.seen.ending is Ending.STOPPED:
        rest = offer.endpoint.error_end((relayed.failure or Stopping()).document())
    is_whole = relayed.is_whole and not relayed.started
    return Finish(relayed.status, relayed.headers, rest, started=relayed.started, is_whole=is_whole)


def _own_headers(hold: Hold, charge: Charge, receipt: Receipt) -> dict[str, str]:
    headers = hold_headers(hold)
    headers["x-farebox-cost"] = format_nanos(charge.cost_nanos)
    if receipt.balance_nanos is not None:
        headers["x-farebox-balance"] = format_nanos(receipt.balance_nanos)
    return headers


def _receipt_comment(charge: Charge, receipt: Receipt) -> bytes:
    """Comments are the one addition to a stream that both SDKs ignore."""
    balance = "" if receipt.balance_nanos is None else f" balance={format_nanos(receipt.balance_nanos)}"
    return f": farebox cost={format_nanos(charge.cost_nanos)}{balance} billing_source=balance\n\n".encode()
