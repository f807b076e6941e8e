"""The most tokens that an image can count that a model makes, by what is published of the models.

Source: the metering reference, section 6.5. What `low` or `high` means differs from model to model: the dearest of
those with a rule counts, so that an alias is bounded as well. Any other model may make the dearest image of all.
"""

import re

# 2880 x 2880 at the best quality.
IMAGE_OUTPUT_TOKENS_MAX = 23_719
# What is charged for one where neither usage nor request says: the best of the first family, square.
IMAGE_OUTPUT_TOKENS_ESTIMATE = 4_160
PARTIAL_IMAGE_TOKENS = 100

_WITH_RULE = re.compile(r"(openai/)?(gpt-image-(1|1\.5|2|2\.5)(-.*)?|chatgpt-image-latest)")
_FIRST_FAMILY = {
    "low": {(1024, 1024): 272, (1024, 1536): 408, (1536, 1024): 400},
    "medium": {(1024, 1024): 1_056, (1024, 1536): 1_584, (1536, 1024): 1_568},
    "high": {(1024, 1024): 4_160, (1024, 1536): 6_240, (1536, 1024): 6_208},
}
_FACTORS = {"low": 16, "medium": 48}
_FACTOR_MAX = 96
_ANY_SIZE = {16: 659, 48: 5_930, 96: IMAGE_OUTPUT_TOKENS_MAX}


def image_output_tokens_max(model: str, quality: str, size: tuple[int, int] | None) -> int:
    """Of one image. `quality` is "" where it is not given, `size` (width, height) None where the model chooses it."""
    if not _WITH_RULE.fullmatch(model):
        return IMAGE_OUTPUT_TOKENS_MAX
    factor = _FACTORS.get(quality, _FACTOR_MAX)
    if size is None:
        return _ANY_SIZE[factor]
    width, height = size
    long, short = max(size), max(1, min(size))
    side = (2 * factor * short + long) // (2 * long)
    by_formula = -(-factor * side * (2_000_000 + width * height) // 4_000_000)
    return max(by_formula, _FIRST_FAMILY.get(quality, {}).get(size, 0))
