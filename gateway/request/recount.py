"""Between a hold that was refused for funds and the answer 402: is the bound by bytes too high?

A bound by bytes is free, true for every vocabulary, and four times too high for plain text. A tokenizer is never asked
before that has cost somebody a call. Then the texts are counted exactly, in a thread, and the hold is tried once more.
"""

import asyncio
import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from functools import cache, partial

from gateway.core.estimate import utf8_bytes
from gateway.core.tokens import Encoding, encoding_of, tokens_saved
from gateway.endpoints.texts import texts_of
from gateway.metrics import Metrics
from gateway.request.admit import Offer, with_input_bound

# How many calls may wait to be counted. The tokenizer holds the interpreter's lock, so one thread is as fast as many.
_WAITING_MAX = 16
# A tenth of a second of counting: more text than any context has.
TEXT_CHARS_MAX = 4 * 2**20

Count = Callable[[str], int]


class Recounted(StrEnum):
    """What became of it: the labels of farebox_recounts_total."""

    LOWERED = "lowered"  # and the hold was tried again
    HELD = "held"  # with success
    NOT_LOWER = "not_lower"
    HOPELESS = "hopeless"  # the rest of the call alone costs more than there is
    UNKNOWN_MODEL = "unknown_model"
    TOO_LARGE = "too_large"
    BUSY = "busy"
    NO_TOKENIZER = "no_tokenizer"


class Recounter:
    """Counts the texts of refused calls; `is_on` may change at any time."""

    def __init__(self, metrics: Metrics, *, is_on: bool, load: "Callable[[str], Count] | None" = None) -> None:
        self.is_on = is_on
        self._load = load or counter
        self._counts = {outcome: metrics.recounts.labels(outcome) for outcome in Recounted}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recount")
        self._waiting = 0

    def close(self) -> None:
        """Nobody waits any more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def note(self, outcome: Recounted) -> None:
        """Count what became of a call."""
        self._counts[outcome].inc()

    async def offer(
        self, offer: Offer, available_nanos: int, *, min_output_tokens: int, hold_slice_tokens: int
    ) -> Offer | None:
        """The same call with a lower ceiling, as true as the one that was refused; None where there is none."""
        if not self.is_on or not isinstance(offer.body, bytes):
            return None
        bounded = partial(
            with_input_bound, offer, min_output_tokens=min_output_tokens, hold_slice_tokens=hold_slice_tokens
        )
        # No bound has the bytes of a text more than twice.
        least = bounded(max(0, offer.request.input_tokens_max - 2 * len(offer.body)))
        if least.ceiling.minimum_nanos > available_nanos:
            self.note(Recounted.HOPELESS)
            return None
        lower = await self._input_tokens_max(offer)
        if lower is None:
            return None
        found = bounded(lower)
        if found.ceiling.minimum_nanos >= offer.ceiling.minimum_nanos:
            self.note(Recounted.NOT_LOWER)  # the model's context is the bound
            return None
        self.note(Recounted.LOWERED)
        return found

    async def _input_tokens_max(self, offer: Offer) -> int | None:
        """A lower bound of the input; None where there is none."""
        encodings = {encoding_of(name) for name in (offer.model.name, *(route.model for route in offer.routes))}
        known = [encoding for encoding in encodings if encoding is not None]
        if len(known) < len(encodings) or offer.request.stored is not None:
            self.note(Recounted.UNKNOWN_MODEL)
            return None
        if self._waiting >= _WAITING_MAX:
            self.note(Recounted.BUSY)
            return None
        self._waiting += 1
        counting = asyncio.get_running_loop().run_in_executor(self._thread, _saved, offer, known, self._load)
        counting.add_done_callback(self._done)
        found = await counting
        if isinstance(found, Recounted):
            self.note(found)
            return None
        return offer.request.input_tokens_max - found

    def _done(self, _: object) -> None:
        self._waiting -= 1


def _saved(offer: Offer, encodings: list[Encoding], load: Callable[[str], Count]) -> int | Recounted:
    """In the thread: the tokens by which the bound is too high, whichever upstream is asked; or why there are none."""
    texts = texts_of(offer.endpoint.name, offer.body) if isinstance(offer.body, bytes) else ()
    if sum(one.times * utf8_bytes(one.text) for one in texts) > offer.request.input_tokens_max:
        return Recounted.NOT_LOWER  # their bytes are allowed for elsewhere, such as where all may be written to a cache
    if sum(len(one.text) for one in texts) > TEXT_CHARS_MAX:
        return Recounted.TOO_LARGE
    try:
        counts = [(load(encoding.name), encoding.percent) for encoding in encodings]
    except ImportError:
        return Recounted.NO_TOKENIZER
    return min(tokens_saved(texts, count, percent) for count, percent in counts) or Recounted.NOT_LOWER


@cache
def counter(encoding: str) -> Count:
    """rs-bpe, which has the vocabularies in it and asks no network. Raises ImportError."""
    tokenizer = getattr(importlib.import_module("rs_bpe.bpe").openai, encoding)()

    def count(text: str) -> int:
        # Half of a surrogate pair is no UTF-8; an upstream reads it as U+FFFD.
        return int(tokenizer.count(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")))

    return count
