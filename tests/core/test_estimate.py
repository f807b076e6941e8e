"""An estimate is a count of bytes: no tokenizer, constant space, never below the events that carried output."""

import pytest

from gateway.core.estimate import OutputCounter, prompt_tokens_estimate, tokens_from_bytes, utf8_bytes


@pytest.mark.parametrize(("utf8_bytes", "tokens"), [(0, 0), (1, 1), (4, 1), (5, 2), (4_000_001, 1_000_001)])
def test_four_bytes_are_a_token_rounded_up(utf8_bytes: int, tokens: int) -> None:
    assert tokens_from_bytes(utf8_bytes) == tokens


@pytest.mark.parametrize(("text_bytes", "bound", "tokens"), [(400, 1_000, 100), (400, 60, 60), (0, 60, 0)])
def test_prompt_estimate_stays_within_its_bound(text_bytes: int, bound: int, tokens: int) -> None:
    assert prompt_tokens_estimate(text_bytes, bound) == tokens


@pytest.mark.parametrize("text", ["", "abc", "naïve", "🙂", "\ud83d", "天"])
def test_utf8_bytes(text: str) -> None:
    assert utf8_bytes(text) == len(text.encode("utf-8", "surrogatepass"))


def test_output_is_the_larger_of_events_and_bytes() -> None:
    counter = OutputCounter()
    assert counter.tokens == 0
    for _ in range(3):
        counter.add(2)
    assert counter.tokens == 3  # 6 bytes would be 2
    counter.add(10)
    assert counter.tokens == 4  # 16 bytes in 4 events
    counter.add(1)
    assert counter.tokens == 5
    counter.add(100, events=0)
    assert (counter.events, counter.text_bytes, counter.tokens) == (5, 117, 30)
