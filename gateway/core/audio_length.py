"""How long a file of sound lasts: a bound for its hold, and what to charge where nobody says.

What a decoder walks is walked here: a WAV's bytes at its own rate, the frames of MP3 and AAC, the packets of Opus. A
header that only claims a length is not trusted to make it shorter than that: the bound of a FLAC comes from how many
frames it can have, that of an MP4 from its table of samples. What cannot be told lasts as its bytes would at
8 kbit/s, less than which no speech is worth sending; it is charged, without usage, at 32 kbit/s.
"""

from collections.abc import Callable
from typing import NamedTuple

from gateway.core.audio_frames import FrameWalker

Read = Callable[[int, int], bytes]

WINDOW_BYTES = 262_144
# Milliseconds for a byte where nothing is known, and bytes for a millisecond to estimate the same.
UNKNOWN_MS_PER_BYTE_MAX = 1
UNKNOWN_BYTES_PER_MS = 4
# A claim is taken for no less than the bytes at 512 kbit/s, which is more than any codec of speech takes.
CLAIMED_BYTES_PER_MS_MAX = 64

_ID3_BYTES = 10
_TAG_BYTES_MAX = 4_096
_CHUNKS_MAX = 256
_PCM_TAGS = frozenset({1, 3, 6, 7})
_EXTENSIBLE = 0xFFFE
_SEARCHED_BYTES = 65_536


class NotAudio(ValueError):
    """Empty, or no sound that is known here."""


class AudioLength(NamedTuple):
    """In milliseconds: what it lasts at most, and what to charge without usage."""

    milliseconds_max: int
    milliseconds_estimate: int


class Source:
    """Random access to one file, through a window that moves forward."""

    __slots__ = ("_at", "_read", "_window", "size")

    def __init__(self, read: Read, size: int) -> None:
        self._read = read
        self.size = size
        self._at = 0
        self._window = b""

    def get(self, at: int, size: int) -> bytes:
        """Up to `size` bytes from `at`."""
        size = max(0, min(size, self.size - at))
        start = at - self._at
        if not 0 <= start <= len(self._window) - size:
            self._at, start = at, 0
            self._window = self._read(at, min(max(size, WINDOW_BYTES), self.size - at)) if size else b""
        return self._window[start : start + size]


def unknown_length(size: int) -> AudioLength:
    """Of sound of which nothing is known but its size."""
    return AudioLength(max(1, size * UNKNOWN_MS_PER_BYTE_MAX), max(1, size // UNKNOWN_BYTES_PER_MS))


def wav_length(source: Source, start: int) -> AudioLength:
    """A RIFF file, whose chunks begin at `start + 12`. Raises NotAudio."""
    at, fmt = start + 12, b""
    for _ in range(_CHUNKS_MAX):
        head = source.get(at, 8)
        if len(head) < 8:
            break
        name, size = head[:4], int.from_bytes(head[4:], "little")
        if name == b"fmt ":
            fmt = source.get(at + 8, min(size, 40))
        elif name == b"data":
            rest = source.size - at - 8
            claimed = size if 0 < size < rest else rest
            return _pcm_length(fmt, rest, claimed)
        at += 8 + size + (size & 1)
    raise NotAudio("the WAV has no data")


def _pcm_length(fmt: bytes, rest: int, claimed: int) -> AudioLength:
    if len(fmt) < 16:
        raise NotAudio("the WAV has no format")
    tag, channels, hertz, byte_rate, _, bits = (
        int.from_bytes(fmt[a:b], "little") for a, b in ((0, 2), (2, 4), (4, 8), (8, 12), (12, 14), (14, 16))
    )
    if tag == _EXTENSIBLE and len(fmt) >= 26:
        tag = int.from_bytes(fmt[24:26], "little")
    if tag in _PCM_TAGS:
        frame = channels * -(-bits // 8)
        if not frame or not hertz:
            raise NotAudio("the WAV has no channels, or no rate")
        # A player stops where `data` ends by its own account; another reads on.
        return AudioLength(_ceil_ms(rest // frame, hertz), _ceil_ms(claimed // frame, hertz))
    unknown = unknown_length(rest)
    if not byte_rate:
        return unknown
    by_rate = _ceil_ms(claimed, byte_rate)
    return AudioLength(max(unknown.milliseconds_max, by_rate), max(by_rate, rest // CLAIMED_BYTES_PER_MS_MAX))


def frames_length(source: Source, start: int) -> AudioLength:
    """MP3 or ADTS, from the first frame that another one follows. Raises NotAudio."""
    walker = FrameWalker()
    at = start
    while at < source.size:
        data = source.get(at, WINDOW_BYTES)
        walker.feed(data)
        at += len(data)
        if not walker.frames and at - start > _SEARCHED_BYTES:
            break
    walker.finish()
    if not walker.frames:
        raise NotAudio("no sound was found in it")
    milliseconds = -(-walker.nanoseconds // 10**6)
    # A tag at the end is junk as well, and small; anything else might be sound that a decoder finds.
    junk = walker.junk_bytes
    unseen = max(0, junk - _TAG_BYTES_MAX) // UNKNOWN_BYTES_PER_MS
    return AudioLength(milliseconds + junk * UNKNOWN_MS_PER_BYTE_MAX, milliseconds + unseen)


def flac_length(source: Source, start: int) -> AudioLength:
    """A FLAC stream. No frame has more samples than STREAMINFO allows, and each begins with its sync code.

    Raises NotAudio.
    """
    info = source.get(start + 8, 34)
    if len(info) < 34:
        raise NotAudio("the FLAC has no STREAMINFO")
    block_samples = int.from_bytes(info[2:4], "big")
    hertz = int.from_bytes(info[10:13], "big") >> 4
    total = int.from_bytes(info[13:18], "big") & (2**36 - 1)
    if not hertz or not block_samples:
        raise NotAudio("the FLAC has no rate")
    at = start + 4
    for _ in range(_CHUNKS_MAX):
        head = source.get(at, 4)
        at += 4 + int.from_bytes(head[1:4], "big")
        if len(head) < 4 or head[0] & 0x80:
            break
    frames, before = 0, b""
    while at < source.size:
        data = source.get(at, WINDOW_BYTES)
        at += len(data)
        data = before + data
        frames += data.count(b"\xff\xf8") + data.count(b"\xff\xf9")
        before = data[-1:] if data.endswith(b"\xff") else b""
    if not frames:
        raise NotAudio("the FLAC has no frames")
    most = _ceil_ms(frames * block_samples, hertz)
    # One with no frames to speak of for the length that it claims is taken at its claim.
    claimed = _ceil_ms(total, hertz) if total else most
    return AudioLength(most, min(most, max(claimed, most // 2)))


def without_id3(source: Source) -> int:
    """Where the sound begins after an ID3v2 tag, if there is one."""
    head = source.get(0, _ID3_BYTES)
    if len(head) < _ID3_BYTES or not head.startswith(b"ID3"):
        return 0
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    end = _ID3_BYTES + size + (_ID3_BYTES if head[5] & 0x10 else 0)
    return end if end < source.size else _ID3_BYTES


def _ceil_ms(count: int, per_second: int) -> int:
    return max(1, -(-count * 1_000 // per_second))
