"""Step 3: set the money aside. Nothing goes upstream before this has said yes."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import orjson

from gateway.clock import monotonic_seconds, new_id
from gateway.core.money import format_nanos
from gateway.db.lanes import Answer, Lane, LaneFull, Operation, OperationRefused, Outcome
from gateway.db.pool import LedgerAway
from gateway.errors import Failure, InsufficientFunds, LedgerUnavailable, Overloaded, WalletSuspended
from gateway.metrics import Metrics
from gateway.request.admit import Offer
from gateway.request.authenticate import Principal


@dataclass(slots=True)
class Hold:
    """An open hold. `output_tokens_max` is the cap per choice: the call's own, or what the granted nanos cover.

    A hold that grows begins with less than its cap needs. `holds` is then where it grows, and `granted_nanos` is what
    it has grown to. One that `is_none` stands for no money: its id is only the request's.
    """

    hold_id: str
    wallet_id: str
    key_id: str
    granted_nanos: int
    output_tokens_max: int
    is_lowered: bool
    renew_at_seconds: float
    holds: "Holds | None" = None
    is_none: bool = False


class Holds:
    """Places holds through the lane, renews those of long calls and extends those that grow."""

    def __init__(self, lane: Lane, metrics: Metrics, *, valid_seconds: int, top_up_url: str | None) -> None:
        self._lane = lane
        self._metrics = metrics
        self._valid_seconds = valid_seconds
        self._top_up_url = top_up_url
        self._decisions = {outcome: metrics.hold_decisions.labels(outcome) for outcome in Outcome}
        self._extensions = {outcome: metrics.hold_extensions.labels(outcome) for outcome in Outcome}
        # False while the journal cannot take a settle: no new money is put at risk.
        self.usable: Callable[[], bool] = lambda: True

    async def place(self, principal: Principal, offer: Offer, hold_id: str | None = None) -> Hold:
        """Place a hold, with this id if one is given.

        Raises InsufficientFunds, WalletSuspended, LedgerUnavailable, Overloaded.
        """
        if self._lane.away or not self.usable():
            raise LedgerUnavailable
        began = monotonic_seconds()
        hold_id = hold_id or new_id()
        answer = await self._ask(_operation(principal, offer, hold_id, self._valid_seconds))
        self._metrics.hold_seconds.observe(monotonic_seconds() - began)
        self._decisions[answer.outcome].inc()
        if answer.outcome is not Outcome.HELD:
            raise self._refused(offer, answer)
        output_tokens_max = offer.ceiling.output_tokens_max
        is_lowered = answer.amount_nanos < offer.ceiling.first_nanos
        if is_lowered:
            output_tokens_max = offer.ceiling.affordable_output_tokens(answer.amount_nanos)
        return Hold(
            hold_id,
            principal.wallet_id,
            principal.key_id,
            answer.amount_nanos,
            output_tokens_max,
            is_lowered,
            monotonic_seconds() + self._valid_seconds / 2,
            None if is_lowered or offer.ceiling.slice is None else self,
        )

    def _refused(self, offer: Offer, answer: Answer) -> Failure:
        if answer.outcome is Outcome.INSUFFICIENT_FUNDS:
            return self._insufficient(offer, answer)
        if answer.outcome is Outcome.WALLET_SUSPENDED:
            return WalletSuspended()
        # Such as hold_out_of_range, where this machine's clock is days off. Not an assert: this guards money.
        self._metrics.crashes.inc()
        return LedgerUnavailable(f"The ledger refused the hold: {answer.outcome}.")

    async def _ask(self, operation: Operation) -> Answer:
        try:
            return await self._lane.submit(operation)
        except LaneFull:
            raise Overloaded from None
        except LedgerAway:
            raise LedgerUnavailable from None
        except OperationRefused as error:
            self._metrics.crashes.inc()
            raise LedgerUnavailable from error

    def renew(self, hold: Hold, *, cost_picos: int, cost_nanos: int, usage: Mapping[str, int | str]) -> None:
        """Checkpoint what the call has cost so far and extend its validity. Nobody waits: a lost one is tried again
        at the next half time, and the sweep acts only at twice the validity."""
        hold.renew_at_seconds = monotonic_seconds() + self._valid_seconds / 2
        document = orjson.dumps(
            {
                "op": "checkpoint",
                "hold": hold.hold_id,
                "cost": cost_nanos,
                "picos": cost_picos,
                "usage": usage,
                "seconds": self._valid_seconds,
            }
        )
        try:
            self._lane.submit(Operation(hold.wallet_id, hold.hold_id, document))
        except LaneFull:
            self._metrics.lane_failures.labels("checkpoint_dropped").inc()

    def extend(self, hold: Hold, ceiling_nanos: int, minimum_nanos: int) -> "asyncio.Future[Answer] | None":
        """Ask for `hold` to cover `ceiling_nanos` in all, or what there is down to `minimum_nanos`; None if nobody can
        be asked now. `hold.granted_nanos` is up to date before anything else hears of the answer."""
        if self._lane.away or not self.usable():
            self._metrics.hold_extensions.labels("unanswered").inc()
            return None
        document = orjson.dumps(
            {
                "op": "extend",
                "hold": hold.hold_id,
                "ceiling": ceiling_nanos,
                "minimum": minimum_nanos,
                "seconds": self._valid_seconds,
            }
        )
        try:
            asking = self._lane.submit(Operation(hold.wallet_id, hold.hold_id, document))
        except LaneFull:
            self._metrics.hold_extensions.labels("unanswered").inc()
            return None
        asking.add_done_callback(partial(self._extended, hold))
        return asking

    def _extended(self, hold: Hold, asking: "asyncio.Future[Answer]") -> None:
        error = asking.exception()
        if error is not None:
            self._metrics.hold_extensions.labels("unanswered").inc()
            if isinstance(error, OperationRefused):
                self._metrics.crashes.inc()
            return
        answer = asking.result()
        self._extensions[answer.outcome].inc()
        if answer.outcome is Outcome.EXTENDED:
            hold.granted_nanos = max(hold.granted_nanos, answer.amount_nanos)

    def cut_off(self, outcome: Outcome | None) -> Failure:
        """Why a stream ends at its hold: the refusal of the last extension, or none where there was no answer."""
        if outcome is Outcome.INSUFFICIENT_FUNDS:
            message, details = "The wallet's funds were used up, and the reply was ended.", {}
            if self._top_up_url is not None:
                message, details = f"{message} Top up at {self._top_up_url}.", {"top_up_url": self._top_up_url}
            return InsufficientFunds(message, code="cut_off", details=details)
        if outcome is Outcome.WALLET_SUSPENDED:
            return WalletSuspended("The wallet was suspended, and the reply was ended.", code="cut_off")
        message = "The ledger could not be asked for more than is held, and the reply was ended."
        return LedgerUnavailable(message, code="cut_off")

    def _insufficient(self, offer: Offer, answer: Answer) -> InsufficientFunds:
        available = max(answer.available_nanos, 0)
        affordable = offer.ceiling.affordable_output_tokens(available)
        required = format_nanos(offer.ceiling.minimum_nanos)
        message = (
            f"The wallet has {format_nanos(available)} available, and this call may cost {required}. "
            f"It covers {affordable} output tokens: lower max_completion_tokens, or top up."
        )
        details: dict[str, object] = {
            "required": required,
            "available": format_nanos(available),
            "affordable_output_tokens": affordable,
        }
        if self._top_up_url is not None:
            message = message.removesuffix(".") + f" at {self._top_up_url}."
            details["top_up_url"] = self._top_up_url
        refusal = InsufficientFunds(message, details=details)
        refusal.available_nanos = available
        return refusal


def hold_fields(principal: Principal, offer: Offer, hold_id: str) -> dict[str, object]:
    """What every operation of wallet_apply says that may make a hold's first row."""
    return {"hold": hold_id, "key": principal.key_id, "price": offer.price.price_id, "endpoint": offer.endpoint.name}


def _operation(principal: Principal, offer: Offer, hold_id: str, valid_seconds: int) -> Operation:
    shared = hold_fields(principal, offer, hold_id)
    document = orjson.dumps(
        {
            "op": "hold",
            **shared,
            "ceiling": offer.ceiling.first_nanos,
            "minimum": offer.ceiling.minimum_nanos,
            "seconds": valid_seconds,
        }
    )
    undo = orjson.dumps({"op": "void", **shared, "reason": "abandoned"})
    return Operation(principal.wallet_id, hold_id, document, undo=undo)
