"""What an upstream says was used, checked and made canonical.

Numbers from outside are data: each is checked before it may cost anything. A reading that contradicts itself is
`InvalidUsage`, and the call is charged by the missing-usage rule instead (gateway/request/meter.py).
"""

from collections.abc import Mapping
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import NamedTuple

from gateway.core.catalogue import Meter

# Every JSON number up to here is exact in every language that may have written it.
TOKENS_MAX = 2**53

_MEDIA_IN = (
    ("audio_tokens", Meter.AUDIO_INPUT, Meter.CACHED_AUDIO_INPUT),
    ("image_tokens", Meter.IMAGE_INPUT, Meter.CACHED_IMAGE_INPUT),
)
_MEDIA_OUT = (("audio_tokens", Meter.AUDIO_OUTPUT), ("image_tokens", Meter.IMAGE_OUTPUT))
_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens")


class InvalidUsage(ValueError):
    """Usage that cannot be true: negative, fractional, over the model's limits, or parts larger than their whole."""


class Limits(NamedTuple):
    """The most a reply can truthfully report. All in tokens, over all choices."""

    input_tokens_max: int
    output_tokens_max: int


def proof_above(bound: int) -> int:
    """Above this, a count or an estimate is proof that `bound` was not kept: that of one cannot be so far off."""
    return 4 * bound + 64


class Reading(NamedTuple):
    """Usage seen, in disjoint meters. `reasoning_tokens` is inside `output`: a price may have a rate for it."""

    quantities: Mapping[str, int]
    reasoning_tokens: int = 0


def read_token_usage(usage: Mapping[str, object], limits: Limits) -> Reading | None:
    """Tokens in and out from a chat or a responses usage object, in either spelling. Raises InvalidUsage.

    None where nothing was counted. `cached` and `cache_write` are parts of the input, `reasoning` of the output.
    Some upstreams leave reasoning out of the completion count but not out of the total, so the larger counts.
    Details are optional; both an input and an output count must be there or follow from the total.
    """
    if says_nothing(usage):
        return None
    details_in = _details(usage, "prompt_tokens_details", "input_tokens_details", "input_token_details")
    details_out = _details(usage, "completion_tokens_details", "output_tokens_details", "output_token_details")
    total = _count(usage.get("total_tokens"), "total_tokens")
    completion = _agreed("output", usage.get("completion_tokens"), usage.get("output_tokens"))
    prompt = _agreed("input", usage.get("prompt_tokens"), usage.get("input_tokens"))
    if prompt is None:
        # Without an input count the input would be free; a total and an output count still give it.
        if total is None or completion is None or total < completion:
            raise InvalidUsage("no input count")
        prompt = total - completion
    output = completion or 0
    if total is not None:
        if total < prompt + output:
            raise InvalidUsage(f"total {total} is less than its parts, {prompt} + {output}")
        output = total - prompt
    elif completion is None:
        raise InvalidUsage("no output count")
    cached = _agreed("cached", details_in.get("cached_tokens"), usage.get("prompt_cache_hit_tokens")) or 0
    cache_write = _count(details_in.get("cache_write_tokens"), "cache_write_tokens") or 0
    reasoning = _count(details_out.get("reasoning_tokens"), "reasoning_tokens") or 0
    if cached + cache_write > prompt:
        raise InvalidUsage(f"cached {cached} and cache write {cache_write} are more than the input, {prompt}")
    if reasoning > output:
        raise InvalidUsage(f"reasoning {reasoning} is more than the output, {output}")
    if prompt > limits.input_tokens_max:
        raise InvalidUsage(f"input {prompt} is more than the limit, {limits.input_tokens_max}")
    if output > limits.output_tokens_max:
        raise InvalidUsage(f"output {output} is more than the limit, {limits.output_tokens_max}")
    used = _used(prompt - cached - cache_write, cached, cache_write, output)
    if any(details_in.values()) or any(details_out.values()):
        _set_apart(used, details_in, details_out)
        reasoning = min(reasoning, used.get(Meter.OUTPUT, 0))
    return Reading(used, reasoning) if used else None


def _set_apart(used: dict[str, int], details_in: Mapping[str, object], details_out: Mapping[str, object]) -> None:
    """Move what was sound, images or a longer cache lifetime to meters of its own. Raises InvalidUsage."""
    for name, plain, cached_meter in _MEDIA_IN:
        if not details_in.get(name):
            continue
        count = _count(details_in[name], name) or 0
        from_cache = min(_cached_part(details_in, name) or 0, count)
        _move(used, Meter.CACHED_INPUT, cached_meter, from_cache, name)
        # Where nobody says which part was cached, what is left of the cached tokens is taken to be text.
        rest = count - from_cache
        uncached = min(rest, used.get(Meter.INPUT, 0))
        _move(used, Meter.INPUT, plain, uncached, name)
        _move(used, Meter.CACHED_INPUT, cached_meter, rest - uncached, name)
    for name, meter in _MEDIA_OUT:
        if details_out.get(name):
            _move(used, Meter.OUTPUT, meter, _count(details_out[name], name) or 0, name)
    lifetimes = details_in.get("cache_write_tokens_details")
    if isinstance(lifetimes, dict):
        long = _count(lifetimes.get("ttl_12h_tokens"), "ttl_12h_tokens") or 0
        _move(used, Meter.CACHE_WRITE, Meter.CACHE_WRITE_12H, long, "ttl_12h_tokens")


