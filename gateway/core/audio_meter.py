"""How long sound lasts that passes by: what a speech endpoint's reply is measured by where nobody says.

The upstream made it, so its headers are believed. What has none is PCM; what cannot be told is taken at 128 kbit/s.
"""

from gateway.core.audio_frames import FrameWalker

_UNKNOWN_BYTES_PER_MS = 16
# 24 kHz, 16 bits, one channel: what `pcm` means at every upstream that has it.
PCM_BYTES_PER_MS = 48
_HEAD_BYTES = 44
_OPUS_HERTZ = 48_000


class AudioMeter:
    """Feed it sound in pieces of any size; `milliseconds` is how long it lasts so far. `is_pcm`: it has no header."""

    __slots__ = ("_bytes", "_flac_frames", "_head", "_ogg", "_rate", "_tail", "_walker", "kind")

    def __init__(self, *, is_pcm: bool = False) -> None:
        self.kind = "pcm" if is_pcm else ""
        self._head = b""
        self._bytes = 0
        self._rate = (PCM_BYTES_PER_MS, 0)  # bytes per millisecond, and bytes of a header
        self._walker: FrameWalker | None = None
        self._ogg = 0  # the last granule position
        self._flac_frames = 0
        self._tail = b""

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        self._bytes += len(data)
        if not self.kind:
            self._head += data
            if len(self._head) < _HEAD_BYTES:
                return
            self._begin()
            data, self._head = self._head, self._head[:_HEAD_BYTES]
        self._take(data)

    def skip(self, size: int) -> None:
        """So much sound passed unseen: it lasts as its bytes do at the common rate."""
        self._bytes += size
        if self.kind not in ("pcm", "wav", "unknown"):
            self._walker, self.kind = None, "unknown"

    @property
    def milliseconds(self) -> int:
        """Rounded up; 0 where nothing came."""
        match self.kind:
            case "pcm" | "wav":
                per_ms, head = self._rate
                return max(-(-max(0, self._bytes - head) // per_ms), 1 if self._bytes else 0)
            case "frames" if self._walker is not None and self._walker.frames:
                return -(-self._walker.nanoseconds // 10**6)
            case "ogg" if self._ogg:
                return -(-self._ogg * 1_000 // _OPUS_HERTZ)
            case "flac" if self._flac_frames:
                samples, hertz = self._rate
                return -(-self._flac_frames * samples * 1_000 // hertz)
        return -(-self._bytes // _UNKNOWN_BYTES_PER_MS)

    def _begin(self) -> None:
        head = self._head
        if head.startswith(b"RIFF") and head[8:16] == b"WAVEfmt " and (rate := int.from_bytes(head[28:32], "little")):
            self.kind, self._rate = "wav", (max(1, rate // 1_000), _HEAD_BYTES)
        elif head.startswith(b"OggS"):
            self.kind = "ogg"
        elif head.startswith(b"fLaC"):
            samples, hertz = int.from_bytes(head[10:12], "big"), int.from_bytes(head[18:21], "big") >> 4
            self.kind, self._rate = ("flac", (samples, hertz)) if samples and hertz else ("unknown", (1, 0))
        elif head.startswith(b"ID3") or (head[0] == 0xFF and head[1] & 0xE0 == 0xE0):
            self.kind, self._walker = "frames", FrameWalker()
        else:
            self.kind = "pcm"

    def _take(self, data: bytes) -> None:
        if self._walker is not None:
            self._walker.feed(data)
        elif self.kind == "ogg":
            data = self._tail + data
            at = data.find(b"OggS")
            while 0 <= at <= len(data) - 14:
                granule = int.from_bytes(data[at + 6 : at + 14], "little", signed=True)
                self._ogg = max(self._ogg, granule)
                at = data.find(b"OggS", at + 14)
            self._tail = data[at:] if at >= 0 else data[-3:]
        elif self.kind == "flac":
            data = self._tail + data
            self._flac_frames += data.count(b"\xff\xf8") + data.count(b"\xff\xf9")
            self._tail = data[-1:] if data.endswith(b"\xff") else b""
