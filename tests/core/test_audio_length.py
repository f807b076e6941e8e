"""Single formats: see test_audio_containers.py for whole files of every kind."""

import pytest

from gateway.core.audio_length import NotAudio, Source, frames_length, unknown_length, wav_length, without_id3
from tests.support.sounds import mp3, wav


def source_of(data: bytes) -> Source:
    return Source(lambda at, size: data[at : at + size], len(data))


def test_of_what_is_unknown_the_bound_is_four_times_the_estimate() -> None:
    assert unknown_length(8_000) == (8_000, 2_000)
    assert unknown_length(0) == (1, 1)


def test_a_compressed_wav_is_bounded_by_its_bytes() -> None:
    # GSM 6.10 says 1,625 bytes a second.
    file = wav(10_000).replace(b"\x10\0\0\0\x01\0", b"\x10\0\0\0\x31\0", 1)
    file = file[:28] + (1_625).to_bytes(4, "little") + file[32:]
    most, estimate = wav_length(source_of(file), 0)
    assert (most, estimate) == (320_000, 196_924)


@pytest.mark.parametrize("junk", [b"", b"\xff\xff\xff", b"\x55" * 1_000])
def test_junk_between_frames_counts_at_the_lowest_rate(junk: bytes) -> None:
    most, estimate = frames_length(source_of(mp3(100) + junk + mp3(100)), 0)
    assert estimate == 4_800
    assert 4_800 <= most <= 4_800 + len(junk)


def test_sound_behind_noise_is_charged_for() -> None:
    hidden = mp3(1_000)
    most, estimate = frames_length(source_of(mp3(2) + b"\xff" * 5_000 + hidden), 0)
    assert most >= 24_000
    assert estimate >= 24_000


def test_one_frame_in_noise_is_no_sound() -> None:
    with pytest.raises(NotAudio):
        frames_length(source_of(bytes(500) + mp3(1) + bytes(500)), 0)


def test_a_tag_is_passed_over_where_something_follows_it() -> None:
    assert without_id3(source_of(mp3(1, tag_bytes=1_000))) == 1_010
    assert without_id3(source_of(mp3(1))) == 0
    assert without_id3(source_of(b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + mp3(1))) == 10
