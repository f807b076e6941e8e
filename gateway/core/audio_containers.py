"""How long sound in a container lasts: Ogg, MP4, WebM; and which kind a file is (see gateway/core/audio_length.py)."""

import struct

from gateway.core.audio_frames import opus_microseconds
from gateway.core.audio_length import (
    CLAIMED_BYTES_PER_MS_MAX,
    AudioLength,
    NotAudio,
    Read,
    Source,
    flac_length,
    frames_length,
    unknown_length,
    wav_length,
    without_id3,
)

# So that no file keeps the event loop for long: packets of an Ogg file, and boxes or elements of the others.
_PACKETS_MAX = 200_000
_STEPS_MAX = 20_000
_STREAMS_MAX = 16
_MP4_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp", b"pnot"})
_MPEG_PROGRAM = b"\x00\x00\x01\xba"


def audio_length(read: Read, size: int) -> AudioLength:
    """How long the file lasts whose bytes `read(at, size)` gives. Raises NotAudio."""
    source = Source(read, size)
    start = without_id3(source)
    head = source.get(start, 16)
    if head.startswith((b"RIFF", b"RF64")) and head[8:12] == b"WAVE":
        return wav_length(source, start)
    if head.startswith(b"fLaC"):
        return flac_length(source, start)
    if head.startswith(b"OggS"):
        return _ogg_length(source)
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return _webm_length(source)
    if head[4:8] in _MP4_BOXES:
        return _mp4_length(source)
    if head.startswith(_MPEG_PROGRAM):
        return unknown_length(size)
    return frames_length(source, start)


