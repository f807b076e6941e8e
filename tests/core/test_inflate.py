"""Undoing an encoding: the same bytes however they are split, and never more memory than allowed."""

import gzip
import tracemalloc
import zlib

import pytest

from gateway.core import inflate
from gateway.core.inflate import Inflater, UnknownEncoding

TEXT = b'{"usage": {"prompt_tokens": 1}}' * 40
ENCODED = {
    "gzip": gzip.compress(TEXT),
    "X-GZIP": gzip.compress(TEXT),
    "deflate": zlib.compress(TEXT),
    "Gzip": gzip.compress(TEXT[:100]) + gzip.compress(b"") + gzip.compress(TEXT[100:]),
}


def inflater_of(encoding: str) -> Inflater:
    inflater = Inflater.of(encoding)
    assert inflater is not None
    return inflater


@pytest.mark.parametrize("encoding", ENCODED)
@pytest.mark.parametrize("step_bytes", [1, 7, 10_000])
def test_any_split_gives_the_same(encoding: str, step_bytes: int) -> None:
    data, inflater = ENCODED[encoding], inflater_of(encoding)
    pieces = [data[start : start + step_bytes] for start in range(0, len(data), step_bytes)]
    assert b"".join(inflater.feed(piece) for piece in [b"", *pieces, b""]) == TEXT


@pytest.mark.parametrize("encoding", [None, "", "identity", "Identity"])
def test_no_encoding_needs_no_inflater(encoding: str | None) -> None:
    assert Inflater.of(encoding) is None


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, br", "nonsense"])
def test_an_encoding_that_is_not_ours_is_named(encoding: str) -> None:
    with pytest.raises(UnknownEncoding, match=encoding):
        Inflater.of(encoding)


@pytest.mark.parametrize("data", [b"not gzip", ENCODED["gzip"][:-8] + b"\0" * 8, ENCODED["gzip"] + b"rubbish"])
def test_damage_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="damaged content encoding"):
        inflater_of("gzip").feed(data)


def test_a_bomb_is_refused_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflate, "_OUT_BYTES_MAX", 2**16)
    bomb = gzip.compress(bytes(2**24))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="expands too far"):
            inflater_of("gzip").feed(bomb)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert inflater_of("gzip").feed(gzip.compress(bytes(2**15))) == bytes(2**15)
