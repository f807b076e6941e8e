"""The one place where use is multiplied by a price."""

from collections.abc import Mapping

from gateway.core.catalogue import FALLBACK, Meter, Price, Rates
from gateway.core.money import COST_PICOS_MAX

Quantities = Mapping[Meter, int]

_INPUT_METERS = (Meter.INPUT, Meter.CACHED_INPUT, Meter.CACHE_WRITE)


class Unpriced(LookupError):
    """The price has no rate for a meter that was used."""


class CostOutOfRange(ValueError):
    """The exact cost does not fit the ledger; the quantities cannot be real."""


def rates_at(price: Price, input_tokens: int) -> Rates:
    """The rates that price a request of `input_tokens`; crossing a tier reprices all of it."""
    rates = price.rates
    for tier in price.tiers:
        if input_tokens > tier.above_input_tokens:
            rates = {**rates, **tier.rates}
    return rates


def rate_picos(rates: Rates, meter: Meter) -> int:
    """Picos per unit of `meter`, falling back to the more general meter. Raises Unpriced."""
    rate = rates.get(meter)
    if rate is None:
        general = FALLBACK.get(meter)
        if general is None or (rate := rates.get(general)) is None:
            raise Unpriced(meter)
    return rate


def cost_picos(price: Price, quantities: Quantities) -> int:
    """The exact cost of `quantities` in picos. Raises Unpriced, CostOutOfRange."""
    rates = price.rates
    if price.tiers:
        rates = rates_at(price, sum(quantities.get(meter, 0) for meter in _INPUT_METERS))
    total = 0
    for meter, quantity in quantities.items():
        if quantity:
            total += quantity * rate_picos(rates, meter)
    if not 0 <= total <= COST_PICOS_MAX:
        raise CostOutOfRange(total)
    return total


def ceiling_picos(price: Price, input_tokens_max: int, output_tokens_max: int) -> int:
    """The most that up to `input_tokens_max` in and `output_tokens_max` out can cost, in picos.

    No cache discount is assumed, a cache write may cost more than plain input, and since a request may land in any
    tier that its bound reaches, the dearest of them counts.
    """
    dearest_input = dearest_output = 0
    reachable = [0, *(tier.above_input_tokens + 1 for tier in price.tiers)]
    for input_tokens in reachable:
        if input_tokens > input_tokens_max:
            break
        rates = rates_at(price, input_tokens)
        dearest_input = max(dearest_input, *(rate_picos(rates, meter) for meter in _INPUT_METERS))
        dearest_output = max(dearest_output, rate_picos(rates, Meter.OUTPUT) if output_tokens_max else 0)
    total = input_tokens_max * dearest_input + output_tokens_max * dearest_output
    if not 0 <= total <= COST_PICOS_MAX:
        raise CostOutOfRange(total)
    return total
