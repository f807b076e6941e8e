"""The one place where use is multiplied by a price."""

from collections.abc import Mapping
from typing import NamedTuple

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


class DearestRates(NamedTuple):
    """The most that one token in and one token out can cost, in picos. `output` is None where it has no rate."""

    input: int
    output: int | None

    def ceiling_picos(self, input_tokens_max: int, output_tokens_max: int) -> int:
        """The most that so many tokens can cost, in picos. Raises Unpriced, CostOutOfRange."""
        total = input_tokens_max * self.input
        if output_tokens_max:
            if self.output is None:
                raise Unpriced(Meter.OUTPUT)
            total += output_tokens_max * self.output
        if not 0 <= total <= COST_PICOS_MAX:
            raise CostOutOfRange(total)
        return total


def dearest_rates(price: Price, input_tokens_max: int) -> DearestRates:
    """The dearest rates that a request of up to `input_tokens_max` can be priced at. Raises Unpriced.

    No cache discount is assumed, a cache write may cost more than plain input, and since a request may land in any
    tier that its bound reaches, the dearest of them counts.
    """
    dearest = _dearest(price.rates)
    for tier in price.tiers:
        if input_tokens_max > tier.above_input_tokens:
            other = _dearest(rates_at(price, tier.above_input_tokens + 1))
            outputs = [rate for rate in (dearest.output, other.output) if rate is not None]
            dearest = DearestRates(max(dearest.input, other.input), max(outputs, default=None))
    return dearest


def _dearest(rates: Rates) -> DearestRates:
    plain = rates.get(Meter.INPUT)
    if plain is None:
        raise Unpriced(Meter.INPUT)
    cached, written = rates.get(Meter.CACHED_INPUT, plain), rates.get(Meter.CACHE_WRITE, plain)
    return DearestRates(max(plain, cached, written), rates.get(Meter.OUTPUT))


def ceiling_picos(price: Price, input_tokens_max: int, output_tokens_max: int) -> int:
    """The most that up to `input_tokens_max` in and `output_tokens_max` out can cost, in picos.

    Raises Unpriced, CostOutOfRange.
    """
    return dearest_rates(price, input_tokens_max).ceiling_picos(input_tokens_max, output_tokens_max)