def _cached_part(details_in: Mapping[str, object], name: str) -> int | None:
    parts = details_in.get("cached_tokens_details")
    if not isinstance(parts, dict):
        return None
    return _count(parts.get(name, parts.get(f"cached_{name}")), name)


def _move(used: dict[str, int], source: str, target: str, count: int, name: str) -> None:
    if not count:
        return
    left = used.get(source, 0) - count
    if left < 0:
        raise InvalidUsage(f"{name} {count} is more than the whole it is part of")
    if left:
        used[source] = left
    else:
        used.pop(source, None)
    used[target] = used.get(target, 0) + count


def _used(uncached: int, cached: int, cache_write: int, output: int) -> dict[str, int]:
    """The meters that counted something."""
    used: dict[str, int] = {Meter.INPUT: uncached} if uncached else {}
    if cached:
        used[Meter.CACHED_INPUT] = cached
    if cache_write:
        used[Meter.CACHE_WRITE] = cache_write
    if output:
        used[Meter.OUTPUT] = output
    return used


def read_milliseconds(seconds: object, seconds_max: int) -> int:
    """A reported duration in seconds, a number or a decimal string of one, as milliseconds. Raises InvalidUsage."""
    try:
        known = isinstance(seconds, int | float | str) and not isinstance(seconds, bool)
        exact = Decimal(str(seconds)) if known else None
    except InvalidOperation:
        exact = None
    if exact is None or not exact.is_finite() or not 0 <= exact <= seconds_max:
        raise InvalidUsage(f"seconds {str(seconds)[:40]!r} are no length of time")
    return int((exact * 1_000).to_integral_value(ROUND_HALF_EVEN))


def says_nothing(usage: Mapping[str, object]) -> bool:
    """Whether a usage object counts no token at all, as upstreams send on chunks before the last."""
    for name in _COUNTS:  # mostly the first decides; a generator would cost more than the look-ups
        if (value := usage.get(name)) and value != "0":
            return False
    return True


def merge_usage(
    earlier: Mapping[str, object] | None, later: Mapping[str, object] | None
) -> Mapping[str, object] | None:
    """The last value of each field of two usage objects of one call; never a sum, for counts are cumulative.

    A null field says nothing, and neither does an object that counts nothing. Inside an object that counts something
    zero is a value. A total belongs to the object that it came with: an older one is dropped.
    """
    if later is None or says_nothing(later):
        return earlier
    if earlier is None:
        return later
    merged = {name: value for name, value in earlier.items() if name != "total_tokens"}
    for name, value in later.items():
        before = merged.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            merged[name] = before | {part: number for part, number in value.items() if number is not None}
        elif value is not None:
            merged[name] = value
    return merged


def _details(usage: Mapping[str, object], *names: str) -> Mapping[str, object]:
    """The first details object that is there; `null`, and the empty list that PHP writes for one, are empty."""
    for name in names:
        if details := usage.get(name):
            if not isinstance(details, dict):
                raise InvalidUsage(f"{name} is not an object")
            return details
    return {}


def _agreed(what: str, first: object, second: object) -> int | None:
    """One count that may be spelled two ways. A spelling left at zero does not contradict the other."""
    one = _count(first, what)
    if second is None:
        return one
    other = _count(second, what)
    if one and other and one != other:
        raise InvalidUsage(f"two {what} counts, {one} and {other}")
    return one if other is None else one or other


def _count(value: object, name: str) -> int | None:
    """A token count: a whole number, or a decimal string of one; None where it is absent. Raises InvalidUsage."""
    if value is None:
        return None
    count: int | None
    if type(value) is int:
        if 0 <= value <= TOKENS_MAX:
            return value
        count = value
    elif isinstance(value, float) and value.is_integer():
        count = int(value)
    elif isinstance(value, str) and len(value) <= 20 and value.isascii() and value.removesuffix(".0").isdigit():
        count = int(value.removesuffix(".0"))
    else:
        count = None
    if count is None:
        raise InvalidUsage(f"{name} {str(value)[:40]!r} is not a token count")
    if not 0 <= count <= TOKENS_MAX:
        raise InvalidUsage(f"{name} is out of range")
    return count
