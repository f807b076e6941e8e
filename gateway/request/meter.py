"""Step 5: from what was seen to what is charged. Pure: the outcome matrix of the README, and nothing else.

A reply with usage costs exactly that. Where usage is missing or impossible, or the reply was cut short, the call is
estimated from what was relayed, never above its hold. What never reached the upstream, or was refused by it, is void.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import NamedTuple

from gateway.core.catalogue import Meter, Price
from gateway.core.ceiling import affordable_output_tokens
from gateway.core.money import round_nanos
from gateway.core.pricing import CostOutOfRange, Unpriced, cost_picos
from gateway.core.usage import InvalidUsage, Limits, Reading
from gateway.request.admit import Offer
from gateway.request.hold import Hold


class Ending(StrEnum):
    """How the relay ended: one row of the outcome matrix each."""

    COMPLETED = "completed"
    REFUSED = "refused"
    BROKE = "upstream_broke"
    CLIENT_GONE = "client_gone"
    CUT_OFF = "cut_off"
    STOPPED = "gateway_stopped"
    CRASHED = "gateway_failed"


class Seen(NamedTuple):
    """What the relay saw of a reply. `usage` is the raw object; `missing_usage` the upstream's policy.

    `count_output` gives the output tokens relayed, estimated; it is only asked where usage does not say.
    """

    ending: Ending
    usage: Mapping[str, object] | None
    count_output: Callable[[], int]
    missing_usage: str = "estimate"


class Charge(NamedTuple):
    """Priced usage. `basis` is reported, estimated or none; a void has basis none and costs nothing."""

    is_void: bool
    basis: str
    reason: str | None
    cost_picos: int
    cost_nanos: int
    usage: dict[str, int]


def void(reason: str) -> Charge:
    """Nothing to charge."""
    return Charge(True, "none", reason, 0, 0, {})


def meter(offer: Offer, hold: Hold, seen: Seen) -> Charge:
    """The charge for what was seen."""
    if seen.ending is Ending.REFUSED:
        return void("upstream_refused")
    reason: str | None = None if seen.ending is Ending.COMPLETED else seen.ending.value
    if seen.usage is not None:
        try:
            reading = offer.endpoint.read_usage(seen.usage, _limits(offer))
            if reading is not None:
                return _exact(offer.price, reading, "reported", reason)
        except (InvalidUsage, Unpriced, CostOutOfRange):
            return _without_usage(offer, hold, seen, "usage_invalid")
    if seen.ending is not Ending.COMPLETED:
        # An upstream that broke, or a gateway that stopped or failed, before any output has sold nothing.
        if seen.ending is not Ending.CLIENT_GONE and not seen.count_output():
            return void(seen.ending.value)
        return estimate(offer, hold, seen.count_output(), seen.ending.value)
    return _without_usage(offer, hold, seen, "usage_missing")


def estimate(offer: Offer, hold: Hold, output_tokens: int, reason: str) -> Charge:
    """The charge for the prompt and `output_tokens`, reckoned from text and never above the hold."""
    tokens_in = min(offer.request.input_tokens_estimate, offer.ceiling.input_tokens_max)
    return _within_hold(offer, hold, tokens_in, output_tokens, reason)


def _without_usage(offer: Offer, hold: Hold, seen: Seen, reason: str) -> Charge:
    if seen.missing_usage == "free":
        return Charge(False, "estimated", reason, 0, 0, {})
    if seen.missing_usage == "ceiling":
        tokens_out = hold.output_tokens_max * offer.request.choices
        return _within_hold(offer, hold, offer.ceiling.input_tokens_max, tokens_out, reason)
    return estimate(offer, hold, seen.count_output(), reason)


def _within_hold(offer: Offer, hold: Hold, tokens_in: int, tokens_out: int, reason: str) -> Charge:
    charge = _exact(offer.price, _reading(tokens_in, tokens_out), "estimated", reason)
    if charge.cost_nanos <= hold.granted_nanos:
        return charge
    # The quantities are lowered rather than the cost, so that every charge can be re-derived from its usage.
    tokens_out = min(tokens_out, affordable_output_tokens(offer.price, tokens_in, 1, hold.granted_nanos, tokens_out))
    return _exact(offer.price, _reading(tokens_in, tokens_out), "estimated", reason)


def _reading(tokens_in: int, tokens_out: int) -> Reading:
    counts = {Meter.INPUT: tokens_in, Meter.OUTPUT: tokens_out}
    return Reading({meter_: count for meter_, count in counts.items() if count})


def _exact(price: Price, reading: Reading, basis: str, reason: str | None) -> Charge:
    picos = cost_picos(price, reading.quantities)
    usage = {str(meter_): count for meter_, count in reading.quantities.items()}
    if reading.reasoning_tokens:
        usage["reasoning"] = reading.reasoning_tokens
    return Charge(False, basis, reason, picos, round_nanos(picos), usage)


def _limits(offer: Offer) -> Limits:
    """What the model can truthfully report; the client's cap is the upstream's to keep, the model's limits are not."""
    return Limits(offer.model.context_tokens_max, offer.model.output_tokens_max * offer.request.choices)
