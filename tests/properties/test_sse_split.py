"""Wherever the reads of a stream fall, the client gets the same bytes and the meter sees the same usage.

Goal: no byte lost, moved or added, and no usage, error or end missed, at any split. Method: each recording in each
spelling of the wire, cut at every offset, byte by byte, and at random; the oracle removes whole events from the file.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.sse import Kind, SseSplitter
from gateway.core.usage import read_token_usage
from gateway.endpoints.chat_stream import ChatStream
from tests.support.recordings import BOM, LIMITS, STREAMS, WIRE_FORMS, Stream

STREAM_BY_NAME = {stream.name: stream for stream in STREAMS}
# One stream of each kind: usage-only chunk, more events after it, usage after the end, cumulative usage, error.
KINDS = ("openai_usage", "xai", "usage_after_end", "vllm_continuous", "openrouter_error")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a client and a meter see of a stream."""

    relayed: bytes
    withheld: bytes
    quantities: object
    output_tokens_estimate: int
    ended: bool
    failed: bool


def read(pieces: Iterable[bytes], *, remove_usage: bool) -> Outcome:
    reader = ChatStream(remove_usage=remove_usage)
    relayed = b"".join(reader.feed(piece) for piece in pieces)
    withheld = reader.finish()
    reading = None if reader.usage is None else read_token_usage(reader.usage, LIMITS)
    quantities = None if reading is None else reading.quantities
    return Outcome(relayed, withheld, quantities, reader.output_tokens_estimate(), reader.ended, reader.failed)


def expected(stream: Stream, form: str, *, remove_usage: bool) -> tuple[bytes, bytes]:
    """The bytes that go in and those that must come out, in one spelling."""
    spell = WIRE_FORMS[form]
    return (
        b"".join(map(spell, stream.events)),
        b"".join(map(spell, stream.kept(remove_usage=remove_usage))),
    )


def check(stream: Stream, outcome: Outcome, bytes_out: bytes) -> None:
    assert outcome.relayed + outcome.withheld == bytes_out
    assert outcome.quantities == stream.quantities
    assert outcome.output_tokens_estimate == stream.output_tokens_estimate
    assert (outcome.ended, outcome.failed) == (stream.ended, stream.failed)
    assert b"[DONE]" not in outcome.relayed, "the end waits for the settle"


@pytest.mark.parametrize("remove_usage", [False, True])
@pytest.mark.parametrize("form", WIRE_FORMS)
@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.name)
def test_one_read_and_one_byte_at_a_time(stream: Stream, form: str, remove_usage: bool) -> None:
    bytes_in, bytes_out = expected(stream, form, remove_usage=remove_usage)
    whole = read([bytes_in], remove_usage=remove_usage)
    check(stream, whole, bytes_out)
    assert read((bytes_in[at : at + 1] for at in range(len(bytes_in))), remove_usage=remove_usage) == whole
    check(stream, read(map(WIRE_FORMS[form], stream.events), remove_usage=remove_usage), bytes_out)


@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.name)
def test_cut_in_two_at_every_offset(stream: Stream) -> None:
    cut_at_every_offset(stream, "lf", step=1)


@pytest.mark.parametrize("form", [form for form in WIRE_FORMS if form != "lf"])
@pytest.mark.parametrize("name", KINDS)
def test_cut_in_two_in_other_spellings(name: str, form: str) -> None:
    # Offsets near line ends are where spellings differ; inside a line one in thirteen is enough.
    cut_at_every_offset(STREAM_BY_NAME[name], form, step=13)


def cut_at_every_offset(stream: Stream, form: str, step: int) -> None:
    for remove_usage in (False, True) if stream.usage_only else (True,):
        bytes_in, bytes_out = expected(stream, form, remove_usage=remove_usage)
        whole = read([bytes_in], remove_usage=remove_usage)
        check(stream, whole, bytes_out)
        for at in range(len(bytes_in)):
            around = bytes_in[max(0, at - 2) : at + 2]
            if at % step == 0 or b"\r" in around or b"\n" in around:
                assert read((bytes_in[:at], bytes_in[at:]), remove_usage=remove_usage) == whole, f"cut at {at}"


@settings(max_examples=150, deadline=None)
@given(
    stream=st.sampled_from(STREAMS),
    form=st.sampled_from(sorted(WIRE_FORMS)),
    remove_usage=st.booleans(),
    bom=st.booleans(),
    cuts=st.lists(st.floats(0, 1, allow_nan=False), max_size=30),
)
def test_cut_at_random(stream: Stream, form: str, remove_usage: bool, bom: bool, cuts: list[float]) -> None:
    bytes_in, bytes_out = expected(stream, form, remove_usage=remove_usage)
    if bom:
        bytes_in, bytes_out = BOM + bytes_in, BOM + bytes_out
    check(stream, read(cut(bytes_in, cuts), remove_usage=remove_usage), bytes_out)


@settings(max_examples=200, deadline=None)
@given(
    lines=st.lists(
        st.sampled_from(
            (
                b"",
                b"data: {",
                b'data:"choices":[],',
                b'data: "usage":{"prompt_tokens":1,"completion_tokens":1}}',
                b": comment",
                b"data: [DONE]",
                b"data:x",
            )
        ),
        max_size=14,
    ),
    line_ends=st.lists(st.sampled_from((b"\n", b"\r\n", b"\r")), min_size=14, max_size=14),
    remove_usage=st.booleans(),
    event_bytes_max=st.sampled_from((4, 9, 40)),
    cuts=st.lists(st.floats(0, 1, allow_nan=False), max_size=12),
)
def test_any_lines_cut_anywhere(
    lines: list[bytes], line_ends: list[bytes], remove_usage: bool, event_bytes_max: int, cuts: list[float]
) -> None:
    data = b"".join(line + line_end for line, line_end in zip(lines, line_ends, strict=False))
    assert read(cut(data, cuts), remove_usage=remove_usage) == read([data], remove_usage=remove_usage)
    splitter = SseSplitter(event_bytes_max)
    pieces = [piece for read_ in cut(data, cuts) for piece in splitter.feed(read_)]
    pieces_of_one_read = SseSplitter(event_bytes_max).feed(data)
    rest = splitter.rest()
    assert b"".join(piece.data for piece in pieces) + rest == data
    for kind in (Kind.EVENTS, Kind.OPAQUE):
        assert joined(pieces, kind) == joined(pieces_of_one_read, kind)


def joined(pieces: Iterable[tuple[Kind, bytes]], wanted: Kind) -> bytes:
    """The bytes of one kind; a second half of a CRLF belongs to what is before it."""
    before = Kind.EVENTS
    parts = []
    for kind, data in pieces:
        before = before if kind is Kind.LINE_FEED else kind
        if before is wanted:
            parts.append(data)
    return b"".join(parts)


def cut(data: bytes, cuts: list[float]) -> list[bytes]:
    offsets = [0, *sorted(int(at * len(data)) for at in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(offsets)]
