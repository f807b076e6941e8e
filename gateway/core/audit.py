"""What a resolved call must have cost: worked out anew from the price version and the usage that its event names."""

from gateway.core.catalogue import Meter, Price
from gateway.core.pricing import CostOutOfRange, Unpriced, cost_picos

# Recorded for people; it is inside `output` and costs nothing of its own.
INFORMATION = frozenset({"reasoning"})


class Unexplained(ValueError):
    """The cost cannot be worked out from what is recorded; the message says why."""


def recompute_picos(price: Price, usage: object) -> int:
    """The exact cost in picos of a decoded usage record, `{"input": 12, "output": 3}`. Raises Unexplained."""
    if not isinstance(usage, dict):
        raise Unexplained("usage is not an object")
    quantities: dict[Meter, int] = {}
    for name, quantity in usage.items():
        if type(quantity) is not int or quantity < 0:
            raise Unexplained(f"usage.{name} is not a whole number of units")
        if name in Meter._value2member_map_:
            quantities[Meter(name)] = quantity
        elif name not in INFORMATION:
            raise Unexplained(f"usage.{name} is not a meter")
    try:
        return cost_picos(price, quantities)
    except Unpriced as error:
        raise Unexplained(f"price {price.price_id} has no rate for {error}") from None
    except CostOutOfRange as error:
        raise Unexplained(f"the cost, {error} picos, is out of range") from None
