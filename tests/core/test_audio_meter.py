"""Sound is measured as it passes, whatever pieces it comes in."""

import pytest

from gateway.core.audio_meter import AudioMeter
from tests.support.sounds import aac, flac, mp3, opus, wav

SOUNDS = {
    "mp3": (mp3(250), 6_000),
    "mp3 with a tag": (mp3(250, tag_bytes=500), 6_000),
    "aac": (aac(75), 3_200),
    "opus": (opus(250), 5_000),
    "flac": (flac(10), 2_560),
    "wav": (wav(2_000, hertz=24_000), 2_000),
    "wav of unknown length": (wav(2_000, claimed=0xFFFFFFFF), 2_000),
    "pcm": (bytes(48 * 1_500), 1_500),
}


@pytest.mark.parametrize("name", SOUNDS)
@pytest.mark.parametrize("piece", [1, 997, 10**9])
def test_how_long_it_lasts(name: str, piece: int) -> None:
    sound, milliseconds = SOUNDS[name]
    sound = sound if piece > 1 else sound[:20_000]
    meter = AudioMeter()
    for at in range(0, len(sound), piece):
        meter.feed(sound[at : at + piece])
    if piece > 1:
        assert abs(meter.milliseconds - milliseconds) <= 1
    whole = AudioMeter()
    whole.feed(sound)
    assert whole.milliseconds == meter.milliseconds


def test_too_little_to_tell_and_nothing() -> None:
    meter = AudioMeter()
    assert meter.milliseconds == 0
    meter.feed(b"ID3")
    assert meter.milliseconds == 1
    pcm = AudioMeter(is_pcm=True)
    pcm.feed(b"\xff\xfb" * 24)
    assert pcm.milliseconds == 1


def test_what_passed_unseen_lasts_as_its_bytes_do() -> None:
    meter = AudioMeter()
    meter.feed(mp3(10))
    meter.skip(160_000 - 3_840)
    assert meter.milliseconds == 10_000
