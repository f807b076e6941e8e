"""Step 5: from what was seen to what is charged. Pure: the outcome matrix of the README, and nothing else.

A reply with usage costs exactly that. Where usage is missing or impossible, or the reply was cut short, the call is
estimated from what was relayed, never above its hold. What never reached the upstream, or was refused by it, is void.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import NamedTuple

from gateway.core.catalogue import ONE_BP, Meter
from gateway.core.ceiling import largest, within_context
from gateway.core.money import round_nanos
from gateway.core.pricing import (
    DEFAULT_TIERS,
    STANDARD,
    CostOutOfRange,
    Quantities,
    Terms,
    Unpriced,
    cost_picos,
    is_tier_priced,
    priced_alternatives,
    without_alternatives,
)
from gateway.core.usage import InvalidUsage, Limits, Reading, proof_above
from gateway.endpoints.endpoint import Output
from gateway.request.admit import Offer
from gateway.request.hold import Hold

# In how many parts what was asked for is cut where even that is more than the hold.
_PARTS = 10_000
_BOUND_BY_REQUEST = (Meter.AUDIO_MILLISECONDS, Meter.AUDIO_INPUT, Meter.AUDIO_OUTPUT, Meter.IMAGE_OUTPUT)


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

    `count_output` gives the output relayed, estimated, in units of the request's `output_units`; it is only asked where
    usage does not say. `service_tier` is the tier that the reply names, which is the one that the upstream bills.
    """

    ending: Ending
    usage: Mapping[str, object] | None
    count_output: Callable[[], int]
    missing_usage: str = "estimate"
    service_tier: str = ""
    upstream_bp: int = ONE_BP


class Charge(NamedTuple):
    """Priced usage. `basis` is reported, estimated or none; a void has basis none and costs nothing."""

    is_void: bool
    basis: str
    reason: str | None
    cost_picos: int
    cost_nanos: int
    usage: dict[str, int | str]


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
            chosen = None if reading is None else _chosen(offer, reading)
            if chosen is not None:
                _refuse_impossible(offer, chosen)
                return _exact(offer, chosen, _terms(offer, seen), "reported", reason)
        except (InvalidUsage, Unpriced, CostOutOfRange):
            return _without_usage(offer, hold, seen, "usage_invalid")
    if seen.ending is not Ending.COMPLETED:
        # An upstream that broke, or a gateway that stopped or failed, before any output has sold nothing.
        if seen.ending is not Ending.CLIENT_GONE and not seen.count_output():
            return void(seen.ending.value)
        return estimate(offer, hold, seen.count_output(), seen.ending.value, _terms(offer, seen))
    return _without_usage(offer, hold, seen, "usage_missing")


def _refuse_impossible(offer: Offer, reading: Reading) -> None:
    """Raises InvalidUsage for more sound or images than can come of this request; no limit of the model bounds them."""
    if extra := offer.request.extra_max:
        for meter_ in _BOUND_BY_REQUEST:
            if meter_ in extra and reading.quantities.get(meter_, 0) > proof_above(extra[meter_]):
                raise InvalidUsage(f"{meter_} is several times what was asked for")


def _chosen(offer: Offer, reading: Reading) -> Reading | None:
    """The reading in the meters by which the model is priced; None where it counts only others of the alternatives.

    An upstream may count tokens of what is priced by the piece, or the other way about.
    """
    alternatives = offer.request.alternatives
    if not alternatives:
        return reading
    used = {meter_ for meter_, quantity in reading.quantities.items() if quantity}
    asked = used & frozenset().union(*alternatives)
    if not asked:
        return reading
    priced = [meters for meters in priced_alternatives(offer.price, alternatives) if meters & asked]
    if not priced:
        return None
    chosen = next((meters for meters in priced if asked <= meters), priced[0])
    return reading._replace(quantities=without_alternatives(reading.quantities, chosen, alternatives))


def estimate(offer: Offer, hold: Hold, output_count: int, reason: str, terms: Terms | None = None) -> Charge:
    """The charge for what was asked and `output_count` of what came, reckoned from text and never above the hold."""
    request = offer.request
    tokens_in = min(request.input_tokens_estimate, offer.ceiling.input_tokens_max)
    return _within_hold(offer, hold, tokens_in, request.extra_estimate, output_count, reason, terms)


