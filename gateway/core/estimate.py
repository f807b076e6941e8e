"""Tokens from text, for a call whose upstream did not say. No tokenizer: a counter of bytes, in constant space."""

BYTES_PER_TOKEN = 4


def tokens_from_bytes(utf8_bytes: int) -> int:
    """An estimate from the size of a text: one token for four bytes of UTF-8, the usual English rate, rounded up."""
    return -(-utf8_bytes // BYTES_PER_TOKEN)


def prompt_tokens_estimate(text_bytes: int, input_tokens_max: int) -> int:
    """The input tokens of a request with so many bytes of text, never above its bound."""
    return min(input_tokens_max, tokens_from_bytes(text_bytes))


def utf8_bytes(text: str) -> int:
    """The size of `text` in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


class OutputCounter:
    """Counts generated text. An upstream sends at least one token in an event, so events are a floor."""

    __slots__ = ("events", "text_bytes")

    def __init__(self) -> None:
        self.events = 0
        self.text_bytes = 0

    def add(self, text_bytes: int, events: int = 1) -> None:
        """Count `events` that carried output, `text_bytes` of text in all."""
        self.events += events
        self.text_bytes += text_bytes

    @property
    def tokens(self) -> int:
        return max(self.events, tokens_from_bytes(self.text_bytes))
