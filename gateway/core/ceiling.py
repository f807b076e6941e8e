"""The most a call can cost, and what a sum can buy. Tokens in, nanos out."""

from typing import NamedTuple

from gateway.core.catalogue import Model, Price
from gateway.core.money import ceil_nanos
from gateway.core.pricing import dearest_rates


class Ceiling(NamedTuple):
    """Bounds of one call. `minimum_nanos` is the least hold with which it may run: less than `nanos` only where the
    client set no output cap, so that the gateway may lower it."""

    input_tokens_max: int
    output_tokens_max: int  # per choice
    nanos: int
    minimum_nanos: int


class CapTooLarge(ValueError):
    """The client's output cap is above what the model can produce."""


def ceiling(
    price: Price,
    model: Model,
    *,
    input_tokens_max: int,
    output_tokens_cap: int | None,
    choices: int,
    min_output_tokens: int,
) -> Ceiling:
    """The ceiling of a call of `choices` choices. Raises CapTooLarge, Unpriced, CostOutOfRange."""
    tokens_in = min(input_tokens_max, model.context_tokens_max)
    if output_tokens_cap is not None and output_tokens_cap > model.output_tokens_max:
        raise CapTooLarge(f"at most {model.output_tokens_max} completion tokens")
    tokens_out = model.output_tokens_max if output_tokens_cap is None else output_tokens_cap
    rates = dearest_rates(price, tokens_in)
    nanos = ceil_nanos(rates.ceiling_picos(tokens_in, tokens_out * choices))
    minimum = nanos
    if output_tokens_cap is None:
        least = min(min_output_tokens, model.output_tokens_max)
        minimum = ceil_nanos(rates.ceiling_picos(tokens_in, least * choices))
    return Ceiling(tokens_in, tokens_out, nanos, minimum)


def affordable_output_tokens(price: Price, input_tokens_max: int, choices: int, nanos: int, limit: int) -> int:
    """The largest output cap per choice, up to `limit`, whose ceiling `nanos` covers; 0 if not even one token."""
    rates = dearest_rates(price, input_tokens_max)
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if ceil_nanos(rates.ceiling_picos(input_tokens_max, middle * choices)) <= nanos:
            low = middle
        else:
            high = middle - 1
    return low
