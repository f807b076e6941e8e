"""Responses that work on when their call is over: their holds stay open, and are settled by what they come to.

The row of their owner carries all that settles them, so any gateway can, whatever became of the one that was asked:
the model's limits, the price, the bounds of the request and the hold. What settles one is named by its hold, and counts
once, whoever sees its end first: the stream that brought it, its client that asks for it, or the service that looks.

What it is charged: its usage; ended without usage, what a reply without usage is charged; failed or cancelled without
usage, an estimate of the output that was seen, or nothing where none was. One that has not ended after
`background_total_seconds`, or that its upstream lost, has worked for nobody knows how long, and its hold was placed for
just that: its ceiling, but where missing usage is free.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote

import orjson

from gateway.core.catalogue import Model, Price
from gateway.core.ceiling import Ceiling
from gateway.core.json_members import parse
from gateway.core.pricing import DearestRates
from gateway.core.usage import says_nothing
from gateway.db import prices
from gateway.db import responses as store
from gateway.db.pool import Database
from gateway.db.responses import Owner
from gateway.endpoints.endpoint import CallRequest, Endpoint, Made
from gateway.errors import LedgerUnavailable
from gateway.metrics import Metrics
from gateway.request.admit import Offer
from gateway.request.hold import Hold, Holds
from gateway.request.meter import Ending, Seen, meter
from gateway.request.owned import Owned
from gateway.request.settle import Settler
from gateway.settings import UpstreamSettings
from gateway.tasks import spawn

_log = logging.getLogger("farebox.background")

# An upstream may know nothing yet of what it has just taken on.
_LOST_SECONDS = 60.0
_PRICES_MAX = 1_000
# When a new one is looked at: soon, or when nothing more is heard of the stream that brings it.
_LOOK_SECONDS = 2.0
_STREAM_SECONDS = 90.0


class Looks(Protocol):
    """Who asks an upstream (gateway/request/passing.py)."""

    async def read(self, upstream: UpstreamSettings, method: str, path: str) -> tuple[int, bytes] | None: ...


def terms(offer: Offer, hold: Hold, upstream: UpstreamSettings) -> dict[str, Any]:
    """All that settles a response of this offer, as it is kept. Read by every release from this one on."""
    request = offer.request
    return {
        "endpoint": offer.endpoint.name,
        "key": hold.key_id,
        "price": offer.price.price_id,
        "model": offer.model.name,
        "context": offer.model.context_tokens_max,
        "output_max": offer.model.output_tokens_max,
        "input_max": offer.ceiling.input_tokens_max,
        "input": request.input_tokens_estimate,
        "extra_max": dict(request.extra_max),
        "extra": dict(request.extra_estimate),
        "passes": request.passes,
        "tier": request.service_tier,
        "granted": hold.granted_nanos,
        "output": hold.output_tokens_max,
        "missing": upstream.missing_usage,
        "bp": upstream.price_bp,
    }


class Background:
    """See the module. `upstreams` gives those of the settings in force."""

    def __init__(
        self,
        database: Database,
        owned: Owned,
        holds: Holds,
        settler: Settler,
        passing: Looks,
        metrics: Metrics,
        *,
        endpoint: Endpoint,
        upstreams: Callable[[], Sequence[UpstreamSettings]],
        seconds_max: float,
    ) -> None:
        self._database = database
        self._owned = owned
        self._holds = holds
        self._settler = settler
        self._passing = passing
        self._metrics = metrics
        self._endpoint = endpoint
        self._upstreams = upstreams
        self._seconds_max = seconds_max
        self._prices: dict[int, Price] = {}

    def upstream(self, name: str) -> UpstreamSettings | None:
        """The upstream of this name, if the settings still have it."""
        return next((upstream for upstream in self._upstreams() if upstream.name == name), None)

    async def abandon(self, upstream: UpstreamSettings, response_id: str) -> None:
        """Stop what nobody will ever hear of."""
        await self._passing.read(upstream, "POST", path_of(response_id, "cancel"))

    async def hear(self, owner: Owner, body: bytes, *, is_last: bool) -> bool:
        """Settle by what its upstream says of a response; whether that is done.

        One that has ended and says nothing of its usage is settled only if nobody asks again (`is_last`).
        """
        if owner.unsettled is None:
            return True
        seen = self._endpoint.read_reply(body)
        if seen.made is None or seen.made.response_id != owner.response_id:
            return False
        if not seen.made.is_ended:
            if output_count := seen.count_output():
                await self._owned.relayed(owner, output_count)
            return False
        offer, hold = await self._restored(owner, owner.unsettled)
        charge_seen = Seen(
            Ending.COMPLETED,
            seen.usage,
            seen.count_output,
            str(owner.unsettled["missing"]),
            seen.service_tier,
            int(owner.unsettled["bp"]),
        )
        charge = meter(offer, hold, charge_seen)
        if seen.usage is None or says_nothing(seen.usage):
            if not is_last:
                return False
            if (status := _status(body)) in ("cancelled", "failed"):
                # As of a reply that broke: what its client has been sent is not free because it cancels the rest.
                output_count = max(seen.count_output(), int(owner.unsettled.get("relayed", 0)))
                broke = charge_seen._replace(ending=Ending.BROKE, usage=None, count_output=lambda: output_count)
                charge = meter(offer, hold, broke)._replace(reason=f"background_{status}")
        await self._settle(owner, offer, hold, charge)
        return True

    async def look(self, owner: Owner) -> bool:
        """Ask the upstream for one; whether it is settled. Raises LedgerAway."""
        if owner.is_resolved or owner.unsettled is None:
            await self._owned.settled(owner)
            return True
        offer, hold = await self._restored(owner, owner.unsettled)
        self._holds.renew(hold, cost_picos=0, cost_nanos=0, usage={})
        upstream = self.upstream(owner.upstream)
        is_late = owner.age_seconds > self._seconds_max
        if upstream is not None:
            found = await self._passing.read(upstream, "GET", path_of(owner.response_id))
            if found is not None and found[0] == 200 and await self.hear(owner, found[1], is_last=True):
                return True
            if is_late:
                found = await self._passing.read(upstream, "POST", path_of(owner.response_id, "cancel"))
                if found is not None and found[0] == 200 and await self.hear(owner, found[1], is_last=False):
                    return True
            is_late = is_late or (found is not None and found[0] == 404 and owner.age_seconds > _LOST_SECONDS)
        if not is_late:
            await store.look_later(self._database, owner, _pause_seconds(owner.age_seconds))
            return False
        _log.warning("a background response never ended", extra={"fields": {"hold": hold.hold_id}})
        missing = "free" if owner.unsettled["missing"] == "free" else "ceiling"
        bp = int(owner.unsettled["bp"])
        charge = meter(offer, hold, Seen(Ending.COMPLETED, None, int, missing, "", bp))
        await self._settle(owner, offer, hold, charge._replace(reason="never_ended"))
        return True

    async def _settle(self, owner: Owner, offer: Offer, hold: Hold, charge: Any) -> None:
        await self._settler.timed(offer, hold, charge, owner.upstream)
        labels = (offer.endpoint.name, offer.model.name, Ending.COMPLETED.value, charge.basis)
        self._metrics.calls.labels(*labels).inc()
        await self._owned.settled(owner)

    async def _restored(self, owner: Owner, kept: Mapping[str, Any]) -> tuple[Offer, Hold]:
        """The offer and the hold, as far as metering and settling need them. Raises LedgerAway."""
        model = Model(kept["model"], kept["context"], kept["output_max"])
        request = CallRequest(
            model=model.name,
            stream=False,
            input_tokens_max=kept["input_max"],
            input_tokens_estimate=kept["input"],
            output_tokens_cap=kept["output"],
            choices=1,
            wants_usage=True,
            extra_max=kept["extra_max"],
            extra_estimate=kept["extra"],
            passes=kept["passes"],
            service_tier=kept["tier"],
        )
        granted = kept["granted"]
        bounds = Ceiling(kept["input_max"], kept["output"], granted, granted, None, DearestRates(0, 0), 1)
        price = await self._price(kept["price"])
        hold = Hold(owner.hold_id, owner.wallet_id, kept["key"], granted, kept["output"], False, 0.0)
        return Offer(self._endpoint, request, b"", model, price, bounds, ()), hold

    async def _price(self, price_id: int) -> Price:
        price = self._prices.get(price_id)
        if price is None:
            (price,) = await prices.by_ids(self._database, [price_id])
            if len(self._prices) >= _PRICES_MAX:
                self._prices.clear()
            self._prices[price_id] = price
        return price


class Kept(NamedTuple):
    """What looks after kept responses."""

    passing: Looks
    owned: Owned
    background: Background


class Keeping:
    """Writes down, for one call, what its upstream keeps. `owner` is there once that is durable."""

    __slots__ = ("_background", "_hold", "_offer", "_owned", "owner")

    def __init__(self, kept: Kept, offer: Offer, hold: Hold) -> None:
        self._owned = kept.owned
        self._background = kept.background
        self._offer = offer
        self._hold = hold
        self.owner: Owner | None = None

    async def note(self, made: Made, upstream: UpstreamSettings) -> None:
        """Raises LedgerUnavailable where a response in the background could never be settled."""
        request, hold = self._offer.request, self._hold
        # A reply that says that it is not done works in the background, whether that was asked for or not.
        goes_on = not made.is_ended and (request.background or not request.stream)
        if not (request.keeps or goes_on):
            return
        unsettled = terms(self._offer, hold, upstream) if goes_on else None
        seconds = _STREAM_SECONDS if request.stream else _LOOK_SECONDS
        owner = Owner(hold.wallet_id, made.response_id, upstream.name, hold.hold_id, unsettled, look_seconds=seconds)
        if await self._owned.write_down(owner):
            self.owner = owner
        elif goes_on:
            await self._background.abandon(upstream, made.response_id)
            raise LedgerUnavailable("The response could not be written down, and was cancelled. Nothing was charged.")

    def goes_on(self, made: Made | None) -> bool:
        """Whether the response is settled later, since it has not ended."""
        return self.owner is not None and self.owner.unsettled is not None and made is not None and not made.is_ended

    def renew(self) -> None:
        """Its stream runs on, and will say itself how it ended."""
        if self.owner is not None and self.owner.unsettled is not None:
            spawn(self._owned.look_later(self.owner, _STREAM_SECONDS), name="look later")

    async def hand_over(self, output_count: int) -> None:
        """Its call is over, after so much output."""
        if self._offer.request.stream and self.owner is not None:
            if output_count:
                await self._owned.relayed(self.owner, output_count)
            await self._owned.look_later(self.owner, _LOOK_SECONDS)

    async def settled(self) -> None:
        """It was settled with its call."""
        if self.owner is not None and self.owner.unsettled is not None:
            await self._owned.settled(self.owner)


def path_of(response_id: str, what: str | None = None) -> str:
    """Where an upstream has it."""
    path = f"/responses/{quote(response_id, safe='')}"
    return path if what is None else f"{path}/{what}"


def _status(body: bytes) -> object:
    try:
        reply = parse(body)
    except orjson.JSONDecodeError:
        return None
    return reply.get("status") if isinstance(reply, dict) else None


def _pause_seconds(age_seconds: float) -> float:
    """Often at first, when somebody waits; never so seldom that the hold would grow old."""
    return 2.0 if age_seconds < 60 else 5.0 if age_seconds < 600 else 15.0
