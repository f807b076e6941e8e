"""How many tokens the sound in a chat message can count: ten for each second of it. Pure.

A WAV lasts as its bytes at the rate of its own header, which is what a decoder plays. Of anything else no more is
known than that no codec of speech is sent at less than 8 kbit/s; without usage it is charged at 32 kbit/s.
"""

import base64
import struct
from typing import NamedTuple

_TOKENS_PER_SECOND = 10
_HEADER_CHARS = 8_192
# Other spellings of base64: with line ends, or for use in a URL.
_TO_PLAIN = str.maketrans({"\n": None, "\r": None, " ": None, "-": "+", "_": "/"})
_CHUNKS_MAX = 32
# PCM, floats, A-law, mu-law, and the extended form of these.
_PLAIN_TAGS = frozenset({1, 3, 6, 7, 0xFFFE})
_BYTES_PER_SECOND_MIN = 1_000
_BYTES_PER_SECOND_USUAL = 4_000


class SoundTokens(NamedTuple):
    """At most, and where nobody says."""

    most: int
    estimate: int


def sound_tokens(data: str) -> SoundTokens:
    """The tokens of a file in base64. Raises ValueError where it is none."""
    size = len(data) * 3 // 4
    rate = _wav_bytes_per_second(_decoded_head(data))
    most = _tokens(size, rate or _BYTES_PER_SECOND_MIN)
    return SoundTokens(most, most if rate else _tokens(size, _BYTES_PER_SECOND_USUAL))


def _tokens(size_bytes: int, bytes_per_second: int) -> int:
    return -(-size_bytes * _TOKENS_PER_SECOND // bytes_per_second)


def _decoded_head(data: str) -> bytes:
    """Raises ValueError where this is no base64, such as the address of a file elsewhere."""
    start = data.find(",") + 1 if data.startswith("data:") else 0
    head = data[start : start + _HEADER_CHARS].translate(_TO_PLAIN)
    return base64.b64decode(head[: len(head) // 4 * 4], validate=True)


def _wav_bytes_per_second(head: bytes) -> int | None:
    """None where this is no WAV, or not one of plain samples."""
    if not head.startswith(b"RIFF") or head[8:12] != b"WAVE":
        return None
    at = 12
    for _ in range(_CHUNKS_MAX):
        if len(head) < at + 24:
            return None
        (length,) = struct.unpack_from("<I", head, at + 4)
        if head[at : at + 4] == b"fmt ":
            tag, channels, samples, _, block, bits = struct.unpack_from("<HHIIHH", head, at + 8)
            rate = samples * min(block, channels * (bits // 8))
            return int(rate) if tag in _PLAIN_TAGS and rate else None
        at += 8 + length + length % 2
    return None
