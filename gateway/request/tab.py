"""The holds of one session for one kind of charge: some for what comes next, and one for each that runs.

From a placed hold every way out is one settle or one void: `end` for what ran, `close` for all that is left.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from gateway.clock import monotonic_seconds, new_id
from gateway.core.catalogue import Meter, Model, Price
from gateway.core.estimate import tokens_from_bytes
from gateway.core.pricing import Quantities
from gateway.db.lanes import Outcome
from gateway.db.pool import LedgerAway
from gateway.endpoints.realtime import reply_audio_tokens
from gateway.errors import Failure, LedgerUnavailable
from gateway.request.admit import Offer, Route
from gateway.request.authenticate import Principal
from gateway.request.handle import Gateway
from gateway.request.hold import Hold
from gateway.request.meter import Charge, Ending, Seen, estimate, meter, void
from gateway.tasks import spawn

_log = logging.getLogger("farebox.session")
_ENDED_MAX = 1_024  # how many ends are remembered, so that none is charged twice

Found = tuple[Model, Price, tuple[Route, ...]]
N = TypeVar("N", bound="Need")
T = TypeVar("T")


class Need(Protocol):
    """The most that the next one may use."""

    def covers(self, other: Any, /) -> bool: ...
    def roomy(self) -> Any: ...


@dataclass(slots=True, eq=False)
class Item(Generic[N]):
    """One hold, what it covers, and what of it was relayed."""

    offer: Offer
    hold: Hold
    need: N
    text_bytes: int = 0
    audio_bytes: int = 0
    events: int = 0

    def relayed(self, text_bytes: int, audio_bytes: int) -> None:
        """Count one event of output."""
        self.text_bytes += text_bytes
        self.audio_bytes += audio_bytes
        self.events += 1


@dataclass(slots=True)
class Payer:
    """Who pays for a session, and where it goes. `released` is set when a hold gives money back."""

    gateway: Gateway
    headers: Mapping[str, str]
    peer: str
    principal: Principal
    released: asyncio.Event = field(default_factory=asyncio.Event)
    route: Route | None = None
    reply_bytes_per_second: int = 1
    is_busy: Callable[[], bool] = lambda: False

    async def ask(self) -> Principal:
        """Whose key it is; asked anew for each hold, for it may have been revoked. Raises Failure."""
        try:
            self.principal = await self.gateway.authenticator.authenticate(self.headers, self.peer)
        except LedgerAway:
            raise LedgerUnavailable from None
        return self.principal


class Tab(Generic[N]):
    """`find` gives model, price and routes as they are now; `offer` what something may cost at most."""

    def __init__(self, payer: Payer, find: Callable[[Principal], Found], offer: Callable[[N, Found], Offer]) -> None:
        self._payer = payer
        self._find = find
        self._offer = offer
        self.spares: list[Item[N]] = []
        self.running: dict[str, Item[N]] = {}
        self._ended: dict[str, None] = {}
        self._found: Found | None = None  # what the last hold was for; it may be on offer no more
        self._working: set[asyncio.Task[Any]] = set()  # what must not end with whoever waits for it

    async def ready(self, wanted: Callable[[], tuple[N, int]]) -> None:
        """Return once as many holds as are wanted, each good for the need, stand for what comes next.

        Where they are refused while something runs, what that gives back is waited for. Raises Failure.
        """
        payer = self._payer
        while True:
            payer.released.clear()
            was_busy = payer.is_busy()
            need, count = wanted()
            try:
                while len(self.spares) < count:
                    await self._place(need)
                for item in self.spares:
                    if not item.need.covers(need):
                        await self._extend(item, need)
                return
            except Failure:
                if payer.is_busy():
                    await payer.released.wait()
                elif not was_busy:  # else it has ended meanwhile, and less is needed now
                    raise

    async def begin(self, key: str, need: N, estimated: Quantities) -> Failure | None:
        """`key` runs from here on, on the next hold. A failure: there was none, and none was to be had."""
        failure: Failure | None = None
        if not self.spares:
            try:
                await self._place(need)
            except Failure as error:
                failure = error
        if self.spares:
            item = self.spares.pop(0)
        else:
            item = self._unheld(need)
            self._payer.gateway.unsettled += 1
        item.offer = item.offer._replace(request=item.offer.request._replace(extra_estimate=estimated))
        self.running[key] = item
        return failure

    def knows(self, key: str) -> bool:
        """Whether `key` runs, or has ended."""
        return key in self.running or key in self._ended

    def has_ended(self, key: str) -> bool:
        return key in self._ended

    async def end(self, key: str, ending: Ending, usage: Mapping[str, object] | None) -> Charge:
        """`key` has ended: charge it. Returns once that is durable."""
        item = self.running.pop(key)
        self._ended[key] = None
        if len(self._ended) > _ENDED_MAX:
            del self._ended[next(iter(self._ended))]
        return await self._settle(item, ending, usage)

    async def drop_spares(self) -> None:
        """Give back what is held for what comes next."""
        while self.spares:
            await self._resolve(self.spares.pop(), void("session_ended"))

    async def close(self, ending: Ending) -> None:
        """The session is over: resolve every hold that is left."""
        await self._worked()
        for key in list(self.running):
            await self.end(key, ending, None)
        await self.drop_spares()
        await self._worked()

    def renew(self, now: float) -> None:
        """At half its validity, say what each has cost so far."""
        for item in (*self.spares, *self.running.values()):
            if now >= item.hold.renew_at_seconds:
                offer, count = self._counted(item)
                so_far = estimate(offer, item.hold, count, "swept") if count else void("swept")
                self._payer.gateway.holds.renew(
                    item.hold, cost_picos=so_far.cost_picos, cost_nanos=so_far.cost_nanos, usage=so_far.usage
                )

    async def _place(self, need: N) -> None:
        """One more spare. Whoever waits may be cancelled; the hold is known all the same. Raises Failure."""
        failure = await self._see_through(self._placed(need))
        if failure is not None:
            raise failure

    async def _see_through(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which goes on where whoever waits for it is cancelled."""
        task = spawn(work, name="session hold")
        self._working.add(task)
        task.add_done_callback(self._working.discard)
        return await asyncio.shield(task)

    async def _worked(self) -> None:
        while self._working:
            await asyncio.wait(self._working)

    async def _placed(self, need: N) -> Failure | None:
        try:
            await self._hold(need)
        except Failure as failure:
            return failure
        return None

    async def _hold(self, need: N) -> None:
        gateway = self._payer.gateway
        principal = await self._payer.ask()
        found = self._found = self._find(principal)
        roomy: N = need.roomy()
        least, offer = self._offer(need, found), self._offer(roomy, found)
        asked = offer._replace(ceiling=offer.ceiling._replace(minimum_nanos=least.ceiling.nanos))
        gateway.in_flight += 1
        gateway.unsettled += 1
        try:
            hold = await gateway.holds.place(principal, asked)
        except BaseException:
            gateway.unsettled -= 1
            raise
        finally:
            gateway.in_flight -= 1
        is_roomy = hold.granted_nanos >= offer.ceiling.nanos
        self.spares.append(Item(offer if is_roomy else least, hold, roomy if is_roomy else need))

    async def _extend(self, item: Item[N], need: N) -> None:
        """Raises Failure."""
        found = (item.offer.model, item.offer.price, item.offer.routes)  # the hold pins its price
        roomy: N = need.roomy()
        least, offer = self._offer(need, found), self._offer(roomy, found)
        holds = self._payer.gateway.holds
        asking = holds.extend(item.hold, offer.ceiling.nanos, least.ceiling.nanos)
        if asking is None:
            raise LedgerUnavailable
        try:
            answer = await asyncio.shield(asking)
        except LedgerAway:
            raise LedgerUnavailable from None
        if answer.outcome is not Outcome.EXTENDED:
            raise holds.cut_off(answer.outcome)
        is_roomy = item.hold.granted_nanos >= offer.ceiling.nanos
        item.offer, item.need = (offer, roomy) if is_roomy else (least, need)

    def _unheld(self, need: N) -> Item[N]:
        """For what runs although nothing could be held: it is charged what free funds cover, when it has ended."""
        principal = self._payer.principal
        hold = Hold(new_id(), principal.wallet_id, principal.key_id, 0, 0, False, monotonic_seconds() + 86_400)
        return Item(self._offer(need, self._found or self._find(principal)), hold, need)

    def _counted(self, item: Item[N]) -> tuple[Offer, int]:
        """The offer whose `output_units` say what was relayed, and how many of them."""
        text = max(tokens_from_bytes(item.text_bytes), item.events if not item.audio_bytes else 0)
        if not item.audio_bytes:
            return item.offer, text
        request = item.offer.request
        estimated = {**request.extra_estimate, Meter.OUTPUT: text}
        units: dict[str, int] = {Meter.AUDIO_OUTPUT: 1}
        offer = item.offer._replace(request=request._replace(extra_estimate=estimated, output_units=units))
        return offer, reply_audio_tokens(item.audio_bytes, self._payer.reply_bytes_per_second)

    async def _settle(self, item: Item[N], ending: Ending, usage: Mapping[str, object] | None) -> Charge:
        offer, count = self._counted(item)
        route = self._payer.route
        assert route is not None, "nothing runs before there is an upstream"
        upstream = route.upstream
        seen = Seen(ending, usage, lambda: count, upstream.missing_usage, "", upstream.price_bp)
        metrics = self._payer.gateway.metrics
        try:
            charge = meter(offer, item.hold, seen)
        except Exception as error:
            metrics.crashes.inc()
            _log.exception("a charge could not be reckoned", exc_info=error, extra={"fields": {"hold": item.hold}})
            charge = estimate(offer, item.hold, 0, "meter_failed") if count else void("meter_failed")
        await self._resolve(item, charge)
        metrics.calls.labels(offer.endpoint.name, offer.model.name, ending.value, charge.basis).inc()
        return charge

    async def _resolve(self, item: Item[N], charge: Charge) -> None:
        await self._see_through(self._resolved(item, charge))

    async def _resolved(self, item: Item[N], charge: Charge) -> None:
        payer = self._payer
        upstream = None if payer.route is None else payer.route.upstream.name
        try:
            await payer.gateway.settler.timed(item.offer, item.hold, charge, upstream)
        finally:
            payer.gateway.unsettled -= 1
            payer.released.set()
