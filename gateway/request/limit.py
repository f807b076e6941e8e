"""How far a stream may run on what is held for it.

A hold of the whole ceiling covers all that its cap allows, and an estimate is no count: such a stream is ended only at
a multiple of its cap, which is proof that the upstream ignores it.

A hold that grows covers what has been granted so far. The next slice is asked for when half of the last is used, while
the relay goes on. What was refused, or granted in part, is asked for again at half of what is left, and so on, for
other calls give money back meanwhile. Only a stream that has used all that is held waits, for one last answer, and is
then cut off: nothing is passed on that is not held.

A read may bring any amount, and the end with it. So what comes near the limit is taken in parts, each up to the end of
the event that may go past it, and each is looked at before it is passed on.
"""

import asyncio
import sys

from gateway.core.ceiling import Slice
from gateway.core.sse import event_end
from gateway.core.usage import proof_above
from gateway.db.lanes import Answer, Outcome
from gateway.endpoints.endpoint import Output, StreamReader
from gateway.errors import Failure, UpstreamUnusable
from gateway.request.admit import Offer
from gateway.request.hold import Hold, Holds

# How long a stream that stands at its limit waits for an answer under way. The ledger may be away: then it is over.
_ANSWER_SECONDS_MAX = 2.0
_NEVER = sys.maxsize


class Limit:
    """The limit of a stream whose whole ceiling is held. Output tokens are those of all choices together."""

    __slots__ = ("_allowed", "_bytes", "_next_bytes")

    def __init__(self, output_tokens_max: int) -> None:
        self._allowed = proof_above(output_tokens_max)
        self._bytes = 0
        self._next_bytes = 4 * self._allowed

    def is_near(self, byte_count: int) -> bool:
        """Whether a read of so many bytes may matter: the estimate grows by at most a token for four bytes.

        One that does not is counted here; one that does is counted in parts, by `is_reached`.
        """
        reached = self._bytes + byte_count
        if reached >= self._next_bytes:
            return True
        self._bytes = reached
        return False

    def part_end(self, data: bytes, start: int) -> int:
        """Where the next look at a read that may matter is due: at the end of the event that may go past the limit.

        Where none ends, nothing of the rest is counted before the next read.
        """
        due = start + max(self._next_bytes - self._bytes, 1)
        return event_end(data, max(due - 4, start)) or len(data)

    def is_reached(self, reader: StreamReader, byte_count: int, kept_bytes: int) -> bool:
        """Look at a reader that was fed so many bytes: whether it may go on only if that is granted.

        What the reader has kept of all that it was fed, such as half an event, is still to be counted.
        """
        self._bytes += byte_count
        count = reader.output_tokens_estimate()
        self._look_again_at(self._allowed + 1, count, kept_bytes)
        return count > self._allowed

    async def is_granted(self) -> bool:
        """Whether a stream that has reached its limit may go on after all; it waits for the answer."""
        return False

    def failure(self) -> Failure:
        """What to tell the client of a stream that was ended."""
        return UpstreamUnusable("The reply ran past its hold and was ended.", code="cut_off")

    def _look_again_at(self, tokens: int, count: int, kept_bytes: int) -> None:
        self._next_bytes = self._bytes - kept_bytes + 4 * max(tokens - count, 1)


class GrowingLimit(Limit):
    """The limit of a stream whose hold grows with it."""

    __slots__ = (
        "_ask_at",
        "_asked_at",
        "_asking",
        "_count",
        "_hold",
        "_holds",
        "_is_whole",
        "_offer",
        "_refused",
        "_slice",
        "_target_nanos",
    )

    def __init__(self, offer: Offer, hold: Hold, holds: Holds, portion: Slice) -> None:
        self._offer = offer
        self._hold = hold
        self._holds = holds
        self._asking: asyncio.Future[Answer] | None = None
        self._asked_at = 0
        self._target_nanos = 0
        self._refused: Outcome | None = None
        self._is_whole = False
        self._count = 0
        self._slice = portion
        # What is held at first is a slice, and no reckoning is needed: most streams never look.
        self._allowed = portion.tokens * offer.request.choices
        self._ask_at = self._allowed - portion.tokens * offer.request.choices // 2
        self._bytes = 0
        self._next_bytes = 4 * self._ask_at

    def is_reached(self, reader: StreamReader, byte_count: int, kept_bytes: int) -> bool:
        self._bytes += byte_count
        count = reader.output_tokens_estimate()
        if count >= self._ask_at:
            self._ask(count)
        self._count = count
        soon = self._allowed + 1
        self._look_again_at(soon if self._asking is not None else min(self._ask_at, soon), count, kept_bytes)
        return count > self._allowed

    async def is_granted(self) -> bool:
        count = self._count
        for is_last in (self._asking is None, True):
            self._ask(count)
            asking = self._asking
            if asking is None:
                return False
            await asyncio.wait((asking,), timeout=_ANSWER_SECONDS_MAX)
            if not asking.done():
                self._refused = None
                return False
            self._answered(asking)
            if count <= self._allowed or is_last:
                break
        return count <= self._allowed

    def failure(self) -> Failure:
        return super().failure() if self._is_whole else self._holds.cut_off(self._refused)

    def _ask(self, count: int) -> None:
        """Ask for another slice, unless an answer is under way or the whole ceiling is held."""
        if self._asking is not None or self._is_whole:
            return
        self._asked_at = count
        choices, whole = self._offer.request.choices, self._offer.ceiling.output_tokens_max
        target = min(-(-max(self._allowed, count) // choices) + self._slice.tokens, whole)
        least = min(self._allowed // choices + self._slice.least_tokens, target)
        self._target_nanos = self._offer.ceiling.covering_nanos(target)
        self._asking = self._holds.extend(self._hold, self._target_nanos, self._offer.ceiling.covering_nanos(least))
        if self._asking is None:
            self._refused = None
            self._ask_again_later()
        else:
            self._asking.add_done_callback(self._answered)

    def _answered(self, asking: "asyncio.Future[Answer]") -> None:
        if asking is not self._asking:
            return
        self._asking = None
        self._refused = None if asking.exception() is not None else asking.result().outcome
        self._measure()
        if self._hold.granted_nanos < self._target_nanos:
            self._ask_again_later()
        self._next_bytes = self._bytes  # what was reckoned from the old limit is void

    def _measure(self) -> None:
        """What the hold covers now, and where half of its last slice is used."""
        bounds, choices = self._offer.ceiling, self._offer.request.choices
        whole, covered = bounds.output_tokens_max, bounds.affordable_output_tokens(self._hold.granted_nanos)
        self._is_whole = covered == whole
        if self._is_whole:
            self._allowed, self._ask_at = proof_above(whole * choices), _NEVER
        else:
            self._allowed = covered * choices
            self._ask_at = self._allowed - self._slice.tokens * choices // 2

    def _ask_again_later(self) -> None:
        self._ask_at = self._allowed - max(self._allowed - self._asked_at, 0) // 2


def limit_of(offer: Offer, hold: Hold) -> Limit:
    """The limit of a stream on this hold."""
    if offer.request.output is Output.NONE:
        return Limit(_NEVER // 8)
    if offer.request.output is Output.MODEL:
        return Limit(offer.model.output_tokens_max * offer.request.choices)
    if hold.holds is None or offer.ceiling.slice is None:
        return Limit(hold.output_tokens_max * offer.request.choices)
    return GrowingLimit(offer, hold, hold.holds, offer.ceiling.slice)
