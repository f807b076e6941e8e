"""Numbers from outside are checked before they cost anything; usage is merged, never summed."""

import math

import pytest

from gateway.core.catalogue import Meter
from gateway.core.usage import InvalidUsage, Limits, Reading, merge_usage, read_token_usage, says_nothing

LIMITS = Limits(input_tokens_max=10_000, output_tokens_max=1_000)

Usage = dict[str, object]


def chat(prompt: object, completion: object, total: object = None, **more: object) -> Usage:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total, **more}


def reading(input_: int = 0, output: int = 0, cached: int = 0, cache_write: int = 0, reasoning: int = 0) -> Reading:
    quantities = {
        Meter.INPUT: input_,
        Meter.OUTPUT: output,
        Meter.CACHED_INPUT: cached,
        Meter.CACHE_WRITE: cache_write,
    }
    return Reading({meter: quantity for meter, quantity in quantities.items() if quantity}, reasoning)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (chat(10, 5, 15), reading(10, 5)),
        (chat(10, 5), reading(10, 5)),
        ({"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}, reading(10, 5)),
        # Servers that speak both send both, or leave one pair at zero.
        (chat(10, 5, 15, input_tokens=10, output_tokens=5), reading(10, 5)),
        (chat(10, 5, 15, input_tokens=0, output_tokens=0), reading(10, 5)),
        (chat(0, 0, 15, input_tokens=10, output_tokens=5), reading(10, 5)),
        (chat("10", 5.0, "15.0"), reading(10, 5)),
        (chat(10, 0, 10), reading(10, 0)),
        (chat(0, 5, 5), reading(0, 5)),
        (chat(10, None, 10), reading(10, 0)),
        (chat(None, 5, 15), reading(10, 5)),
        # Parts are parts: https://github.com/BerriAI/litellm/issues/14849 billed them twice.
        (chat(10, 5, 15, prompt_tokens_details={"cached_tokens": 4}), reading(6, 5, cached=4)),
        (chat(10, 5, 15, prompt_tokens_details={"cached_tokens": 4, "cache_write_tokens": 6}), reading(0, 5, 4, 6)),
        (chat(10, 5, 15, prompt_cache_hit_tokens=4, prompt_cache_miss_tokens=6), reading(6, 5, cached=4)),
        (
            chat(10, 5, 15, prompt_cache_hit_tokens=4, prompt_tokens_details={"cached_tokens": 4}),
            reading(6, 5, cached=4),
        ),
        (
            {"input_tokens": 10, "output_tokens": 5, "input_tokens_details": {"cached_tokens": "3"}},
            reading(7, 5, cached=3),
        ),
        (chat(10, 5, 15, prompt_tokens_details=None, completion_tokens_details=[]), reading(10, 5)),
        (chat(10, 5, 15, prompt_tokens_details={"cached_tokens": None}), reading(10, 5)),
        (chat(10, 5, 15, completion_tokens_details={"reasoning_tokens": 5}), reading(10, 5, reasoning=5)),
        # Reasoning outside the completion count, but inside the total (xAI; Gemini without naming it).
        (chat(10, 5, 45, completion_tokens_details={"reasoning_tokens": 30}), reading(10, 35, reasoning=30)),
        (chat(10, 5, 45), reading(10, 35)),
        (chat(10_000, 1_000, 11_000), reading(10_000, 1_000)),
        (chat(10, 5, 15, queue_time=0.2, cost=0.01), reading(10, 5)),
    ],
)
def test_reading(usage: Usage, expected: Reading) -> None:
    assert read_token_usage(usage, LIMITS) == expected


@pytest.mark.parametrize(
    "usage",
    [{}, chat(0, 0, 0), chat(None, None), chat("0", 0.0), {"queue_time": 0.3}, {"input_tokens": 0, "output_tokens": 0}],
)
def test_usage_that_counts_nothing_is_no_usage(usage: Usage) -> None:
    assert says_nothing(usage)
    assert read_token_usage(usage, LIMITS) is None


