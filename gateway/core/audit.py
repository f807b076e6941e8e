"""What an audit says, and what a resolved call must have cost: worked out anew from its price version and its usage."""

from dataclasses import dataclass

from gateway.core.catalogue import MULTIPLIER_BP_MAX, ONE_BP, Price, is_meter
from gateway.core.pricing import STANDARD, CostOutOfRange, Terms, Unpriced, cost_picos

# Recorded for people; it is inside `output` and costs nothing of its own.
INFORMATION = frozenset({"reasoning"})
# Recorded beside the quantities where they multiplied the rates.
TERMS = frozenset({"service_tier", "upstream_bp"})


class Unexplained(ValueError):
    """The cost cannot be worked out from what is recorded; the message says why."""


def recompute_picos(price: Price, usage: object) -> int:
    """The exact cost in picos of a decoded usage record, `{"input": 12, "output": 3}`. Raises Unexplained."""
    if not isinstance(usage, dict):
        raise Unexplained("usage is not an object")
    quantities: dict[str, int] = {}
    for name, quantity in usage.items():
        if name in TERMS:
            continue
        if type(quantity) is not int or quantity < 0:
            raise Unexplained(f"usage.{name} is not a whole number of units")
        if is_meter(name):
            quantities[name] = quantity
        elif name not in INFORMATION:
            raise Unexplained(f"usage.{name} is not a meter")
    try:
        return cost_picos(price, quantities, _terms(usage))
    except Unpriced as error:
        raise Unexplained(f"price {price.price_id} has no rate for {error}") from None
    except CostOutOfRange as error:
        raise Unexplained(f"the cost, {error} picos, is out of range") from None


def _terms(usage: dict[str, object]) -> Terms:
    if TERMS.isdisjoint(usage):
        return STANDARD
    tier, upstream_bp = usage.get("service_tier", ""), usage.get("upstream_bp", ONE_BP)
    if not isinstance(tier, str):
        raise Unexplained("usage.service_tier is not a string")
    if type(upstream_bp) is not int or not 0 <= upstream_bp <= MULTIPLIER_BP_MAX:
        raise Unexplained("usage.upstream_bp is not a number of ten-thousandths")
    return Terms(tier, upstream_bp)


@dataclass(frozen=True, slots=True, order=True)
class Difference:
    """One thing that does not agree. `seq` is 0 and a text is empty where it does not apply; `expected` and `found`
    stand where a check compares two values, else `what` says it all."""

    wallet_id: str
    seq: int
    hold_id: str
    what: str
    expected: str = ""
    found: str = ""

    def __str__(self) -> str:
        where = f"wallet {self.wallet_id}" if self.wallet_id else "all wallets"
        if self.seq:
            where += f", seq {self.seq}"
        if self.hold_id:
            where += f", hold {self.hold_id}"
        text = f"{where}: {self.what}"
        return f"{text}: expected {self.expected}, found {self.found}" if self.expected or self.found else text


@dataclass(slots=True)
class Finding:
    """What one check found over `rows` rows looked at (0: those of an invariant are not counted)."""

    check: str
    rows: int = 0
    differences: int = 0
    first: Difference | None = None

    def add(self, difference: Difference) -> None:
        """Count a difference, and keep the least."""
        self.differences += 1
        if self.first is None or difference < self.first:
            self.first = difference
