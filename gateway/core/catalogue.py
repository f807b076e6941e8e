"""What a call may cost: models, and versioned prices in pico-units per unit of use.

A meter is one dimension of use. A price has a rate per meter; a meter without a rate is *unpriced*, and a call that
needs it is refused before anything is sent. A rate of 0 is a rate.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Final

from gateway.core.money import scale_exactly


class Meter:
    """The dimensions of use, disjoint: `input` counts uncached text tokens only, and so on.

    Images and containers may have variants, `images/high/1024x1024` or `containers/4g`; the general meter prices those
    without a rate of their own. Plain strings, for they are looked up all along a call's way, and a member of an enum
    takes four times as long.
    """

    INPUT: Final = "input"
    CACHED_INPUT: Final = "cached_input"
    CACHE_WRITE: Final = "cache_write"
    CACHE_WRITE_12H: Final = "cache_write_12h"
    AUDIO_INPUT: Final = "audio_input"
    CACHED_AUDIO_INPUT: Final = "cached_audio_input"
    IMAGE_INPUT: Final = "image_input"
    CACHED_IMAGE_INPUT: Final = "cached_image_input"
    OUTPUT: Final = "output"
    REASONING_OUTPUT: Final = "reasoning_output"
    AUDIO_OUTPUT: Final = "audio_output"
    IMAGE_OUTPUT: Final = "image_output"
    IMAGES: Final = "images"
    CHARACTERS: Final = "characters"
    AUDIO_MILLISECONDS: Final = "audio_milliseconds"
    REQUESTS: Final = "requests"
    WEB_SEARCHES: Final = "web_searches"
    FILE_SEARCHES: Final = "file_searches"
    CONTAINERS: Final = "containers"


METERS: tuple[str, ...] = tuple(value for name, value in vars(Meter).items() if name.isupper())


# What a meter costs where its own rate is absent. Only ever a rate that is at least as general. Audio is never priced
# as text, nor an image that was made, nor a cache lifetime that costs more than another.
FALLBACK: Mapping[str, str] = MappingProxyType(
    {
        Meter.CACHED_INPUT: Meter.INPUT,
        Meter.CACHE_WRITE: Meter.INPUT,
        Meter.CACHED_AUDIO_INPUT: Meter.AUDIO_INPUT,
        Meter.IMAGE_INPUT: Meter.INPUT,
        Meter.CACHED_IMAGE_INPUT: Meter.IMAGE_INPUT,
        Meter.REASONING_OUTPUT: Meter.OUTPUT,
    }
)
# Tokens of these decide which tier prices a request.
INPUT_METERS = (
    Meter.INPUT,
    Meter.CACHED_INPUT,
    Meter.CACHE_WRITE,
    Meter.CACHE_WRITE_12H,
    Meter.AUDIO_INPUT,
    Meter.CACHED_AUDIO_INPUT,
    Meter.IMAGE_INPUT,
    Meter.CACHED_IMAGE_INPUT,
)
# The meters that have variants, each named by what the upstream calls quality and size.
VARIED_METERS = frozenset({Meter.IMAGES, Meter.CONTAINERS})
_VARIANT = re.compile(r"(images|containers)(/[a-z0-9][a-z0-9_.-]{0,23}){1,2}")

# A rate above one whole unit (10^12 picos) per token is a slip of the decimal point, not a price; other units, such
# as an image, may cost a thousand.
RATE_PICOS_MAX = 10**12
UNIT_RATE_PICOS_MAX = 10**15
_UNIT_METERS = frozenset({Meter.IMAGES, Meter.REQUESTS, Meter.WEB_SEARCHES, Meter.FILE_SEARCHES, Meter.CONTAINERS})
# What the upstream's own tools cost by the call. The price data leaves them as they are in every tier of service.
_TOOL_METERS = frozenset({Meter.WEB_SEARCHES, Meter.FILE_SEARCHES, Meter.CONTAINERS})
# One, in the ten-thousandths in which multipliers are given.
ONE_BP = 10_000
MULTIPLIER_BP_MAX = 100 * ONE_BP
MULTIPLIERS_MAX = 16
_TIER_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")

# Keys are meters or variants of one.
Rates = Mapping[str, int]


def is_meter(name: str) -> bool:
    """Whether `name` is a meter, or a variant of one."""
    return name in METERS or _VARIANT.fullmatch(name) is not None


def general_meter(name: str) -> str | None:
    """The meter whose rate prices `name` where it has none of its own."""
    if "/" in name:
        return name.rpartition("/")[0]
    return FALLBACK.get(name)


def is_tool_meter(name: str) -> bool:
    """Whether `name` is the fee of a hosted tool, or a variant of one."""
    return name.partition("/")[0] in _TOOL_METERS


def rate_picos_max(name: str) -> int:
    """The most that a unit of this meter may cost."""
    return UNIT_RATE_PICOS_MAX if name.partition("/")[0] in _UNIT_METERS else RATE_PICOS_MAX


@dataclass(frozen=True, slots=True)
class Tier:
    """Rates that price the *whole* request once its input tokens exceed `above_input_tokens`."""

    above_input_tokens: int
    rates: Rates


@dataclass(frozen=True, slots=True)
class Price:
    """One version of one model's price. `tiers` ascend by `above_input_tokens`.

    `multipliers` are what other tiers of service than the default one cost, in ten-thousandths of the rates.
    """

    price_id: int
    model: str
    effective_from: datetime
    source: str
    rates: Rates
    tiers: tuple[Tier, ...] = ()
    multipliers: Mapping[str, int] = field(default_factory=dict)


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


def rates_from_json(document: object) -> dict[str, int]:
    """Rates from `{"input": 2500000, …}` (picos per unit). Raises InvalidPrice."""
    if not isinstance(document, dict) or not document:
        raise InvalidPrice("rates: must be an object with at least one meter")
    rates: dict[str, int] = {}
    for name, picos in document.items():
        if not is_meter(name):
            raise InvalidPrice(f"rates: {name!r} is not a meter ({', '.join(METERS)})")
        if type(picos) is not int or not 0 <= picos <= rate_picos_max(name):
            raise InvalidPrice(f"rates.{name}: must be a whole number of picos from 0 to {rate_picos_max(name)}")
        rates[name] = picos
    return rates


def multipliers_from_json(document: object) -> dict[str, int]:
    """Multipliers from `{"flex": 5000, …}` (ten-thousandths). Raises InvalidPrice."""
    if not isinstance(document, dict) or len(document) > MULTIPLIERS_MAX:
        raise InvalidPrice(f"multipliers: must be an object of at most {MULTIPLIERS_MAX} tiers of service")
    for name, share in document.items():
        if not _TIER_NAME.fullmatch(name):
            raise InvalidPrice(f"multipliers: {name!r} is not the name of a tier of service")
        if type(share) is not int or not 0 <= share <= MULTIPLIER_BP_MAX:
            raise InvalidPrice(f"multipliers.{name}: must be a whole number of ten-thousandths to {MULTIPLIER_BP_MAX}")
    return document


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
    """The stored form of rates: meters in their order of definition, then variants by name."""
    known = {meter: rates[meter] for meter in METERS if meter in rates}
    return known | {name: rates[name] for name in sorted(rates) if "/" in name}


def tiers_to_json(tiers: tuple[Tier, ...]) -> list[dict[str, object]]:
    """The stored form of tiers."""
    return [{"above_input_tokens": tier.above_input_tokens, "rates": rates_to_json(tier.rates)} for tier in tiers]
