"""Ten tokens for each second of sound, and never fewer than a decoder would hear."""

import base64

import pytest

from gateway.endpoints.chat_sound import sound_tokens
from tests.support.media_files import data_url, wav


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.mark.parametrize(
    ("content", "seconds"),
    [
        (wav(3), 3.0),
        (wav(3, samples=8_000, bits=8, tag=7), 3.0),
        (wav(2, samples=48_000, channels=2), 2.0),
        (wav(60, samples=1_000, bits=8), 60.0),
    ],
)
def test_a_wav_lasts_as_long_as_it_sounds(content: bytes, seconds: float) -> None:
    tokens = sound_tokens(encoded(content))
    assert seconds * 10 <= tokens.most <= seconds * 10 * 1.01 + 1
    assert tokens.estimate == tokens.most
    wrapped = base64.encodebytes(content).decode()
    assert tokens.most <= sound_tokens(wrapped).most <= tokens.most * 1.02 + 1
    assert tokens.most <= sound_tokens(data_url(content, "audio/wav")).most <= tokens.most + 1


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfb" * 5_000,
        wav(0.2, tag=0x11)[:9_600] + bytes(400),
        b"RIFF\0\0\0\0WAVE" + b"fmt \x10\0\0\0" + bytes(16) + bytes(9_960),
        bytes(10_000),
    ],
    ids=["MP3", "compressed", "no rate", "raw"],
)
def test_anything_else_lasts_as_long_as_its_bytes_may(content: bytes) -> None:
    tokens = sound_tokens(encoded(content))
    assert 95 <= tokens.most <= 102
    assert tokens.estimate == -(-tokens.most // 4)


@pytest.mark.parametrize("data", ["https://example.com/a.wav", "äöü!", "file:///a", "{}[]"])
def test_what_is_no_file_is_refused(data: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        sound_tokens(data)


def test_nothing_is_nothing() -> None:
    assert sound_tokens("") == (0, 0)
