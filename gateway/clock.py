"""Time and the ids that carry it. The only place that makes an id."""

import os
import time

monotonic_seconds = time.monotonic
unix_seconds = time.time
_VERSION_7 = 0x7 << 76 | 0b10 << 62
_NOISE = 0xFFF << 64 | (1 << 62) - 1


def new_id() -> str:
    """A UUIDv7 in canonical form: 48 bits of Unix milliseconds, then 74 random bits (RFC 9562, section 5.7)."""
    noise = int.from_bytes(os.urandom(10), "big")
    value = (time.time_ns() // 1_000_000 << 80) | (noise & _NOISE) | _VERSION_7
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
