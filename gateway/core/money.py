"""Amounts: whole nano-units (10^-9) of the credit currency, prices in pico-units (10^-12) per unit of use.

Nothing here is ever a float. A cost is summed exactly in picos and rounded once: ceilings up, charges half to even.
"""

import re
from decimal import Context, Decimal, Inexact, InvalidOperation

NANOS_PER_UNIT = 1_000_000_000
_NANOS_PER_CENT = NANOS_PER_UNIT // 100
PICOS_PER_NANO = 1_000
PICOS_PER_UNIT = NANOS_PER_UNIT * PICOS_PER_NANO
# A BIGINT holds 9.22 * 10^18; a quarter of it leaves room for a balance plus a hold plus an entry.
AMOUNT_NANOS_MAX = 2**61
COST_PICOS_MAX = 2**62

# Decimal() also takes blanks, underscores and other scripts' digits: 1_0 is ten to it, and a slip to people.
_AMOUNT = re.compile(r"[+-]?(?=\.?[0-9])[0-9]{0,40}(\.[0-9]{0,40})?([eE][+-]?[0-9]{1,3})?")
# The default context rounds to 28 digits in silence. Here a digit lost is an error.
_EXACT = Context(prec=64, traps=[Inexact, InvalidOperation])


class InvalidAmount(ValueError):
    """An amount is a plain decimal number with at most nine decimal places."""


def ceil_nanos(picos: int) -> int:
    """The least whole nanos that cover `picos` (for ceilings)."""
    return -(-picos // PICOS_PER_NANO)


def round_nanos(picos: int) -> int:
    """`picos` as nanos, half to even (for charges)."""
    nanos, rest = divmod(picos, PICOS_PER_NANO)
    half = PICOS_PER_NANO // 2
    if rest > half or (rest == half and nanos % 2 == 1):
        return nanos + 1
    return nanos


def scale_exactly(amount: Decimal, places: int) -> int | None:
    """`amount` times 10^`places` where that is a whole number, else None. The caller has checked the range."""
    try:
        return int(amount.scaleb(places, _EXACT).to_integral_exact(context=_EXACT))
    except (Inexact, InvalidOperation):
        return None


def parse_nanos(text: str) -> int:
    """The nanos of a decimal amount such as `5`, `-0.25` or `12.000000001`. Raises InvalidAmount."""
    if not _AMOUNT.fullmatch(text):
        raise InvalidAmount(f"{text[:40]!r} is not a decimal amount")
    amount = Decimal(text)
    # Checked before scaling: 1E+999 must not be written out digit by digit.
    if amount.adjusted() > 18:
        raise InvalidAmount(f"{text!r} is out of range")
    nanos = scale_exactly(amount, 9)
    if nanos is None:
        raise InvalidAmount(f"{text!r} has more than nine decimal places")
    if abs(nanos) > AMOUNT_NANOS_MAX:
        raise InvalidAmount(f"{text!r} is out of range")
    return nanos


def format_nanos(nanos: int) -> str:
    """`nanos` as a decimal with at least two places and no trailing zeros past them: 5.00, 0.000123."""
    sign = "-" if nanos < 0 else ""
    units, rest = divmod(abs(nanos), NANOS_PER_UNIT)
    cents, finer = divmod(rest, _NANOS_PER_CENT)
    return f"{sign}{units}.{cents:02d}{finer:07d}".rstrip("0") if finer else f"{sign}{units}.{cents:02d}"
