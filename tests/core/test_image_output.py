"""Tokens of images that are made: the published numbers, and nothing below any of them."""

import pytest

from gateway.core.image_output import IMAGE_OUTPUT_TOKENS_MAX, image_output_tokens_max

# The tables of the metering reference, section 6.5: (quality, size) -> the dearest of all families.
PUBLISHED = {
    ("low", (1024, 1024)): 272,
    ("low", (1024, 1536)): 408,
    ("low", (1536, 1024)): 400,
    ("low", (3840, 2160)): 371,
    ("medium", (1024, 1024)): 1_756,
    ("medium", (1024, 1536)): 1_584,
    ("medium", (2048, 1152)): 1_413,
    ("high", (1024, 1024)): 7_024,
    ("high", (1536, 1024)): 6_208,
    ("high", (2560, 1440)): 7_370,
    ("max", (3840, 2160)): 13_342,
    ("max", (2880, 2880)): IMAGE_OUTPUT_TOKENS_MAX,
    ("", (1024, 1536)): 5_488,
    ("auto", (1024, 1024)): 7_024,
    ("low", None): 659,
    ("medium", None): 5_930,
    ("high", None): IMAGE_OUTPUT_TOKENS_MAX,
    ("auto", None): IMAGE_OUTPUT_TOKENS_MAX,
}


@pytest.mark.parametrize("asked", PUBLISHED)
@pytest.mark.parametrize("model", ["gpt-image-1", "gpt-image-1-mini", "openai/gpt-image-2", "gpt-image-2.5-flare"])
def test_the_published_numbers(model: str, asked: tuple[str, tuple[int, int] | None]) -> None:
    assert image_output_tokens_max(model, *asked) == PUBLISHED[asked]


@pytest.mark.parametrize("model", ["gpt-image-2.6", "gpt-image-2.6-flare", "gpt-image-20", "mine", ""])
def test_a_model_without_a_rule_may_make_the_dearest(model: str) -> None:
    assert image_output_tokens_max(model, "low", (1024, 1024)) == IMAGE_OUTPUT_TOKENS_MAX
