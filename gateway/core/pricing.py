"""The one place where use is multiplied by a price."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from gateway.core.catalogue import (
    INPUT_METERS,
    ONE_BP,
    VARIED_METERS,
    Meter,
    Price,
    Rates,
    general_meter,
    is_tool_meter,
)
from gateway.core.money import COST_PICOS_MAX

Quantities = Mapping[str, int]

# What upstreams call the tier of service whose rates are the price.
DEFAULT_TIERS = frozenset({"", "auto", "default", "standard", "scale"})
# What a price calls work handed in by the batch. The endpoint decides that, never the word of a request or a reply:
# an upstream that does not know the word would do the work at the full price.
BATCH_TIER = "batch"

_NONE: Quantities = {}
# A bound counts units of the first; those units may turn out to be any of the others.
_DEARER: Mapping[str, tuple[str, ...]] = {
    Meter.INPUT: (Meter.CACHED_INPUT, Meter.CACHE_WRITE),
    Meter.CACHE_WRITE_12H: (Meter.INPUT, Meter.CACHED_INPUT, Meter.CACHE_WRITE),
    # Usage need not say which tokens were sound or images.
    Meter.AUDIO_INPUT: (Meter.CACHED_AUDIO_INPUT, Meter.INPUT, Meter.CACHED_INPUT, Meter.CACHE_WRITE),
    Meter.IMAGE_INPUT: (Meter.CACHED_IMAGE_INPUT, Meter.INPUT, Meter.CACHED_INPUT, Meter.CACHE_WRITE),
    Meter.OUTPUT: (Meter.REASONING_OUTPUT,),
}


class Unpriced(LookupError):
    """The price has no rate for a meter that was used, or none for a tier of service."""


class CostOutOfRange(ValueError):
    """The exact cost does not fit the ledger; the quantities cannot be real."""


class Terms(NamedTuple):
    """What multiplies every rate: the tier of service, and the upstream's uplift in ten-thousandths."""

    service_tier: str = ""
    upstream_bp: int = ONE_BP


STANDARD = Terms()


def is_tier_priced(price: Price, service_tier: str) -> bool:
    """Whether a call that names this tier of service has a price."""
    return service_tier in DEFAULT_TIERS or (service_tier in price.multipliers and service_tier != BATCH_TIER)


