"""The most tokens that an image can count as input, by what is published of the models; and its size, from its header.

Source: the metering reference, section 6.3. A model of which nothing is known here has the dearest image of all.
"""

import re
import struct
from typing import NamedTuple

Size = tuple[int, int]

# 30,000 patches at 1.62 tokens; the dearest tiles come to 48,169.
IMAGE_TOKENS_MAX = 48_600
# How much of a file is worth looking at: a JPEG may have its size behind a preview and a colour profile.
HEADER_BYTES_MAX = 98_304

_PATCH_PIXELS = 32
_LOW_PATCHES = 256
_TILES_MAX = 8


class _Tiles(NamedTuple):
    base: int
    each: int

    def tokens_max(self, detail: str, size: Size | None) -> int:  # noqa: ARG002 - how it is scaled is not certain
        return self.base if detail == "low" else self.base + _TILES_MAX * self.each


class _Patches(NamedTuple):
    most: int
    most_high: int
    thousandths: int  # tokens for a thousand patches

    def tokens_max(self, detail: str, size: Size | None) -> int:
        patches = {"low": _LOW_PATCHES, "high": self.most_high}.get(detail, self.most)
        if size is not None:
            across, down = (-(-pixels // _PATCH_PIXELS) for pixels in size)
            patches = min(patches, across * down)
        return -(-patches * self.thousandths // 1000)


_DATED = r"(-\d{4}-\d{2}-\d{2}|-latest)?"
_FAMILIES: tuple[tuple[re.Pattern[str], _Tiles | _Patches], ...] = tuple(
    (re.compile(rf"(openai/)?({pattern}){_DATED}"), rule)
    for pattern, rule in (
        (r"gpt-(5\.6|6)(-(mini|nano|pro|luna))?", _Patches(30_000, 30_000, 1_200)),
        (r"gpt-5\.[45]", _Patches(10_000, 2_500, 1_620)),
        (r"gpt-(5\.4|5|4\.1)-mini", _Patches(1_536, 1_536, 1_620)),
        (r"gpt-(5\.4|5|4\.1)-nano", _Patches(1_536, 1_536, 2_460)),
        (r"o4-mini", _Patches(1_536, 1_536, 1_720)),
        (r"gpt-4o|gpt-4\.1|gpt-4\.5-preview", _Tiles(85, 170)),
        (r"gpt-5|gpt-5-chat", _Tiles(70, 140)),
        (r"o1|o3", _Tiles(75, 150)),
        (r"computer-use-preview", _Tiles(65, 129)),
        (r"gpt-4o-mini", _Tiles(2_833, 5_667)),
    )
)


def image_tokens_max(model: str, detail: str = "auto", size: Size | None = None) -> int:
    """The most that one image can count for `model`; `size` is its width and height, where they are known."""
    for family, rule in _FAMILIES:
        if family.fullmatch(model):
            return rule.tokens_max(detail, size)
    return IMAGE_TOKENS_MAX


def image_size(header: bytes) -> Size | None:
    """Width and height of a PNG, JPEG, GIF or WebP from its first bytes; None where they do not say."""
    try:
        if header.startswith(b"\x89PNG\r\n\x1a\n") and header[12:16] == b"IHDR":
            size = struct.unpack_from(">II", header, 16)
        elif header.startswith((b"GIF87a", b"GIF89a")):
            size = struct.unpack_from("<HH", header, 6)
        elif header.startswith(b"\xff\xd8"):
            return _jpeg_size(header)
        elif header.startswith(b"RIFF") and header[8:12] == b"WEBP":
            return _webp_size(header)
        else:
            return None
    except struct.error:
        return None
    return (size[0], size[1]) if all(size) else None


def _jpeg_size(header: bytes) -> Size | None:
    """From its first frame; segments before that are stepped over. Raises struct.error where the header ends early."""
    at = 2
    while at < len(header):
        mark, kind, length = struct.unpack_from(">BBH", header, at)
        if mark != 0xFF:
            return None
        if kind == 0xFF:  # a byte of filling
            at += 1
        elif 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", header, at + 5)
            return (width, height) if width and height else None
        else:
            at += 2 + length
    return None


def _webp_size(header: bytes) -> Size | None:
    """Raises struct.error where the header ends early."""
    kind = header[12:16]
    if kind == b"VP8X":
        low = struct.unpack_from("<BBBBBB", header, 24)
        return 1 + low[0] + (low[1] << 8) + (low[2] << 16), 1 + low[3] + (low[4] << 8) + (low[5] << 16)
    if kind == b"VP8 " and header[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", header, 26)
        return (width & 0x3FFF, height & 0x3FFF) if width & 0x3FFF and height & 0x3FFF else None
    if kind == b"VP8L" and header[20:21] == b"\x2f":
        (bits,) = struct.unpack_from("<I", header, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return None
