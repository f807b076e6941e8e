"""Files of sound of a known length, written by hand: no encoder is needed to say how long they last."""

import struct


def wav(
    milliseconds: int, *, hertz: int = 16_000, channels: int = 1, bits: int = 16, claimed: int | None = None
) -> bytes:
    """Silence in PCM. `claimed`: what its header says are bytes of data."""
    frame = channels * bits // 8
    data = bytes(hertz * milliseconds // 1_000 * frame)
    size = len(data) if claimed is None else claimed
    fmt = struct.pack("<HHIIHH", 1, channels, hertz, hertz * frame, frame, bits)
    return (
        b"RIFF"
        + struct.pack("<I", min(36 + size, 2**32 - 1))
        + b"WAVEfmt \x10\0\0\0"
        + fmt
        + b"data"
        + struct.pack("<I", size)
        + data
    )


def mp3(frames: int, *, tag_bytes: int = 0) -> bytes:
    """MPEG-1 layer III at 128 kbit/s and 48 kHz: 24 ms and 384 bytes a frame."""
    size = bytes((tag_bytes >> shift) & 0x7F for shift in (21, 14, 7, 0))
    tag = b"ID3\x04\0\0" + size + bytes(tag_bytes) if tag_bytes else b""
    return tag + (b"\xff\xfb\x94\x00" + b"\x55" * 380) * frames


def aac(frames: int) -> bytes:
    """ADTS at 24 kHz: 1,024 samples in 100 bytes a frame."""
    return (b"\xff\xf1\x58\x40\x0c\x9f\xfc" + b"\x55" * 93) * frames


def _page(serial: int, packets: list[bytes], granule: int, flags: int = 0) -> bytes:
    laces = b"".join(b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255]) for packet in packets)
    head = b"OggS\0" + bytes([flags]) + struct.pack("<qIII", granule, serial, 0, 0) + bytes([len(laces)]) + laces
    return head + b"".join(packets)


def opus(packets: int, *, toc: int = 0x78, granule: int | None = None) -> bytes:
    """Ogg Opus, 20 ms a packet by default (CELT, one frame). `granule`: what its last page claims."""
    out = _page(7, [b"OpusHead\x01\x01\x38\x01\x80\xbb\0\0\0\0\0"], 0, 2) + _page(7, [b"OpusTags" + bytes(300)], 0)
    for first in range(0, packets, 40):
        count = min(40, packets - first)
        at = (first + count) * 960 if granule is None else granule
        out += _page(7, [bytes([toc, 1]) + b"\x55" * 58] * count, at)
    return out


def vorbis(packets: int, *, hertz: int = 48_000, granule: int = 0) -> bytes:
    """Ogg Vorbis with long blocks of 2,048 samples."""
    head = b"\x01vorbis" + struct.pack("<IBIIII", 0, 1, hertz, 0, 0, 0) + b"\xb8\x01"
    return _page(3, [head], 0, 2) + b"".join(_page(3, [b"\x55" * 90] * 10, granule) for _ in range(packets // 10))


def flac(frames: int, *, hertz: int = 16_000, total: int | None = None) -> bytes:
    """Frames of 4,096 samples, 200 bytes each. `total`: the samples that its header claims."""
    samples = frames * 4_096 if total is None else total
    info = struct.pack(">HH", 4_096, 4_096) + bytes(6)
    info += (hertz << 44 | 15 << 36 | samples).to_bytes(8, "big") + bytes(16)
    return b"fLaC\x80\0\0\x22" + info + (b"\xff\xf8" + b"\x55" * 198) * frames


def _box(name: bytes, *content: bytes) -> bytes:
    data = b"".join(content)
    return struct.pack(">I", 8 + len(data)) + name + data


def mp4(
    samples: int, *, claimed_ms: int, hertz: int = 16_000, fragmented: bool = False, moov_last: bool = True
) -> bytes:
    """An AAC track of 1,024 samples of sound a sample; its headers claim `claimed_ms`."""
    entry = _box(b"mp4a", bytes(24) + struct.pack(">HH", hertz, 0))
    table = _box(
        b"stbl",
        _box(b"stsd", struct.pack(">II", 0, 1) + entry),
        _box(b"stsz", struct.pack(">III", 0, 0, samples) + bytes(4 * min(samples, 50))),
    )
    media = _box(b"mdia", _box(b"mdhd", struct.pack(">IIIII", 0, 0, 0, 1_000, claimed_ms)), _box(b"minf", table))
    moov = _box(
        b"moov",
        _box(b"mvhd", struct.pack(">IIIII", 0, 0, 0, 1_000, claimed_ms) + bytes(80)),
        _box(b"trak", media),
        *([_box(b"mvex", bytes(8))] if fragmented else []),
    )
    sound = _box(b"mdat", b"\x55" * (samples * 40))
    return _box(b"ftyp", b"M4A \0\0\0\0") + (sound + moov if moov_last else moov + sound)


def _element(identity: bytes, content: bytes, *, unknown: bool = False) -> bytes:
    size = b"\x01" + b"\xff" * 7 if unknown else struct.pack(">Q", 1 << 56 | len(content))
    return identity + size + content


def webm(packets: int, *, codec: bytes = b"A_OPUS", duration_ms: float | None = None, live: bool = False) -> bytes:
    """Packets of 20 ms, 50 a cluster. `live`: sizes are not known, as a browser records."""
    clusters = b""
    for first in range(0, packets, 50):
        blocks = b"".join(
            _element(b"\xa3", b"\x81" + struct.pack(">h", 20 * number) + b"\x80" + b"\x78" + b"\x55" * 50)
            for number in range(min(50, packets - first))
        )
        time = _element(b"\xe7", struct.pack(">I", 20 * first))
        clusters += _element(b"\x1f\x43\xb6\x75", time + blocks, unknown=live)
    info = (
        b""
        if duration_ms is None
        else _element(b"\x15\x49\xa9\x66", _element(b"\x44\x89", struct.pack(">d", duration_ms)))
    )
    tracks = _element(b"\x16\x54\xae\x6b", b"\x86\x86" + codec)
    head = _element(b"\x1a\x45\xdf\xa3", b"\x42\x82\x84webm")
    return head + _element(b"\x18\x53\x80\x67", info + tracks + clusters, unknown=live)
