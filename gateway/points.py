"""Named points of a metered call, where a test may kill the process. Nothing happens at them otherwise.

FAREBOX_KILL_AT=hold.placed:17 sends SIGKILL to this process the seventeenth time that hold.placed is reached.
"""

import os
import signal

NAMES = (
    "authenticate.done",
    "admit.done",
    "hold.placed",
    "relay.connected",
    "relay.first_byte",
    "relay.mid_stream",
    "relay.done",
    "meter.done",
    "settle.durable",
    "finish.sent",
)
# Only of calls that carry an Idempotency-Key.
KEYED_NAMES = ("idempotency.claimed", "idempotency.stored")

_name, _, _count = os.environ.get("FAREBOX_KILL_AT", "").partition(":")
_left = int(_count or 1)
assert not _name or _name in NAMES + KEYED_NAMES, f"FAREBOX_KILL_AT: {_name} is not one of {NAMES + KEYED_NAMES}"

armed = bool(_name)


def reach(name: str) -> None:
    """Say that this process is at `name`. Call sites ask `points.armed` first, so production pays one look-up."""
    global _left  # noqa: PLW0603 - the one counter of this test seam
    if name == _name:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
