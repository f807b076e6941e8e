"""What an image counts at most, by model, and how large it is by its header."""

import pytest

from gateway.core.image_tokens import IMAGE_TOKENS_MAX, Size, image_size, image_tokens_max
from tests.support.media_files import gif, jpeg, png, webp


@pytest.mark.parametrize(
    ("model", "detail", "size", "tokens"),
    [
        ("gpt-5.6", "auto", None, 36_000),
        ("gpt-6", "high", (1_024, 1_024), 1_229),
        ("gpt-5.6", "low", None, 308),
        ("gpt-5.5", "original", None, 16_200),
        ("gpt-5.4", "high", None, 4_050),
        ("gpt-5-mini", "auto", None, 2_489),
        ("gpt-5-nano", "auto", None, 3_779),
        ("gpt-4.1-mini-2025-04-14", "auto", (33, 31), 4),
        ("gpt-4.1-nano", "auto", (1, 1), 3),
        ("o4-mini", "auto", (100_000, 100_000), 2_642),
        ("gpt-4o", "auto", None, 1_445),
        ("openai/gpt-4o-2024-08-06", "low", None, 85),
        ("gpt-4.1", "high", (1, 1), 1_445),
        ("gpt-5-chat-latest", "auto", None, 1_190),
        ("o3", "auto", None, 1_275),
        ("computer-use-preview", "auto", None, 1_097),
        ("gpt-4o-mini", "auto", None, 48_169),
        ("gpt-4o-mini", "low", None, 2_833),
        # Anything else may be anything.
        ("gpt-4o-audio-preview", "low", (1, 1), IMAGE_TOKENS_MAX),
        ("gpt-5.2", "low", None, IMAGE_TOKENS_MAX),
        ("my-gpt-4o", "auto", None, IMAGE_TOKENS_MAX),
        ("llama", "low", None, IMAGE_TOKENS_MAX),
    ],
)
def test_tokens_of_an_image(model: str, detail: str, size: Size | None, tokens: int) -> None:
    assert image_tokens_max(model, detail, size) == tokens


@pytest.mark.parametrize(
    "header",
    [png(640, 480), jpeg(640, 480), jpeg(640, 480, before=60_000), gif(640, 480), webp(640, 480),
     webp(640, 480, b"VP8 "), webp(640, 480, b"VP8L")],
    ids=["PNG", "JPEG", "JPEG with a preview", "GIF", "WebP", "lossy WebP", "lossless WebP"],
)  # fmt: skip
def test_the_size_is_read_from_the_header_and_from_no_part_of_it(header: bytes) -> None:
    assert image_size(header) == (640, 480)
    for end in range(0, len(header) - 1, max(1, len(header) // 50)):
        assert image_size(header[:end]) in (None, (640, 480))


@pytest.mark.parametrize(
    "header",
    [b"", b"%PDF-1.7", png(0, 480), gif(640, 0), jpeg(0, 480), b"\xff\xd8\0\0\0\0", b"RIFF\0\0\0\0WAVEfmt ",
     b"RIFF\0\0\0\0WEBPVP8 \0\0\0\0" + bytes(20), b"\xff\xd8" + b"\xff" * 50],
)  # fmt: skip
def test_what_says_nothing_has_no_size(header: bytes) -> None:
    assert image_size(header) is None
