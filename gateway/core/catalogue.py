"""What a call may cost: models, and versioned prices in pico-units per unit of use.

A meter is one dimension of use. A price has a rate per meter; a meter without a rate is *unpriced*, and a call that
needs it is refused before anything is sent. A rate of 0 is a rate.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from types import MappingProxyType

from gateway.core.money import scale_exactly


class Meter(StrEnum):
    """The dimensions of use, disjoint: `input` counts uncached text tokens only, and so on."""

    INPUT = "input"
    CACHED_INPUT = "cached_input"
    CACHE_WRITE = "cache_write"
    OUTPUT = "output"


# What a meter costs where its own rate is absent. Only ever a rate that is at least as general.
FALLBACK: Mapping[Meter, Meter] = MappingProxyType({Meter.CACHED_INPUT: Meter.INPUT, Meter.CACHE_WRITE: Meter.INPUT})

# A rate above one whole unit (10^12 picos) per token is a slip of the decimal point, not a price.
RATE_PICOS_MAX = 10**12

Rates = Mapping[Meter, int]


@dataclass(frozen=True, slots=True)
class Tier:
    """Rates that price the *whole* request once its input tokens exceed `above_input_tokens`."""

    above_input_tokens: int
    rates: Rates


@dataclass(frozen=True, slots=True)
class Price:
    """One version of one model's price. `tiers` ascend by `above_input_tokens`."""

    price_id: int
    model: str
    effective_from: datetime
    source: str
    rates: Rates
    tiers: tuple[Tier, ...] = ()


@dataclass(frozen=True, slots=True)
class Model:
    """What the gateway must know of a model to bound a call. Limits are in tokens."""

    name: str
    context_tokens_max: int
    output_tokens_max: int
    hidden_reasoning: bool = False
    owned_by: str = "upstream"
    created_at: datetime | None = field(default=None, compare=False)


class InvalidPrice(ValueError):
    """A price from outside is unusable; the message says which field and why."""


def rate_per_million(amount: Decimal) -> int:
    """Picos per unit of a price per million units: 2.50 is 2,500,000. Raises InvalidPrice where that is not exact."""
    if not amount.is_finite() or amount.is_signed() or amount.adjusted() > 6:
        raise InvalidPrice(f"{amount} per million is out of range")
    picos = scale_exactly(amount, 6)
    if picos is None:
        raise InvalidPrice(f"{amount} per million has more than six decimal places")
    if picos > RATE_PICOS_MAX:
        raise InvalidPrice(f"{amount} per million is out of range")
    return picos


def rates_from_json(document: object) -> dict[Meter, int]:
    """Rates from `{"input": 2500000, …}` (picos per unit). Raises InvalidPrice."""
    if not isinstance(document, dict) or not document:
        raise InvalidPrice("rates: must be an object with at least one meter")
    rates: dict[Meter, int] = {}
    for name, picos in document.items():
        if name not in Meter._value2member_map_:
            raise InvalidPrice(f"rates: {name!r} is not a meter ({', '.join(Meter)})")
        if type(picos) is not int or not 0 <= picos <= RATE_PICOS_MAX:
            raise InvalidPrice(f"rates.{name}: must be a whole number of picos from 0 to {RATE_PICOS_MAX}")
        rates[Meter(name)] = picos
    return rates


def tiers_from_json(document: object) -> tuple[Tier, ...]:
    """Tiers from `[{"above_input_tokens": 272000, "rates": {…}}]`, ascending. Raises InvalidPrice."""
    if not isinstance(document, list):
        raise InvalidPrice("tiers: must be a list")
    tiers: list[Tier] = []
    for item in document:
        above = item.get("above_input_tokens") if isinstance(item, dict) else None
        if type(above) is not int or above <= (tiers[-1].above_input_tokens if tiers else 0):
            raise InvalidPrice("tiers: above_input_tokens must be whole, positive and ascending")
        tiers.append(Tier(above, rates_from_json(item.get("rates"))))
    return tuple(tiers)


def rates_to_json(rates: Rates) -> dict[str, int]:
    """The stored form of rates, meters in their order of definition."""
    return {str(meter): rates[meter] for meter in Meter if meter in rates}


def tiers_to_json(tiers: tuple[Tier, ...]) -> list[dict[str, object]]:
    """The stored form of tiers."""
    return [{"above_input_tokens": tier.above_input_tokens, "rates": rates_to_json(tier.rates)} for tier in tiers]