def multiplied(price: Price, rates: Rates, terms: Terms) -> Rates:
    """`rates` under `terms`, each rounded up to a whole pico. Raises Unpriced.

    The fees of hosted tools are the same in every tier of service, but an upstream's uplift is on them, too.
    """
    if terms is STANDARD or terms == STANDARD:
        return rates
    share = price.multipliers.get(terms.service_tier)
    if share is None:
        if terms.service_tier not in DEFAULT_TIERS:
            raise Unpriced(f"tier of service {terms.service_tier}")
        share = ONE_BP
    if share == terms.upstream_bp == ONE_BP:
        return rates
    return {
        meter: -(-rate * (ONE_BP if is_tool_meter(meter) else share) * terms.upstream_bp // (ONE_BP * ONE_BP))
        for meter, rate in rates.items()
    }


def rates_at(price: Price, input_tokens: int) -> Rates:
    """The rates that price a request of `input_tokens`; crossing a tier reprices all of it."""
    rates = price.rates
    for tier in price.tiers:
        if input_tokens > tier.above_input_tokens:
            rates = {**rates, **tier.rates}
    return rates


def rate_picos(rates: Rates, meter: str) -> int:
    """Picos per unit of `meter`, falling back to the more general meter. Raises Unpriced."""
    rate = rates.get(meter)
    while rate is None:
        general = general_meter(meter)
        if general is None:
            raise Unpriced(meter)
        meter = general
        rate = rates.get(meter)
    return rate


def is_priced(rates: Rates, meter: str) -> bool:
    """Whether a unit of `meter` has a price."""
    try:
        rate_picos(rates, meter)
    except Unpriced:
        return False
    return True


def cost_picos(price: Price, quantities: Quantities, terms: Terms = STANDARD) -> int:
    """The exact cost of `quantities` in picos. Raises Unpriced, CostOutOfRange."""
    rates = price.rates
    if price.tiers:
        rates = rates_at(price, _input_tokens(quantities))
    if terms is not STANDARD:
        rates = multiplied(price, rates, terms)
    total = 0
    for meter, quantity in quantities.items():
        if quantity:
            total += quantity * rate_picos(rates, meter)
    if not 0 <= total <= COST_PICOS_MAX:
        raise CostOutOfRange(total)
    return total


def _input_tokens(quantities: Quantities) -> int:
    return sum(quantities.get(meter, 0) for meter in INPUT_METERS)


def priced_alternatives(price: Price, alternatives: Sequence[frozenset[str]]) -> list[frozenset[str]]:
    """Those sets of meters of which every one has a price; all upstreams of a kind bill by one set or the other.

    Raises Unpriced where there are alternatives and the price has none of them.
    """
    if not alternatives:
        return []
    found = [meters for meters in alternatives if all(is_priced(price.rates, meter) for meter in meters)]
    if not found:
        raise Unpriced(min(alternatives[0]))
    return found


def without_alternatives(
    quantities: Quantities, chosen: frozenset[str], alternatives: Iterable[frozenset[str]]
) -> Quantities:
    """`quantities` but for the meters that belong to another alternative than the chosen one."""
    others = _others(chosen, tuple(alternatives))
    return {meter: quantity for meter, quantity in quantities.items() if meter not in others}


@lru_cache(maxsize=1_024)
def _others(chosen: frozenset[str], alternatives: tuple[frozenset[str], ...]) -> frozenset[str]:
    """The meters that belong to another alternative only: the same for most calls of an endpoint."""
    return frozenset[str]().union(*alternatives) - chosen


class DearestRates(NamedTuple):
    """The most that one token in and one token out can cost, in picos, and `fixed` for all that is not such a token.

    `output` is None where it has no rate.
    """

    input: int
    output: int | None
    fixed: int = 0

    def ceiling_picos(self, input_tokens_max: int, output_tokens_max: int) -> int:
        """The most that so many tokens can cost, in picos. Raises Unpriced, CostOutOfRange."""
        total = input_tokens_max * self.input + self.fixed
        if output_tokens_max:
            if self.output is None:
                raise Unpriced(Meter.OUTPUT)
            total += output_tokens_max * self.output
        if not 0 <= total <= COST_PICOS_MAX:
            raise CostOutOfRange(total)
        return total


def dearest_rates(
    price: Price,
    input_tokens_max: int,
    *,
    extra: Quantities = _NONE,
    outputs: Sequence[str] = (Meter.OUTPUT,),
    terms: Terms = STANDARD,
) -> DearestRates:
    """The dearest rates that a request of up to `input_tokens_max` of text can be priced at. Raises Unpriced.

    `extra` bounds what else it may use; `outputs` are the meters that its output may turn out to be. No cache discount
    is assumed, a cache write may cost more than plain input, and since a request may land in any tier that its bound
    reaches, the dearest of them counts.
    """
    dearest = _dearest(multiplied(price, price.rates, terms), input_tokens_max, extra, outputs)
    if price.tiers:
        reach = input_tokens_max + _input_tokens(extra)
        for tier in price.tiers:
            if reach > tier.above_input_tokens:
                rates = multiplied(price, rates_at(price, tier.above_input_tokens + 1), terms)
                other = _dearest(rates, input_tokens_max, extra, outputs)
                both = [rate for rate in (dearest.output, other.output) if rate is not None]
                dearest = DearestRates(
                    max(dearest.input, other.input), max(both, default=None), max(dearest.fixed, other.fixed)
                )
    return dearest


def _dearest(rates: Rates, input_tokens_max: int, extra: Quantities, outputs: Sequence[str]) -> DearestRates:
    plain = rates.get(Meter.INPUT)
    if plain is None:
        if input_tokens_max:
            raise Unpriced(Meter.INPUT)
        into = 0
    else:
        into = max(plain, rates.get(Meter.CACHED_INPUT, 0), rates.get(Meter.CACHE_WRITE, 0))
    out = rates.get(Meter.OUTPUT)
    if out is not None:
        out = max(out, rates.get(Meter.REASONING_OUTPUT, 0))
    for meter in outputs:
        if meter != Meter.OUTPUT:
            out = max(out or 0, dearest_rate(rates, meter))
    fixed = sum(quantity * dearest_rate(rates, meter) for meter, quantity in extra.items() if quantity) if extra else 0
    requests = rates.get(Meter.REQUESTS)
    return DearestRates(into, out, fixed + requests if requests else fixed)


def dearest_rate(rates: Rates, meter: str) -> int:
    """The most that a unit bounded as `meter` can cost, whatever it turns out to be. Raises Unpriced."""
    candidates = [rate for name in _DEARER.get(meter, ()) if (rate := rates.get(name)) is not None]
    if meter.partition("/")[0] in VARIED_METERS:
        variants = [rate for name, rate in rates.items() if name.startswith(f"{meter}/")]
        if variants and meter not in rates:
            return max(variants)
        candidates += variants
    return max((rate_picos(rates, meter), *candidates))


def ceiling_picos(price: Price, input_tokens_max: int, output_tokens_max: int) -> int:
    """The most that up to `input_tokens_max` in and `output_tokens_max` out can cost, in picos.

    Raises Unpriced, CostOutOfRange.
    """
    return dearest_rates(price, input_tokens_max).ceiling_picos(input_tokens_max, output_tokens_max)
