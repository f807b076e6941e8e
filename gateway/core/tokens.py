"""A bound of the input by tokens, where the one by bytes is too high. Pure: who counts is given.

A bound by bytes allows a token for every byte of the request. A text in it is so allowed as many tokens as it has
bytes, and may have a quarter of that. Only these allowances are replaced here: what stands around the texts, which
pays for all that a template adds, stays allowed by its bytes, and so do images and whatever has a bound of its own.
"""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from gateway.core.estimate import utf8_bytes

# A shorter text saves too little to be worth an exception.
TEXT_BYTES_MIN = 64
# A text is counted in pieces, so that a counter that holds the interpreter's lock lets others have it in between.
PIECE_CHARS = 16_384
# What joining two pieces can add to the sum of their tokens: of a vocabulary's longest merges a few at either side.
CUT_TOKENS = 16
# What a text may add that stands beside another one, or is trimmed: the same at both of its ends.
ENDS_TOKENS = 2 * CUT_TOKENS

_PERCENT = 100
# Vendor prefixes of routers, and of fine-tuned models, whose base is named after it.
_PREFIX = re.compile(r"^(?:openai/)?(?:ft:)?")
# First match counts. The vocabulary of the gpt-6 family is not published; a third more is what it was seen to need.
_ENCODINGS = (
    (re.compile(r"gpt-6(?=[.:-]|$)"), "o200k_base", 130),
    (re.compile(r"(?:gpt-5|gpt-4o|gpt-4\.1|gpt-4\.5|gpt-oss|chatgpt-4o|o[134])(?=[.:-]|$)"), "o200k_base", _PERCENT),
    (re.compile(r"(?:gpt-4|gpt-3\.5|text-embedding)(?=[:-]|$)"), "cl100k_base", _PERCENT),
)


class Encoding(NamedTuple):
    """The vocabulary of a model, and what its counts are multiplied by."""

    name: str
    percent: int


class Text(NamedTuple):
    """A text that stands in a request, and how many times its bytes are allowed for in the bound of the input."""

    text: str
    times: int = 1


def encoding_of(model: str) -> Encoding | None:
    """The encoding of a model of this name; None where it is not known, and bytes are the only bound."""
    name = _PREFIX.sub("", model)
    for pattern, encoding, percent in _ENCODINGS:
        if pattern.match(name):
            return Encoding(encoding, percent)
    return None


def tokens_saved(texts: Iterable[Text], count: Callable[[str], int], percent: int = _PERCENT) -> int:
    """How much lower than by its bytes the bound of the input may be, in tokens."""
    return sum(_saved(one, count, percent) for one in texts)


def _saved(one: Text, count: Callable[[str], int], percent: int) -> int:
    size = utf8_bytes(one.text)
    if size < TEXT_BYTES_MIN:
        return 0
    starts = range(0, len(one.text), PIECE_CHARS)
    counted = sum(count(one.text[start : start + PIECE_CHARS]) for start in starts)
    # A text that is rendered anew may have each of its lines indented or marked as a comment.
    lines = 2 * one.text.count("\n") if one.times > 1 else 0
    tokens = counted + len(starts) * CUT_TOKENS + ENDS_TOKENS + lines
    return one.times * max(0, size - -(-tokens * percent // _PERCENT))
