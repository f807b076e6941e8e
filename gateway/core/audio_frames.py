"""How long frames of sound last, by their own headers: MPEG audio, AAC in ADTS, and packets of Opus."""

_NS = 10**9
_SYNC = b"\xff"
_HEAD_BYTES = 7
# Of one sound, so that no file keeps the event loop for long: 2.6 hours of MP3, and then some noise.
FRAMES_MAX = 400_000
_SEARCHES_MAX = 2_000
# In kbit/s, by MPEG version (1, or 2 and 2.5) and layer (ISO 11172-3, 13818-3).
_KBITS = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MPEG_RATES = (44_100, 48_000, 32_000)
_AAC_RATES = (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350)
_AAC_SAMPLES = 1_024


def _mpeg_frames() -> dict[bytes, tuple[int, int]]:
    """(bytes, nanoseconds) of a frame, by the second and third byte of its header."""
    table: dict[bytes, tuple[int, int]] = {}
    for second in range(0xE0, 0x100):
        version, layer = (second >> 3) & 3, 4 - ((second >> 1) & 3)
        if version == 1 or layer == 4:
            continue
        for third in range(256):
            kbits, rate = third >> 4, (third >> 2) & 3
            if not 1 <= kbits <= 14 or rate == 3:
                continue
            bits = _KBITS[1 if version == 3 else 2, layer][kbits - 1] * 1_000
            hertz = _MPEG_RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
            padding = (third >> 1) & 1
            samples = 384 if layer == 1 else 576 if layer == 3 and version != 3 else 1_152
            size = (12 * bits // hertz + padding) * 4 if layer == 1 else samples // 8 * bits // hertz + padding
            table[bytes((second, third))] = (size, samples * _NS // hertz)
    return table


_MPEG = _mpeg_frames()


class FrameWalker:
    """Walks the frames of MPEG audio or of ADTS as they come, and adds up how long they last.

    Bytes that belong to no frame are counted as junk; a frame after junk counts once another follows it. Past the
    limits of this module all is junk.
    """

    __slots__ = ("_is_synced", "_left", "_searches", "_skip_bytes", "frames", "junk_bytes", "nanoseconds")

    def __init__(self) -> None:
        self._left = b""
        self._skip_bytes = 0
        self._is_synced = False
        self._searches = 0
        self.frames = 0
        self.junk_bytes = 0
        self.nanoseconds = 0

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        if self._skip_bytes >= len(data):
            self._skip_bytes -= len(data)
            return
        if self._skip_bytes:
            data, self._skip_bytes = data[self._skip_bytes :], 0
        data = self._left + data
        at, last = 0, len(data) - _HEAD_BYTES
        while at <= last:
            size, nanoseconds = _frame(data, at)
            if size and not self._is_synced:
                following = at + size
                if following > last and following - at < 8_192:
                    break  # whether another follows is not here yet
                if following <= last and not _frame(data, following)[0]:
                    size = 0
            if not size or self.frames >= FRAMES_MAX:
                at += self._skip_junk(data, at)
                continue
            self._is_synced = True
            self.frames += 1
            self.nanoseconds += nanoseconds
            at += size
        if at > len(data):
            self._skip_bytes, self._left = at - len(data), b""
        else:
            self._left = data[at:]

    def _skip_junk(self, data: bytes, at: int) -> int:
        """How many bytes from `at` on are no frame."""
        self._is_synced = False
        self._searches += 1
        is_beyond = self._searches > _SEARCHES_MAX or self.frames >= FRAMES_MAX
        found = -1 if is_beyond else data.find(_SYNC, at + 1)
        skipped = (found if found >= 0 else len(data)) - at
        self.junk_bytes += skipped
        return skipped

    def finish(self) -> None:
        """The sound has ended: a last frame needs none after it."""
        data, self._left = self._left, b""
        size, nanoseconds = _frame(data + bytes(_HEAD_BYTES), 0) if len(data) >= 4 else (0, 0)
        if size and (self._is_synced or size <= len(data)):
            self.frames += 1
            self.nanoseconds += nanoseconds
        else:
            self.junk_bytes += len(data)


def _frame(data: bytes, at: int) -> tuple[int, int]:
    """(bytes, nanoseconds) of the frame whose header is at `at`; (0, 0) for none."""
    if data[at] != 0xFF:
        return 0, 0
    found = _MPEG.get(data[at + 1 : at + 3])
    if found is not None:
        return found
    if data[at + 1] & 0xF6 == 0xF0:
        rate = (data[at + 2] >> 2) & 15
        size = (data[at + 3] & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5
        if rate < len(_AAC_RATES) and size >= _HEAD_BYTES:
            return size, ((data[at + 6] & 3) + 1) * _AAC_SAMPLES * _NS // _AAC_RATES[rate]
    return 0, 0


# Of one frame, by the configuration in the first five bits of a packet (RFC 6716, section 3.1). Microseconds.
_OPUS_FRAMES = (10_000, 20_000, 40_000, 60_000) * 3 + (10_000, 20_000) * 2 + (2_500, 5_000, 10_000, 20_000) * 4
OPUS_PACKET_MICROSECONDS_MAX = 120_000


def opus_microseconds(packet: bytes) -> int:
    """How long a packet of Opus lasts, by its first two bytes; at most what the format allows."""
    if not packet:
        return 0
    code = packet[0] & 3
    frames = 1 if code == 0 else 2 if code < 3 else packet[1] & 63 if len(packet) > 1 else 0
    return min(frames * _OPUS_FRAMES[packet[0] >> 3], OPUS_PACKET_MICROSECONDS_MAX)