def _without_usage(offer: Offer, hold: Hold, seen: Seen, reason: str) -> Charge:
    if seen.missing_usage == "free":
        return Charge(False, "estimated", reason, 0, 0, {})
    terms = _terms(offer, seen)
    if seen.missing_usage == "ceiling":
        request = offer.request
        extra = within_context(request.extra_max, offer.model.context_tokens_max * request.passes)
        if request.output is Output.MODEL:
            extra = {**extra, Meter.OUTPUT: offer.model.output_tokens_max * request.choices}
        tokens_out = hold.output_tokens_max * request.choices
        return _within_hold(offer, hold, offer.ceiling.input_tokens_max, extra, tokens_out, reason, terms)
    return estimate(offer, hold, seen.count_output(), reason, terms)


def _within_hold(
    offer: Offer, hold: Hold, tokens_in: int, extra: Quantities, output_count: int, reason: str, terms: Terms | None
) -> Charge:
    """The quantities are lowered rather than the cost, so that every charge can be re-derived from its usage."""
    request = offer.request
    alternatives = request.alternatives
    chosen = priced_alternatives(offer.price, alternatives)[0] if alternatives else None
    asked = terms or _terms(offer, None)

    def charge(fixed_parts: int, count: int) -> Charge:
        used = {meter_: quantity * fixed_parts // _PARTS for meter_, quantity in extra.items()}
        used[Meter.INPUT] = used.get(Meter.INPUT, 0) + tokens_in * fixed_parts // _PARTS
        for meter_, units in request.output_units.items():
            used[meter_] = used.get(meter_, 0) + units * count
        kept = used if chosen is None else without_alternatives(used, chosen, alternatives)
        reading = Reading({meter_: quantity for meter_, quantity in kept.items() if quantity})
        if reason == "usage_missing" and chosen is not None and chosen <= request.counted:
            return _exact(offer, reading, asked, "reported", None)
        return _exact(offer, reading, asked, "estimated", reason)

    whole = charge(_PARTS, output_count)
    if whole.cost_nanos <= hold.granted_nanos:
        return whole
    count = largest(output_count, lambda units: charge(_PARTS, units).cost_nanos <= hold.granted_nanos)
    if charge(_PARTS, count).cost_nanos <= hold.granted_nanos:
        return charge(_PARTS, count)
    # What was asked already costs more, where a bound of its extent is wrong: that is the product's loss.
    return charge(largest(_PARTS, lambda parts: charge(parts, 0).cost_nanos <= hold.granted_nanos), 0)


def _terms(offer: Offer, seen: Seen | None) -> Terms:
    """The tier that the reply names counts where it has a price, else the one that was asked for."""
    tier = offer.request.service_tier
    upstream_bp = ONE_BP
    if seen is not None:
        upstream_bp = seen.upstream_bp
        if seen.service_tier and is_tier_priced(offer.price, seen.service_tier):
            tier = seen.service_tier
    tier = "" if tier in DEFAULT_TIERS and tier not in offer.price.multipliers else tier
    return STANDARD if not tier and upstream_bp == ONE_BP else Terms(tier, upstream_bp)


def _exact(offer: Offer, reading: Reading, terms: Terms, basis: str, reason: str | None) -> Charge:
    rates = offer.price.rates
    quantities = reading.quantities
    reasoning = reading.reasoning_tokens
    if offer.request.fixed:
        quantities = {**quantities, **offer.request.fixed}
    if Meter.REQUESTS in rates:
        quantities = {**quantities, Meter.REQUESTS: 1}
    if reasoning and Meter.REASONING_OUTPUT in rates:
        quantities = {**quantities, Meter.OUTPUT: quantities.get(Meter.OUTPUT, 0) - reasoning}
        quantities[Meter.REASONING_OUTPUT] = reasoning
        reasoning = 0
    picos = cost_picos(offer.price, quantities, terms)
    usage: dict[str, int | str] = dict(quantities)
    if reasoning:
        usage["reasoning"] = reasoning
    if terms is not STANDARD:
        if terms.service_tier:
            usage["service_tier"] = terms.service_tier
        if terms.upstream_bp != ONE_BP:
            usage["upstream_bp"] = terms.upstream_bp
    return Charge(False, basis, reason, picos, round_nanos(picos), usage)


def _limits(offer: Offer) -> Limits:
    """What the model can truthfully report; the client's cap is the upstream's to keep, the model's limits are not."""
    request = offer.request
    return Limits(offer.model.context_tokens_max * request.passes, offer.model.output_tokens_max * request.choices)
