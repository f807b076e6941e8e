"""The most a call can cost, and what a sum can buy. Tokens in, nanos out."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from gateway.core.catalogue import INPUT_METERS, Model, Price
from gateway.core.money import ceil_nanos
from gateway.core.pricing import STANDARD, DearestRates, Quantities, Terms, dearest_rates

_TOKENS_IN = frozenset(INPUT_METERS)


class Bounds(NamedTuple):
    """What a request can use at most. `output_tokens_cap` is per choice, and None where the client set none."""

    input_tokens_max: int
    output_tokens_cap: int | None
    choices: int
    extra: Quantities  # of other meters
    outputs: Sequence[str]  # the meters that its output may turn out to be
    passes: int = 1  # how often the context may be read


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
    slice: Slice | None
    rates: DearestRates
    choices: int

    @property
    def first_nanos(self) -> int:
        """What is held before anything is sent."""
        return self.nanos if self.slice is None else self.slice.nanos

    def covering_nanos(self, output_tokens: int) -> int:
        """What covers so many output tokens per choice, the prompt within its bound."""
        return ceil_nanos(self.rates.ceiling_picos(self.input_tokens_max, output_tokens * self.choices))

    def affordable_output_tokens(self, nanos: int) -> int:
        """The largest output cap per choice, up to the ceiling's, that `nanos` covers; 0 if not even one token."""
        return largest(self.output_tokens_max, lambda tokens: self.covering_nanos(tokens) <= nanos)


class CapTooLarge(ValueError):
    """The client's output cap is above what the model can produce."""


def ceiling(
    price: Price,
    model: Model,
    bounds: Bounds,
    *,
    min_output_tokens: int,
    slice_tokens: int | None = None,
    terms: Terms = STANDARD,
) -> Ceiling:
    """The ceiling of a call within `bounds`. Its hold may grow by `slice_tokens` where the client set no cap.

    Raises CapTooLarge, Unpriced, CostOutOfRange.
    """
    context, cap, choices = model.context_tokens_max * bounds.passes, bounds.output_tokens_cap, bounds.choices
    tokens_in = min(bounds.input_tokens_max, context)
    if cap is not None and cap > model.output_tokens_max:
        raise CapTooLarge(f"at most {model.output_tokens_max} completion tokens")
    tokens_out = model.output_tokens_max if cap is None else cap
    extra = within_context(bounds.extra, context) if bounds.extra else bounds.extra
    rates = dearest_rates(price, tokens_in, extra=extra, outputs=bounds.outputs, terms=terms)
    nanos = ceil_nanos(rates.ceiling_picos(tokens_in, tokens_out * choices))
    if cap is not None:
        return Ceiling(tokens_in, tokens_out, nanos, nanos, None, rates, choices)
    least = min(min_output_tokens, model.output_tokens_max)
    minimum = ceil_nanos(rates.ceiling_picos(tokens_in, least * choices))
    portion: Slice | None = None
    if slice_tokens is not None:
        first = min(max(slice_tokens, least), tokens_out)
        first_nanos = ceil_nanos(rates.ceiling_picos(tokens_in, first * choices))
        if first_nanos < nanos:
            portion = Slice(first, least, first_nanos)
    return Ceiling(tokens_in, tokens_out, nanos, minimum, portion, rates, choices)


def within_context(extra: Quantities, context_tokens_max: int) -> Mapping[str, int]:
    """`extra`, where no meter of input counts more tokens than the model can read."""
    return {
        meter: min(quantity, context_tokens_max) if meter in _TOKENS_IN else quantity
        for meter, quantity in extra.items()
    }


def largest(limit: int, is_covered: Callable[[int], bool]) -> int:
    """The largest number up to `limit` that is covered, 0 if none is; more is never cheaper."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if is_covered(middle):
            low = middle
        else:
            high = middle - 1
    return low