NO_COUNTS = (
    -1,
    0.5,
    math.nan,
    math.inf,
    -math.inf,
    True,
    2**53 + 1,
    1e300,
    "-1",
    "1.5",
    "ten",
    "",
    "\u0661",
    "9" * 400,
)


@pytest.mark.parametrize("value", [*NO_COUNTS, [1], {"a": 1}])
@pytest.mark.parametrize(
    "name", ["prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens"]
)
def test_what_is_no_count_is_refused(name: str, value: object) -> None:
    with pytest.raises(InvalidUsage):
        read_token_usage(chat(10, 5, 15) | {name: value}, Limits(2**60, 2**60))


@pytest.mark.parametrize("value", [-1, True, 0.5, "x"])
@pytest.mark.parametrize(
    ("details", "name"),
    [
        ("prompt_tokens_details", "cached_tokens"),
        ("prompt_tokens_details", "cache_write_tokens"),
        ("completion_tokens_details", "reasoning_tokens"),
    ],
)
def test_what_is_no_count_of_a_part_is_refused(details: str, name: str, value: object) -> None:
    with pytest.raises(InvalidUsage):
        read_token_usage(chat(10, 5, 15) | {details: {name: value}}, LIMITS)


@pytest.mark.parametrize(
    ("usage", "why"),
    [
        (chat(10, 5, 14), "less than its parts"),
        (chat(10, 5, 0), "less than its parts"),
        (chat(10, 5, 15, prompt_tokens_details={"cached_tokens": 11}), "more than the input"),
        (chat(10, 5, 15, prompt_tokens_details={"cached_tokens": 6, "cache_write_tokens": 5}), "more than the input"),
        (chat(10, 5, 15, prompt_cache_hit_tokens=11), "more than the input"),
        (chat(10, 5, 15, completion_tokens_details={"reasoning_tokens": 6}), "more than the output"),
        (chat(10, 5, None, completion_tokens_details={"reasoning_tokens": 6}), "more than the output"),
        (chat(10, 5, 45, completion_tokens_details={"reasoning_tokens": 36}), "more than the output"),
        (chat(10, 5, 15, prompt_cache_hit_tokens=4, prompt_tokens_details={"cached_tokens": 5}), "two cached counts"),
        (chat(10, 5, 15, input_tokens=11), "two input counts"),
        (chat(10, 5, 15, output_tokens=6), "two output counts"),
        (chat(10_001, 5), "input 10001 is more than the limit"),
        (chat(10, 1_001), "output 1001 is more than the limit"),
        (chat(10, 5, 1_011), "output 1001 is more than the limit"),
        (chat(10, None), "no output count"),
        (chat(None, 5), "no input count"),
        (chat(None, None, 15), "no input count"),
        (chat(None, 16, 15), "no input count"),
        (chat(10, 5, 15, prompt_tokens_details="cached"), "not an object"),
        (chat(10, 5, 15, completion_tokens_details=[1]), "not an object"),
    ],
)
def test_usage_that_contradicts_itself_is_refused(usage: Usage, why: str) -> None:
    with pytest.raises(InvalidUsage, match=why):
        read_token_usage(usage, LIMITS)


@pytest.mark.parametrize(
    ("earlier", "later", "merged"),
    [
        (None, None, None),
        (None, chat(1, 2, 3), chat(1, 2, 3)),
        (chat(1, 2, 3), None, chat(1, 2, 3)),
        (chat(1, 2, 3), chat(1, 5, 6), chat(1, 5, 6)),
        # An object that counts nothing says nothing; in one that counts something, zero is a value.
        (chat(1, 2, 3), chat(0, 0, 0), chat(1, 2, 3)),
        (chat(1, 2, 3), {}, chat(1, 2, 3)),
        (None, chat(0, 0, 0), None),
        (chat(1, 2, 3), chat(4, 0, 4), chat(4, 0, 4)),
        (chat(1, 2, 3), {"completion_tokens": 7, "prompt_tokens": None}, {"prompt_tokens": 1, "completion_tokens": 7}),
        # A total without its parts is the total of an object that is gone.
        ({"total_tokens": 3}, {"total_tokens": 9}, {"total_tokens": 9}),
        (
            chat(1, 2, 3, prompt_tokens_details={"cached_tokens": 1, "audio_tokens": 0}),
            chat(1, 4, 5, prompt_tokens_details={"cached_tokens": 0, "audio_tokens": None}),
            chat(1, 4, 5, prompt_tokens_details={"cached_tokens": 0, "audio_tokens": 0}),
        ),
        (chat(1, 2, 3, cost=1), chat(1, 4, 5, prompt_tokens_details=None), chat(1, 4, 5, cost=1)),
    ],
)
def test_merge_keeps_the_last_value_of_each_field(
    earlier: Usage | None, later: Usage | None, merged: Usage | None
) -> None:
    assert merge_usage(earlier, later) == merged


