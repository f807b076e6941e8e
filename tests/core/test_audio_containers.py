"""Files of known length: the bound is never less, the estimate is close, and a lying header gains nothing."""

import pytest

from gateway.core.audio_containers import audio_length
from gateway.core.audio_length import NotAudio
from tests.support.sounds import aac, flac, mp3, mp4, opus, vorbis, wav, webm

# name -> (file, how long it lasts in milliseconds, the bound in parts of a hundred of that)
HONEST = {
    "wav": (wav(3_000), 3_000, 100),
    "wav 8 bits stereo": (wav(2_000, hertz=8_000, channels=2, bits=8), 2_000, 100),
    "wav streamed": (wav(1_000, claimed=0xFFFFFFFF), 1_000, 100),
    "mp3": (mp3(500), 12_000, 100),
    "mp3 with a picture": (mp3(500, tag_bytes=300_000), 12_000, 100),
    "aac": (aac(375), 16_000, 100),
    "opus": (opus(1_000), 20_000, 100),
    "opus 60 ms": (opus(100, toc=0x18), 6_000, 100),
    "vorbis": (vorbis(470, granule=470 * 1_024), 10_026, 101),
    "flac": (flac(40), 10_240, 100),
    "flac of unknown length": (flac(40, total=0), 10_240, 100),
    "m4a": (mp4(200, claimed_ms=12_800), 12_800, 100),
    "m4a for the web": (mp4(200, claimed_ms=12_800, moov_last=False), 12_800, 100),
    "m4a HE-AAC": (mp4(200, claimed_ms=25_600), 25_600, 100),
    "webm": (webm(500, duration_ms=10_000), 10_000, 100),
    "webm vorbis": (webm(500, codec=b"A_VORBIS", duration_ms=10_000), 10_000, 101),
}


@pytest.mark.parametrize("name", HONEST)
def test_the_length_of_an_honest_file(name: str) -> None:
    file, milliseconds, percent = HONEST[name]
    most, estimate = audio_length(lambda at, size: file[at : at + size], len(file))
    assert milliseconds <= most + 1 <= milliseconds * percent // 100 + 2
    assert abs(estimate - milliseconds) <= milliseconds // 50


# What each lasts when it is played, whatever its header says.
LIARS = {
    "wav claims 0.1 s": (wav(60_000, claimed=3_200), 60_000),
    "opus claims 1 ms": (opus(3_000, granule=48), 60_000),
    "opus of 120 ms packets": (opus(500, toc=0x1B, granule=48), 30_000),
    "vorbis claims 1 ms": (vorbis(470, granule=48), 10_026),
    "flac claims 1 sample": (flac(40, total=1), 10_240),
    "m4a claims 1 ms": (mp4(200, claimed_ms=1), 12_800),
    "m4a in fragments": (mp4(200, claimed_ms=0, fragmented=True), 4_000),
    "webm claims 1 ms": (webm(500, duration_ms=1), 10_000),
    "webm live": (webm(500, live=True), 10_000),
}


@pytest.mark.parametrize("name", LIARS)
def test_a_lying_header_does_not_shorten_the_bound(name: str) -> None:
    file, milliseconds = LIARS[name]
    most, _ = audio_length(lambda at, size: file[at : at + size], len(file))
    assert most >= milliseconds - 1


@pytest.mark.parametrize("name", [name for name in LIARS if "wav" not in name and "vorbis" not in name])
def test_nor_by_much_what_is_charged_without_usage(name: str) -> None:
    file, milliseconds = LIARS[name]
    _, estimate = audio_length(lambda at, size: file[at : at + size], len(file))
    assert estimate >= milliseconds // 2 - 1


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"\0",
        b"RIFF",
        b"hello, world " * 1_000,
        b'{"file": "speech.wav"}',
        b"\xff" * 10_000,
        bytes(100_000),
        b"\x89PNG\r\n\x1a\n" + bytes(1_000),
        b"%PDF-1.7\n" + bytes(1_000),
        wav(10)[:30],
        wav(10, channels=0),
        wav(10).replace(b"data", b"dada"),
        flac(0),
        mp4(0, claimed_ms=0),
        webm(0),
        b"ID3\x04\0\0\0\0\0\x10" + bytes(1_000),
    ],
    ids=lambda file: f"{len(file)} {file[:8]!r}",
)
def test_what_is_no_sound(file: bytes) -> None:
    with pytest.raises(NotAudio):
        audio_length(lambda at, size: file[at : at + size], len(file))


def test_sound_cut_anywhere_is_read_or_refused() -> None:
    for file, _, _ in HONEST.values():
        for cut in range(1, len(file), max(1, len(file) // 40)):
            data = file[:cut]
            try:
                most, estimate = audio_length(lambda at, size, data=data: data[at : at + size], cut)  # type: ignore[misc]
            except NotAudio:
                continue
            assert most >= estimate >= 1


def test_a_large_file_is_read_in_small_pieces() -> None:
    file = mp3(20_000)
    sizes: list[int] = []

    def read(at: int, size: int) -> bytes:
        sizes.append(size)
        return file[at : at + size]

    assert audio_length(read, len(file)).milliseconds_max == 480_000
    assert max(sizes) <= 2**18
