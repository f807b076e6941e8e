"""Whether an upstream is worth asking: a circuit breaker for each. Pure: the clock is passed in.

    closed ──failures in a row, or too large a share of them──▶ open
    open ──open_seconds later, one call──▶ probing ──it is answered──▶ closed
                                                   └─it fails──▶ open

An open breaker puts its upstream behind all others; it never stops a call that nobody else could serve
(gateway/request/routing.py). So what an answer tells is welcome in every state, whoever asked.
"""

from enum import StrEnum
from typing import NamedTuple

# A share of fewer calls says little.
CALLS_MIN = 20


class State(StrEnum):
    """What is known of an upstream."""

    CLOSED = "closed"
    OPEN = "open"
    PROBING = "probing"


class BreakerLimits(NamedTuple):
    """When to open, and for how long. `failures_max` of 0 is never."""

    failures_max: int
    error_percent: int
    window_seconds: float
    open_seconds: float


class Breaker:
    """One upstream, as one process has seen it."""

    __slots__ = ("_calls", "_errors", "_half_began_seconds", "_in_a_row", "probe_at_seconds", "state")

    def __init__(self) -> None:
        self.state = State.CLOSED
        self.probe_at_seconds = 0.0  # from here on an open one may be asked again
        self._in_a_row = 0
        # Of the current half of the window, and of the one before.
        self._calls = [0, 0]
        self._errors = [0, 0]
        self._half_began_seconds = 0.0

    def is_ready(self, now: float) -> bool:
        """Whether the upstream may be asked at its usual place: it is well, or due for a probe."""
        return self.state is State.CLOSED or (self.state is State.OPEN and now >= self.probe_at_seconds)

    def asked(self, now: float) -> None:
        """A call is sent. The first one once an open breaker is due is its probe."""
        if self.state is State.OPEN and now >= self.probe_at_seconds:
            self.state = State.PROBING

    def answered(self, now: float, limits: BreakerLimits) -> None:
        """The upstream answered, and well."""
        self._count(now, limits, 0)
        self._in_a_row = 0
        if self.state is not State.CLOSED:
            self.state = State.CLOSED
            self._calls, self._errors = [0, 0], [0, 0]

    def failed(self, now: float, limits: BreakerLimits) -> None:
        """The upstream failed, or sent the call away."""
        self._count(now, limits, 1)
        self._in_a_row += 1
        if not limits.failures_max:
            return
        if self.state is State.PROBING:
            self._open(now, limits)
        elif self.state is State.CLOSED:
            calls, errors = sum(self._calls), sum(self._errors)
            is_share_large = calls >= CALLS_MIN and errors * 100 >= calls * limits.error_percent
            if self._in_a_row >= limits.failures_max or is_share_large:
                self._open(now, limits)

    def left(self) -> None:
        """A call ended before its upstream had said anything: if it was the probe, the next call is."""
        if self.state is State.PROBING:
            self.state = State.OPEN

    def _open(self, now: float, limits: BreakerLimits) -> None:
        self.state = State.OPEN
        self.probe_at_seconds = now + limits.open_seconds

    def _count(self, now: float, limits: BreakerLimits, errors: int) -> None:
        passed = now - self._half_began_seconds
        if passed * 2 >= limits.window_seconds:
            is_recent = passed < limits.window_seconds
            self._calls = [0, self._calls[0] if is_recent else 0]
            self._errors = [0, self._errors[0] if is_recent else 0]
            self._half_began_seconds = now
        self._calls[0] += 1
        self._errors[0] += errors