def test_cumulative_usage_is_not_summed() -> None:
    """https://github.com/tensorzero/tensorzero/issues/5481"""
    merged = None
    for completion in (1, 2, 3, 4):
        merged = merge_usage(merged, chat(10, completion, 10 + completion))
    assert merged is not None
    assert read_token_usage(merged, LIMITS) == reading(10, 4)


def test_merge_changes_neither_object() -> None:
    earlier, later = chat(1, 2, 3, prompt_tokens_details={"a": 1}), chat(1, 3, 4, prompt_tokens_details={"b": 2})
    merge_usage(earlier, later)
    assert earlier == chat(1, 2, 3, prompt_tokens_details={"a": 1})
    assert later == chat(1, 3, 4, prompt_tokens_details={"b": 2})


@pytest.mark.parametrize(
    ("usage", "quantities"),
    [
        (
            {"prompt_tokens": 100, "completion_tokens": 50, "prompt_tokens_details": {"audio_tokens": 30}},
            {Meter.INPUT: 70, Meter.AUDIO_INPUT: 30, Meter.OUTPUT: 50},
        ),
        (  # what was cached is text as far as there is text
            {
                "prompt_tokens": 100,
                "completion_tokens": 50,
                "prompt_tokens_details": {"audio_tokens": 30, "cached_tokens": 80},
                "completion_tokens_details": {"audio_tokens": 40, "reasoning_tokens": 50},
            },
            {
                Meter.AUDIO_INPUT: 20,
                Meter.CACHED_AUDIO_INPUT: 10,
                Meter.CACHED_INPUT: 70,
                Meter.AUDIO_OUTPUT: 40,
                Meter.OUTPUT: 10,
            },
        ),
        (
            {
                "input_tokens": 100,
                "output_tokens": 5,
                "input_token_details": {
                    "audio_tokens": 30,
                    "image_tokens": 20,
                    "cached_tokens": 25,
                    "cached_tokens_details": {"audio_tokens": 5, "image_tokens": 20},
                },
            },
            {
                Meter.INPUT: 50,
                Meter.AUDIO_INPUT: 25,
                Meter.CACHED_AUDIO_INPUT: 5,
                Meter.CACHED_IMAGE_INPUT: 20,
                Meter.OUTPUT: 5,
            },
        ),
        (
            {
                "input_tokens": 100,
                "output_tokens": 5,
                "input_tokens_details": {
                    "cache_write_tokens": 60,
                    "cache_write_tokens_details": {"ttl_30m_tokens": 20, "ttl_12h_tokens": 40},
                },
            },
            {Meter.INPUT: 40, Meter.CACHE_WRITE: 20, Meter.CACHE_WRITE_12H: 40, Meter.OUTPUT: 5},
        ),
    ],
)
def test_sound_images_and_long_lifetimes_are_meters_of_their_own(
    usage: dict[str, object], quantities: dict[str, int]
) -> None:
    reading = read_token_usage(usage, LIMITS)
    assert reading is not None
    assert reading.quantities == quantities


@pytest.mark.parametrize("part", ["audio_tokens", "image_tokens"])
def test_a_part_is_never_more_than_its_whole(part: str) -> None:
    for details in ({"prompt_tokens_details": {part: 11}}, {"completion_tokens_details": {part: 6}}):
        with pytest.raises(InvalidUsage):
            read_token_usage({"prompt_tokens": 10, "completion_tokens": 5, **details}, LIMITS)
