"""`farebox` with a clock that can jump: SIGUSR2 sets it JUMP_SECONDS ahead, and the next one back again.

The ids of holds carry that clock, and the ledger must not care. Timers use the monotonic clock and the database's.
"""

import signal
import time

import gateway.clock

JUMP_SECONDS = 3_600


class Clock:
    """What gateway.clock takes for the module `time`."""

    ahead_seconds = 0

    def time_ns(self) -> int:
        return time.time_ns() + self.ahead_seconds * 10**9

    def time(self) -> float:
        return time.time() + self.ahead_seconds

    def jump(self, *_: object) -> None:
        self.ahead_seconds = 0 if self.ahead_seconds else JUMP_SECONDS


def main() -> None:
    clock = Clock()
    vars(gateway.clock)["time"] = clock
    gateway.clock.unix_seconds = clock.time
    signal.signal(signal.SIGUSR2, clock.jump)
    from gateway.cli.main import main as farebox

    farebox()


if __name__ == "__main__":
    main()
