"""What people type, checked: click callbacks that give the value, or say in one line what is wrong with it."""

import os
import pwd
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import click

from gateway.clock import unix_seconds
from gateway.core.catalogue import InvalidPrice, Rates, multipliers_from_json, rate_per_million
from gateway.core.money import InvalidAmount, parse_nanos
from gateway.core.rate_units import read_multiplier, read_rate

TEXT_CHARACTERS_MAX = 200
MODELS_MAX = 100
SPAN_DAYS_MAX = 36_500
ROWS_MAX = 1_000

_SPAN = re.compile(r"([0-9]{1,9})([smhd])")
_SPAN_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_RATE = re.compile(r"(?=\.?[0-9])[0-9]{0,20}(\.[0-9]{0,20})?")

Context = click.Context
Parameter = click.Parameter


def identifier(_context: Context, _parameter: Parameter, value: str | None) -> str | None:
    """A UUID in canonical form."""
    if value is None:
        return None
    try:
        return str(UUID(value))
    except ValueError:
        raise click.BadParameter(f"{value[:60]!r} is not an id (ids look like {UUID(int=0)})") from None


def amount_any(_context: Context, _parameter: Parameter, value: str | None) -> int | None:
    """Nanos of a decimal amount of either sign."""
    if value is None:
        return None
    try:
        return parse_nanos(value)
    except InvalidAmount as error:
        raise click.BadParameter(str(error)) from None


def amount_not_zero(context: Context, parameter: Parameter, value: str | None) -> int | None:
    """Nanos of an amount of either sign, but not of nothing."""
    nanos = amount_any(context, parameter, value)
    if nanos == 0:
        raise click.BadParameter("must not be zero")
    return nanos


def amount_positive(context: Context, parameter: Parameter, value: str | None) -> int | None:
    """Nanos above zero."""
    nanos = amount_any(context, parameter, value)
    if nanos is not None and nanos <= 0:
        raise click.BadParameter("must be above zero (to take money away, use `farebox wallet adjust`)")
    return nanos


def amount_not_negative(context: Context, parameter: Parameter, value: str | None) -> int | None:
    """Nanos from zero."""
    nanos = amount_any(context, parameter, value)
    if nanos is not None and nanos < 0:
        raise click.BadParameter("must not be negative")
    return nanos


def rate(_context: Context, _parameter: Parameter, value: str | None) -> int | None:
    """Picos per unit of a decimal price per million units; 0 is a price."""
    if value is None:
        return None
    if not _RATE.fullmatch(value):
        raise click.BadParameter(f"{value[:40]!r} is not a decimal price per million")
    try:
        return rate_per_million(Decimal(value))
    except InvalidPrice as error:
        raise click.BadParameter(str(error)) from None


def rates(_context: Context, _parameter: Parameter, values: tuple[str, ...]) -> Rates:
    """Picos per unit by meter, of METER=PRICE in the unit of the meter."""
    found: dict[str, int] = {}
    for value in values:
        name, amount = _named(value, "METER=PRICE")
        try:
            meter, picos = read_rate(name, amount)
        except InvalidPrice as error:
            raise click.BadParameter(f"{name[:40]}: {error}") from None
        if meter in found:
            raise click.BadParameter(f"{meter} is given twice")
        found[meter] = picos
    return found


def multipliers(_context: Context, _parameter: Parameter, values: tuple[str, ...]) -> Mapping[str, int]:
    """Ten-thousandths by tier of service, of TIER=TIMES."""
    found: dict[str, int] = {}
    for value in values:
        name, amount = _named(value, "TIER=TIMES")
        if name in found:
            raise click.BadParameter(f"{name[:40]} is given twice")
        try:
            found[name] = read_multiplier(amount)
            multipliers_from_json(found)
        except InvalidPrice as error:
            raise click.BadParameter(f"{name[:40]}: {error}") from None
    return found


def _named(value: str, form: str) -> tuple[str, Decimal]:
    name, is_named, amount = value.partition("=")
    if not is_named or not _RATE.fullmatch(amount):
        raise click.BadParameter(f"{value[:60]!r} is not {form} with a decimal")
    return name, Decimal(amount)


def text(_context: Context, _parameter: Parameter, value: str | None) -> str | None:
    """A name or a reason: printable, on one line, bounded."""
    if value is None:
        return None
    if not value.isprintable() or value != value.strip():
        raise click.BadParameter("must be printable, on one line, without blanks around it")
    if len(value) > TEXT_CHARACTERS_MAX:
        raise click.BadParameter(f"must have at most {TEXT_CHARACTERS_MAX} characters")
    return value


def text_required(context: Context, parameter: Parameter, value: str | None) -> str | None:
    """The same, and not empty."""
    if value == "":
        raise click.BadParameter("must not be empty")
    return text(context, parameter, value)


def names(_context: Context, _parameter: Parameter, value: str | None) -> tuple[str, ...] | None:
    """Names separated by commas."""
    if value is None:
        return None
    found = tuple(dict.fromkeys(part.strip() for part in value.split(",")))
    if not all(name and name.isprintable() and len(name) <= TEXT_CHARACTERS_MAX for name in found):
        raise click.BadParameter("must be names separated by commas")
    if len(found) > MODELS_MAX:
        raise click.BadParameter(f"must be at most {MODELS_MAX} names")
    return found


def moment(_context: Context, _parameter: Parameter, value: str | None) -> datetime | None:
    """An ISO 8601 time; without a zone it is UTC."""
    if value is None:
        return None
    try:
        found = datetime.fromisoformat(value)
        found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{value[:40]!r} is not a time such as 2030-01-31T12:00:00Z") from None
    if found.year > 9_000:
        raise click.BadParameter("is too far away")
    return found


def expiry(context: Context, parameter: Parameter, value: str | None) -> datetime | None:
    """A time to come: ISO 8601, or a span from now such as 30d, 12h, 15m."""
    now = datetime.fromtimestamp(unix_seconds(), UTC)
    span = _SPAN.fullmatch(value) if value is not None else None
    if span is None:
        try:
            found = moment(context, parameter, value)
        except click.BadParameter as error:
            raise click.BadParameter(f"{error.message}, or a span such as 30d, 12h or 15m") from None
    else:
        delta = timedelta(**{_SPAN_UNITS[span[2]]: int(span[1])})
        if delta > timedelta(days=SPAN_DAYS_MAX):
            raise click.BadParameter(f"must be at most {SPAN_DAYS_MAX} days")
        found = now + delta
    if found is not None and found <= now:
        raise click.BadParameter("must lie in the future")
    return found


def operating_user() -> str:
    """Who runs this command, as the operating system has it."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def actor_option() -> Decorator:
    """--actor, on what leaves a trace."""
    return click.option(
        "--actor",
        default=operating_user,
        show_default="your user name",
        callback=text_required,
        help="Who does this, for the record.",
    )


def limit_option(rows: int) -> Decorator:
    """--limit, on lists."""
    return click.option(
        "--limit", type=click.IntRange(1, ROWS_MAX), default=rows, show_default=True, help="How many rows at most."
    )
