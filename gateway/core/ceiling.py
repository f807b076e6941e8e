"""The most a call can cost, and what a sum can buy. Tokens in, nanos out."""

from typing import NamedTuple

from gateway.core.catalogue import Model, Price
from gateway.core.money import ceil_nanos
from gateway.core.pricing import dearest_rates


class Slice(NamedTuple):
    """What a hold that grows with its stream begins with, and grows by. Tokens of output per choice."""

    tokens: int
    least_tokens: int  # the least that is worth growing by
    nanos: int  # of the prompt and the first slice


class Ceiling(NamedTuple):
    """Bounds of one call. `minimum_nanos` is the least hold with which it may run: less than `nanos` only where the
    client set no output cap, so that the gateway may lower it. Without a `slice` the whole is held at once."""

    input_tokens_max: int
    output_tokens_max: int  # per choice
    nanos: int
    minimum_nanos: int
    slice: Slice | None = None

    @property
    def first_nanos(self) -> int:
        """What is held before anything is sent."""
        return self.nanos if self.slice is None else self.slice.nanos


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
    slice_tokens: int | None = None,
) -> Ceiling:
    """The ceiling of a call of `choices` choices. Its hold may grow by `slice_tokens` where the client set no cap.

    Raises CapTooLarge, Unpriced, CostOutOfRange.
    """
    tokens_in = min(input_tokens_max, model.context_tokens_max)
    if output_tokens_cap is not None and output_tokens_cap > model.output_tokens_max:
        raise CapTooLarge(f"at most {model.output_tokens_max} completion tokens")
    tokens_out = model.output_tokens_max if output_tokens_cap is None else output_tokens_cap
    rates = dearest_rates(price, tokens_in)
    nanos = ceil_nanos(rates.ceiling_picos(tokens_in, tokens_out * choices))
    if output_tokens_cap is not None:
        return Ceiling(tokens_in, tokens_out, nanos, nanos)
    least = min(min_output_tokens, model.output_tokens_max)
    minimum = ceil_nanos(rates.ceiling_picos(tokens_in, least * choices))
    portion: Slice | None = None
    if slice_tokens is not None:
        first = min(max(slice_tokens, least), tokens_out)
        first_nanos = ceil_nanos(rates.ceiling_picos(tokens_in, first * choices))
        if first_nanos < nanos:
            portion = Slice(first, least, first_nanos)
    return Ceiling(tokens_in, tokens_out, nanos, minimum, portion)


def covering_nanos(price: Price, input_tokens_max: int, choices: int, output_tokens: int) -> int:
    """What covers a call of so many output tokens per choice, its prompt within its bound."""
    return ceil_nanos(dearest_rates(price, input_tokens_max).ceiling_picos(input_tokens_max, output_tokens * choices))


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
