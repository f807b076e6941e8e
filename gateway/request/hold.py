"""Step 3: set the money aside. Nothing goes upstream before this has said yes."""

from dataclasses import dataclass

import orjson

from gateway.clock import monotonic_seconds, new_id
from gateway.core.ceiling import affordable_output_tokens
from gateway.core.money import format_nanos
from gateway.db.lanes import Answer, Lane, LaneFull, Operation, OperationRefused, Outcome
from gateway.db.pool import LedgerAway
from gateway.errors import InsufficientFunds, LedgerUnavailable, Overloaded, WalletSuspended
from gateway.metrics import Metrics
from gateway.request.admit import Offer
from gateway.request.authenticate import Principal


@dataclass(slots=True)
class Hold:
    """An open hold. `output_tokens_max` is the cap per choice that the granted nanos cover."""

    hold_id: str
    wallet_id: str
    key_id: str
    granted_nanos: int
    output_tokens_max: int
    is_lowered: bool
    renew_at_seconds: float


class Holds:
    """Places holds through the lane, and renews those of long calls."""

    def __init__(self, lane: Lane, metrics: Metrics, *, valid_seconds: int, top_up_url: str | None) -> None:
        self._lane = lane
        self._metrics = metrics
        self._valid_seconds = valid_seconds
        self._top_up_url = top_up_url
        self._decisions = {outcome: metrics.hold_decisions.labels(outcome) for outcome in Outcome}
        self.usable = True  # False while the journal cannot take a settle: no new money is put at risk

    async def place(self, principal: Principal, offer: Offer) -> Hold:
        """Raises InsufficientFunds, WalletSuspended, LedgerUnavailable, Overloaded."""
        if self._lane.away or not self.usable:
            raise LedgerUnavailable
        began = monotonic_seconds()
        hold_id = new_id()
        answer = await self._ask(_operation(principal, offer, hold_id, self._valid_seconds))
        self._metrics.hold_seconds.observe(monotonic_seconds() - began)
        self._decisions[answer.outcome].inc()
        if answer.outcome is Outcome.INSUFFICIENT_FUNDS:
            raise self._insufficient(offer, answer)
        if answer.outcome is Outcome.WALLET_SUSPENDED:
            raise WalletSuspended
        if answer.outcome is not Outcome.HELD:
            # Such as hold_out_of_range, where this machine's clock is days off. Not an assert: this guards money.
            self._metrics.crashes.inc()
            raise LedgerUnavailable(f"The ledger refused the hold: {answer.outcome}.")
        output_tokens_max = offer.ceiling.output_tokens_max
        is_lowered = answer.amount_nanos < offer.ceiling.nanos
        if is_lowered:
            output_tokens_max = _affordable(offer, answer.amount_nanos)
        return Hold(
            hold_id,
            principal.wallet_id,
            principal.key_id,
            answer.amount_nanos,
            output_tokens_max,
            is_lowered,
            monotonic_seconds() + self._valid_seconds / 2,
        )

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

    def renew(self, hold: Hold, *, cost_picos: int, cost_nanos: int, usage: dict[str, int]) -> None:
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

    def _insufficient(self, offer: Offer, answer: Answer) -> InsufficientFunds:
        available = max(answer.available_nanos, 0)
        affordable = _affordable(offer, available)
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
        return InsufficientFunds(message, details=details)


def _affordable(offer: Offer, nanos: int) -> int:
    bounds = offer.ceiling
    return affordable_output_tokens(
        offer.price, bounds.input_tokens_max, offer.request.choices, nanos, bounds.output_tokens_max
    )


def _operation(principal: Principal, offer: Offer, hold_id: str, valid_seconds: int) -> Operation:
    shared = {"hold": hold_id, "key": principal.key_id, "price": offer.price.price_id, "endpoint": offer.endpoint.name}
    document = orjson.dumps(
        {
            "op": "hold",
            **shared,
            "ceiling": offer.ceiling.nanos,
            "minimum": offer.ceiling.minimum_nanos,
            "seconds": valid_seconds,
        }
    )
    undo = orjson.dumps({"op": "void", **shared, "reason": "abandoned"})
    return Operation(principal.wallet_id, hold_id, document, undo=undo)
