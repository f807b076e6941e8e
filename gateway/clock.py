"""Time and the ids that carry it. The only place that makes an id."""

import os
import time

monotonic_seconds = time.monotonic
unix_seconds = time.time


def new_id() -> str:
    """A UUIDv7 in canonical form: 48 bits of Unix milliseconds, then 74 random bits (RFC 9562, section 5.7)."""
    milliseconds = time.time_ns() // 1_000_000
    noise = os.urandom(10).hex()
    variant = "89ab"[int(noise[3], 16) & 3]
    stamp = f"{milliseconds:012x}"
    return f"{stamp[:8]}-{stamp[8:]}-7{noise[:3]}-{variant}{noise[4:7]}-{noise[7:19]}"
