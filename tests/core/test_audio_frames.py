"""Frames are counted the same whatever pieces they come in."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.audio_frames import FrameWalker, opus_microseconds
from tests.support.sounds import aac, mp3


def walked(data: bytes, cuts: list[int]) -> tuple[int, int, int]:
    walker = FrameWalker()
    at = 0
    for cut in [*sorted(cuts), len(data)]:
        walker.feed(data[at:cut])
        at = max(at, cut)
    walker.finish()
    return walker.frames, walker.nanoseconds, walker.junk_bytes


@pytest.mark.parametrize(("data", "frames", "milliseconds"), [(mp3(50), 50, 1_200), (aac(75), 75, 3_200)])
def test_frames_add_up(data: bytes, frames: int, milliseconds: int) -> None:
    assert walked(data, [])[0] == frames
    assert abs(walked(data, [])[1] - milliseconds * 10**6) < 1_000
    assert walked(data, list(range(0, len(data), 7))) == walked(data, [])


@settings(max_examples=100, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from([mp3(1), mp3(3), aac(2), b"\xff", b"\xff\xfb", b"noise" * 5, bytes(9)]), max_size=8
    ),
    cuts=st.lists(st.integers(0, 3_000), max_size=10),
)
def test_any_split_counts_the_same(pieces: list[bytes], cuts: list[int]) -> None:
    data = b"".join(pieces)
    assert walked(data, cuts) == walked(data, [])


def test_noise_does_not_keep_the_loop() -> None:
    noise = b"\xff\xf1" * 1_000_000
    assert walked(mp3(2) + noise, []) == (2, 48 * 10**6, len(noise))


@pytest.mark.parametrize(
    ("packet", "microseconds"),
    [
        (b"", 0),
        (b"\x00", 10_000),
        (b"\x18", 60_000),
        (b"\x19", 120_000),
        (b"\x80", 2_500),
        (b"\xfb\x06", 120_000),
        (b"\xfb\x3f", 120_000),
        (b"\x83\x30", 120_000),
        (b"\x83", 0),
    ],
)
def test_packets_of_opus(packet: bytes, microseconds: int) -> None:
    assert opus_microseconds(packet) == microseconds