class _OggStream:
    """One stream of an Ogg file. Its codec is named by its first packet."""

    __slots__ = ("block_samples", "granule", "hertz", "kind", "microseconds", "packets")

    def __init__(self, first: bytes) -> None:
        self.kind = ""
        self.packets = 0
        self.microseconds = 0
        self.granule = 0
        self.hertz = self.block_samples = 0
        if first.startswith(b"OpusHead"):
            self.kind = "opus"
        elif first.startswith(b"\x01vorbis") and len(first) >= 29:
            self.hertz = int.from_bytes(first[12:16], "little")
            self.block_samples = 1 << (first[28] >> 4)
            self.kind = "vorbis" if self.hertz else ""

    def length(self) -> AudioLength | None:
        if self.kind == "opus":
            milliseconds = -(-self.microseconds // 1_000)
            return AudioLength(milliseconds, milliseconds)
        if self.kind == "vorbis":
            # Two blocks overlap by half: a packet gives at most half of the longest block.
            most = self.packets * self.block_samples * 500 // self.hertz
            return AudioLength(most, min(most, max(self.granule * 1_000 // self.hertz, most // 16)))
        return None


def _ogg_length(source: Source) -> AudioLength:
    streams: dict[bytes, _OggStream] = {}
    finished: list[_OggStream] = []
    at = steps = 0
    while at + 27 <= source.size:
        head = source.get(at, 27 + 255)
        if not head.startswith(b"OggS"):
            return unknown_length(source.size)
        laces = head[27 : 27 + head[26]]
        body = source.get(at + 27 + head[26], sum(laces))
        serial = head[14:18]
        steps += 1 + len(laces)
        if head[5] & 2:
            if serial in streams:
                finished.append(streams.pop(serial))
            if len(streams) + len(finished) >= _STREAMS_MAX:
                return unknown_length(source.size)
            streams[serial] = _OggStream(body)
        stream = streams.get(serial)
        if stream is None or steps > _PACKETS_MAX:
            return unknown_length(source.size)
        if int.from_bytes(head[6:14], "little", signed=True) > 0:
            stream.granule = max(stream.granule, int.from_bytes(head[6:14], "little", signed=True))
        _take_packets(stream, laces, body, is_continued=bool(head[5] & 1))
        at += 27 + len(laces) + sum(laces)
    lengths = [stream.length() for stream in (*finished, *streams.values())]
    if not lengths:
        raise NotAudio("the Ogg file has no streams")
    known = [length for length in lengths if length is not None]
    if len(known) < len(lengths):
        return unknown_length(source.size)
    # Streams may follow each other as well as lie side by side.
    most, estimate = sum(one.milliseconds_max for one in known), sum(one.milliseconds_estimate for one in known)
    return AudioLength(max(1, most), max(1, estimate))


def _take_packets(stream: _OggStream, laces: bytes, body: bytes, *, is_continued: bool) -> None:
    """Count the packets that begin in this page."""
    at, begins = 0, not is_continued
    for lace in laces:
        if begins:
            stream.packets += 1
            # The first two are headers.
            if stream.kind == "opus" and stream.packets > 2:
                stream.microseconds += opus_microseconds(body[at : at + min(lace, 2)])
        begins = lace < 255
        at += lace


# MP4 -----------------------------------------------------------------------------------------------------------------

_DESCENDED = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl"})
_SAMPLES_OF = {b"mp4a": 1_024, b"alac": 4_096}
_HERTZ_MAX = 48_000


class _Mp4:
    """What the boxes of a file say."""

    __slots__ = ("claimed_ms", "codec", "hertz", "is_fragmented", "samples_ms", "steps")

    def __init__(self) -> None:
        self.claimed_ms = 0
        self.samples_ms = 0
        self.is_fragmented = False
        self.steps = 0
        self.codec = b""
        self.hertz = 0

    def take(self, name: bytes, data: bytes) -> None:
        """The beginning of one box's content."""
        if name in (b"mvhd", b"mdhd"):
            wide = data[:1] == b"\x01"
            scale, length = (data[20:24], data[24:32]) if wide else (data[12:16], data[16:20])
            per_second, count = int.from_bytes(scale, "big"), int.from_bytes(length, "big")
            if per_second and length.strip(b"\xff"):
                self.claimed_ms = max(self.claimed_ms, -(-count * 1_000 // per_second))
        elif name == b"stsd":
            self.codec = data[12:16]
            self.hertz = int.from_bytes(data[40:42], "big")
        elif name == b"stsz" and self.codec in _SAMPLES_OF and self.hertz:
            samples = int.from_bytes(data[8:12], "big") * _SAMPLES_OF[self.codec]
            self.samples_ms = max(self.samples_ms, samples * 1_000 // min(self.hertz, _HERTZ_MAX))
        elif name in (b"moof", b"mvex"):
            self.is_fragmented = True


def _mp4_length(source: Source) -> AudioLength:
    """By the table of samples, which is what a decoder reads, and no less than what the headers claim."""
    seen = _Mp4()
    _walk_boxes(source, 0, source.size, seen)
    if not seen.claimed_ms and not seen.samples_ms and not seen.is_fragmented:
        raise NotAudio("the MP4 has no length")
    floor = source.size // CLAIMED_BYTES_PER_MS_MAX
    if seen.is_fragmented or seen.steps > _STEPS_MAX:
        unknown = unknown_length(source.size)
        return AudioLength(max(unknown.milliseconds_max, seen.claimed_ms), max(unknown[1], seen.claimed_ms))
    # The sound of HE-AAC is twice as long as its samples say, and its headers say so.
    most = max(
        seen.claimed_ms, seen.samples_ms if seen.claimed_ms * 20 >= seen.samples_ms * 19 else 2 * seen.samples_ms
    )
    return AudioLength(max(1, most, floor), max(1, seen.claimed_ms, seen.samples_ms))


def _walk_boxes(source: Source, at: int, end: int, seen: _Mp4, depth: int = 0) -> None:
    while at + 8 <= end and seen.steps <= _STEPS_MAX:
        seen.steps += 1
        head = source.get(at, 16)
        size, name, head_bytes = int.from_bytes(head[:4], "big"), head[4:8], 8
        if size == 1:
            size, head_bytes = int.from_bytes(head[8:16], "big"), 16
        elif size == 0:
            size = end - at
        if size < head_bytes:
            return
        if name in _DESCENDED and depth < 8:
            _walk_boxes(source, at + head_bytes, min(at + size, end), seen, depth + 1)
        else:
            seen.take(name, source.get(at + head_bytes, min(size - head_bytes, 64)))
        at += size


# WebM ----------------------------------------------------------------------------------------------------------------

# Segment, Info, Cluster and BlockGroup hold what is looked at.
_WEBM_DESCENDED = frozenset({0x18538067, 0x1549A966, 0x1F43B675, 0xA0})


class _Webm:
    """What the elements of a file say."""

    __slots__ = ("cluster_ticks", "duration_ticks", "is_opus", "last_ticks", "microseconds", "scale_ns")

    def __init__(self) -> None:
        self.scale_ns = 1_000_000
        self.cluster_ticks = self.last_ticks = 0
        self.duration_ticks = 0.0
        self.microseconds = 0
        self.is_opus = False

    def take(self, source: Source, identity: int | None, at: int, size: int) -> None:
        """One element, its content at `at`."""
        match identity:
            case 0xA3 | 0xA1:
                self._block(source.get(at, min(size, 6)))
            case 0xE7:
                self.cluster_ticks = int.from_bytes(source.get(at, min(size, 8)), "big")
            case 0x2AD7B1:
                self.scale_ns = int.from_bytes(source.get(at, min(size, 8)), "big")
            case 0x4489:
                self.duration_ticks = _float(source.get(at, min(size, 8)))
            case 0x1654AE6B:
                tracks = source.get(at, min(size, 65_536))
                # Beside pictures the packets of sound are not told apart.
                self.is_opus = b"A_OPUS" in tracks and b"V_" not in tracks

    def _block(self, block: bytes) -> None:
        if len(block) == 6:
            ticks = self.cluster_ticks + int.from_bytes(block[1:3], "big", signed=True)
            self.last_ticks = max(self.last_ticks, ticks)
            # Several frames in a block are not told apart: they are taken for more than they can be.
            self.microseconds += 2_000_000 if block[3] & 6 else opus_microseconds(block[4:6])


def _webm_length(source: Source) -> AudioLength:
    """By its packets where they are Opus, else by the times of its blocks and the duration that it claims."""
    at = steps = 0
    seen = _Webm()
    while at < source.size and steps <= _STEPS_MAX:
        steps += 1
        head = source.get(at, 12)
        identity, id_bytes = _vint(head, keep_marker=True)
        size, size_bytes = _vint(head[id_bytes:], keep_marker=False)
        if not id_bytes or not size_bytes:
            break
        at += id_bytes + size_bytes
        if identity in _WEBM_DESCENDED:
            continue
        if size is None:
            break
        seen.take(source, identity, at, size)
        at += size
    if at < source.size:
        return unknown_length(source.size)
    if seen.is_opus and seen.microseconds:
        milliseconds = max(1, -(-seen.microseconds // 1_000))
        return AudioLength(milliseconds, milliseconds)
    claimed = int(max(seen.duration_ticks, seen.last_ticks + 100) * seen.scale_ns) // 10**6
    if not seen.last_ticks:
        raise NotAudio("the WebM has no sound")
    return AudioLength(max(claimed, source.size // CLAIMED_BYTES_PER_MS_MAX), max(1, claimed))


def _vint(data: bytes, *, keep_marker: bool) -> tuple[int | None, int]:
    """(value, bytes) of a number of EBML; a size of ones only is unknown, and bytes are 0 where it is none."""
    if not data or not data[0]:
        return None, 0
    count = 9 - data[0].bit_length()
    if len(data) < count:
        return None, 0
    value = int.from_bytes(data[:count], "big")
    if keep_marker:
        return value, count
    value &= (1 << 7 * count) - 1
    return (None if value == (1 << 7 * count) - 1 else value), count


def _float(data: bytes) -> float:
    """A number of EBML of four or eight bytes, within reason."""
    if len(data) not in (4, 8):
        return 0.0
    value: float = struct.unpack(">f" if len(data) == 4 else ">d", data)[0]
    return value if 0 <= value <= 10**12 else 0.0
