"""Beginnings of image files, and sound, as a client would send them."""

import base64
import struct


def png(width: int, height: int) -> bytes:
    """The header of a PNG of this size."""
    return b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR" + struct.pack(">II", width, height) + b"\x08\x06\0\0\0"


def jpeg(width: int, height: int, *, before: int = 0) -> bytes:
    """A JPEG as far as its first frame, with `before` bytes of application data."""
    segment = b"\xff\xe1" + struct.pack(">H", before + 2) + b"\xff\xc0" * (before // 2) + b"\0" * (before % 2)
    return b"\xff\xd8" + segment + b"\xff\xc0\0\x11\x08" + struct.pack(">HH", height, width) + b"\x03"


def gif(width: int, height: int) -> bytes:
    """The header of a GIF of this size."""
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\xf7"


def webp(width: int, height: int, kind: bytes = b"VP8X") -> bytes:
    """The header of a WebP of this size: extended, lossy or lossless."""
    if kind == b"VP8X":
        rest = b"\0\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    elif kind == b"VP8 ":
        rest = b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height)
    else:
        rest = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14)
    return b"RIFF\0\0\0\0WEBP" + kind + b"\0\0\0\0" + rest


def wav(seconds: float, *, samples: int = 24_000, channels: int = 1, bits: int = 16, tag: int = 1) -> bytes:
    """A WAV of silence; `samples` a second."""
    block = channels * bits // 8
    data = bytes(int(seconds * samples) * block)
    form = struct.pack("<HHIIHH", tag, channels, samples, samples * block, block, bits)
    chunks = b"LIST\x04\0\0\0INFOfmt \x10\0\0\0" + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WAVE" + chunks


def data_url(content: bytes, kind: str = "image/png") -> str:
    """As it stands in a request."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
