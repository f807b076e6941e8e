"""In what units people give prices: per million tokens or characters, per second, minute or hour of sound, or each.

Inside, every rate is in whole picos per unit of use; what does not come out whole is refused, never rounded.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import NamedTuple

from gateway.core.catalogue import (
    METERS,
    MULTIPLIER_BP_MAX,
    InvalidPrice,
    Meter,
    is_meter,
    rate_per_million,
    rate_picos_max,
)
from gateway.core.money import scale_exactly


class _Unit(NamedTuple):
    """A price of 1 is 10^`places` / `divisor` picos per unit of `meter`."""

    meter: str
    name: str
    places: int
    divisor: int = 1


# Names of prices that are not their meter's own name: a millisecond is no unit that anybody sells.
_SOUND: Mapping[str, _Unit] = {
    "audio_seconds": _Unit(Meter.AUDIO_MILLISECONDS, "second", 9),
    "audio_minutes": _Unit(Meter.AUDIO_MILLISECONDS, "minute", 8, 6),
    "audio_hours": _Unit(Meter.AUDIO_MILLISECONDS, "hour", 7, 36),
}
_EACH: Mapping[str, str] = {
    Meter.IMAGES: "image",
    Meter.REQUESTS: "request",
    Meter.WEB_SEARCHES: "search",
    Meter.FILE_SEARCHES: "search",
    Meter.CONTAINERS: "container",
}
# What may be priced, by the names under which it is: variants of images and containers besides.
RATE_NAMES = (*(meter for meter in METERS if meter != Meter.AUDIO_MILLISECONDS), *_SOUND)


def read_rate(name: str, amount: Decimal) -> tuple[str, int]:
    """The meter that a price is of, and its picos per unit: `audio_minutes` 0.006 is 100,000 a millisecond.

    Raises InvalidPrice.
    """
    sound = _SOUND.get(name)
    if sound is not None:
        return sound.meter, _scaled(amount, sound.places, sound.divisor, sound.name, sound.meter)
    if not is_meter(name) or name == Meter.AUDIO_MILLISECONDS:
        raise InvalidPrice(f"not a meter ({', '.join(RATE_NAMES)})")
    each = _EACH.get(name.partition("/")[0])
    return name, rate_per_million(amount) if each is None else _scaled(amount, 12, 1, each, name)


def rate_per_thousand(meter: str, amount: Decimal) -> int:
    """Picos per unit of a price per thousand units. Raises InvalidPrice."""
    return _scaled(amount, 9, 1, "thousand", meter)


def read_multiplier(amount: Decimal) -> int:
    """Ten-thousandths of a multiplier such as 0.5 or 1.75. Raises InvalidPrice."""
    if not amount.is_finite() or amount.is_signed() or amount.adjusted() > 2:
        raise InvalidPrice(f"{amount} times is out of range")
    share = scale_exactly(amount, 4)
    if share is None:
        raise InvalidPrice(f"{amount} times has more than four decimal places")
    if share > MULTIPLIER_BP_MAX:
        raise InvalidPrice(f"{amount} times is out of range")
    return share


def _scaled(amount: Decimal, places: int, divisor: int, unit: str, meter: str) -> int:
    if not amount.is_finite() or amount.is_signed() or amount.adjusted() > 6:
        raise InvalidPrice(f"{amount} per {unit} is out of range")
    scaled = scale_exactly(amount, places)
    if scaled is None or scaled % divisor:
        raise InvalidPrice(f"{amount} per {unit} is no whole number of picos")
    picos = scaled // divisor
    if picos > rate_picos_max(meter):
        raise InvalidPrice(f"{amount} per {unit} is out of range")
    return picos


def unit_of(meter: str) -> str:
    """What a shown price of this meter is per."""
    if meter == Meter.AUDIO_MILLISECONDS:
        return "minute"
    general = meter.partition("/")[0]
    return _EACH.get(general) or ("1M characters" if general == Meter.CHARACTERS else "1M tokens")


def is_per_million(meter: str) -> bool:
    """Whether this meter is priced per million units."""
    return meter != Meter.AUDIO_MILLISECONDS and meter.partition("/")[0] not in _EACH


def rate_name(meter: str) -> str:
    """The name under which a shown price of this meter may be given back."""
    return "audio_minutes" if meter == Meter.AUDIO_MILLISECONDS else meter


def format_rate(meter: str, picos: int) -> str:
    """A rate as an exact decimal in the unit that `unit_of` names, at least two places: 2.50, 0.006."""
    if meter == Meter.AUDIO_MILLISECONDS:
        return _decimal(picos * 6, 8)
    return _decimal(picos, 6 if is_per_million(meter) else 12)


def format_multiplier(share: int) -> str:
    """Ten-thousandths as an exact decimal: 1.75, 0.50."""
    return _decimal(share, 4)


def _decimal(number: int, places: int) -> str:
    units, rest = divmod(number, 10**places)
    return f"{units}.{f'{rest:0{places}d}'.rstrip('0').ljust(2, '0')}"
