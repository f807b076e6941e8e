"""How many tokens the text of a chat or a response can be at most. Pure."""

from collections.abc import Iterable, Mapping

import orjson

# What a chat template adds once, and once more for a list of tools.
TEMPLATE_TOKENS_MAX = 256
TOOLS_TEMPLATE_TOKENS_MAX = 512


def text_tokens_max(body: bytes, media_bytes: int, request: Mapping[str, object], rendered: Iterable[str]) -> int:
    """A bound of the input text of `body`, of which `media_bytes` are no text; `rendered` are members that a template
    renders anew.

    Why the bytes of the body bound its tokens. A token of a byte-level vocabulary is at least one byte of text, and a
    SentencePiece vocabulary falls back to bytes. JSON spells a text in at least its UTF-8 bytes, since no escape is
    shorter than what it stands for. A template adds about five tokens to a message, and no message is
    less than fifteen bytes of JSON; what it adds once is TEMPLATE_TOKENS_MAX. Tools and schemas are rendered anew: a
    template that spaces or indents their JSON adds at most one token of white space per byte, so they count twice.
    (A vocabulary that normalises to NFKC can make a rare character longer. No chat model known to us has one; usage
    above the hold would be charged and counted, not lost.)
    """
    bound = len(body) - media_bytes + TEMPLATE_TOKENS_MAX
    values = [value for name in rendered if (value := request.get(name)) is not None]
    if not values:
        return bound
    try:
        return bound + TOOLS_TEMPLATE_TOKENS_MAX + len(orjson.dumps(values))
    except orjson.JSONEncodeError:
        # Nested deeper than orjson writes, though not deeper than it reads.
        return bound + TOOLS_TEMPLATE_TOKENS_MAX + len(body)
