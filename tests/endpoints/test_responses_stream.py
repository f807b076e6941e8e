"""Wherever the reads of a stream fall, the client gets the same bytes and the meter sees the same id, usage and end."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.sse import EVENT_BYTES_MAX
from gateway.endpoints.endpoint import Made, MakesResponse, StreamReader
from gateway.endpoints.responses_stream import UNCOUNTED_BYTES_MAX, WITHHELD_BYTES_MAX, ResponsesStream
from tests.support.responses import RESPONSE_ID, event, message_item, response_json, stream_events, usage_json

USAGE = usage_json(36, 4)
SEARCH = {"type": "web_search_call", "action": {"type": "search"}}
LAST = response_json(usage=USAGE, output=[message_item("Say something kind.")])
LARGE = {**LAST, "output": [message_item("x" * EVENT_BYTES_MAX)]}
FAILED = response_json(status="failed", error={"code": "server_error", "message": "No."})
FLAT = event("error", 5, code="server_error", message="No.", param=None)
NESTED = event("error", 5, error={"type": "server_error", "code": "x", "message": "No.", "param": None})
WIRE_FORMS: dict[str, Callable[[bytes], bytes]] = {
    "lf": lambda data: data,
    "crlf": lambda data: data.replace(b"\n", b"\r\n"),
    "cr": lambda data: data.replace(b"\n", b"\r"),
    "no space": lambda data: data.replace(b"data: ", b"data:"),
    "no names": lambda data: b"\n".join(line for line in data.split(b"\n") if not line.startswith(b"event:")),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a client and a meter see of a stream."""

    relayed: bytes
    withheld: bytes
    usage: Mapping[str, object] | None
    tokens: int
    ended: bool
    failed: bool
    made: Made | None
    tier: str


def read(pieces: Iterable[bytes]) -> Outcome:
    reader = ResponsesStream()
    relayed = b"".join(reader.feed(piece) for piece in pieces)
    withheld = reader.finish()
    tokens = reader.output_tokens_estimate()
    return Outcome(
        relayed, withheld, reader.usage, tokens, reader.ended, reader.failed, reader.made, reader.service_tier
    )


def tokens_of(usage: Mapping[str, object] | None) -> object:
    return None if usage is None else (usage["input_tokens"], usage["output_tokens"])


ENDED = Made(RESPONSE_ID, True)
BEGUN = Made(RESPONSE_ID, False)
# name -> (events, usage, tokens, ended, failed, made)
STREAMS: dict[str, tuple[list[bytes], object, int, bool, bool, Made | None]] = {
    # Nineteen bytes in four deltas.
    "completed": (stream_events(LAST), (36, 4), 5, True, False, ENDED),
    "incomplete": (stream_events({**LAST, "status": "incomplete"}), (36, 4), 5, True, False, ENDED),
    "failed": (stream_events(FAILED, ()), None, 0, True, True, ENDED),
    "failed, partly used": (stream_events({**FAILED, "usage": USAGE}), (36, 4), 5, True, True, ENDED),
    "tools": (stream_events(LAST, items=[SEARCH]), (36, 4), 5, True, False, ENDED),
    "a flat error": ([*stream_events(LAST)[:5], FLAT], None, 4, False, True, BEGUN),
    "a nested error": ([*stream_events(LAST)[:5], NESTED], None, 4, False, True, BEGUN),
    "cut off": (stream_events(LAST)[:5], None, 4, False, False, BEGUN),
    "[DONE]": ([*stream_events(LAST), b"data: [DONE]\n\n"], (36, 4), 5, True, False, ENDED),
    "[DONE] alone": ([*stream_events(LAST)[:6], b"data: [DONE]\n\n"], None, 5, True, False, BEGUN),
    "our words": (stream_events(LAST, ["response.completed", " error", ' "usage":']), (36, 4), 9, True, False, ENDED),
}  # fmt: skip


def check(name: str, outcome: Outcome, data: bytes) -> None:
    _, usage, tokens, ended, failed, made = STREAMS[name]
    assert outcome.relayed + outcome.withheld == data
    assert (tokens_of(outcome.usage), outcome.tokens) == (usage, tokens)
    assert (outcome.ended, outcome.failed, outcome.made) == (ended, failed, made)
    if usage is not None:
        assert b"total_tokens" not in outcome.relayed, "the end waits for the settle"
        assert outcome.tier == "default"


def test_it_is_a_reader() -> None:
    reader: StreamReader = ResponsesStream()
    assert isinstance(reader, MakesResponse)


@pytest.mark.parametrize("form", WIRE_FORMS)
@pytest.mark.parametrize("name", STREAMS)
def test_one_read_and_one_byte_at_a_time(name: str, form: str) -> None:
    data = WIRE_FORMS[form](b"".join(STREAMS[name][0]))
    whole = read([data])
    check(name, whole, data)
    assert read(data[at : at + 1] for at in range(len(data))) == whole
    check(name, read(map(WIRE_FORMS[form], STREAMS[name][0])), data)


@pytest.mark.parametrize("form", ["lf", "crlf"])
@pytest.mark.parametrize("name", ["completed", "failed", "[DONE]"])
def test_cut_in_two_at_every_offset(name: str, form: str) -> None:
    data = WIRE_FORMS[form](b"".join(STREAMS[name][0]))
    whole = read([data])
    for at in range(len(data)):
        # Offsets near line ends are where spellings differ; inside a line one in eleven is enough.
        around = data[max(0, at - 2) : at + 2]
        if at % 11 == 0 or b"\r" in around or b"\n" in around:
            assert read((data[:at], data[at:])) == whole, f"cut at {at}"


@settings(max_examples=25, deadline=None)
@given(
    form=st.sampled_from(sorted(WIRE_FORMS)),
    cuts=st.lists(st.floats(0, 1, allow_nan=False), max_size=12),
    near_end=st.lists(st.integers(0, 400), max_size=6),
    end=st.sampled_from(["completed", "incomplete", "failed"]),
)
def test_a_last_event_over_the_limit_is_read_wherever_it_is_cut(
    form: str, cuts: list[float], near_end: list[int], end: str
) -> None:
    """The text's own events are as large, and stand directly before it."""
    response = {**LARGE, "status": end}
    events = stream_events(response, ["Say"], items=[message_item("y" * EVENT_BYTES_MAX)])
    data = WIRE_FORMS[form](b"".join([*events, b"data: [DONE]\n\n"]))
    offsets = sorted({0, len(data), *(int(at * len(data)) for at in cuts), *(len(data) - back for back in near_end)})
    outcome = read(data[start:stop] for start, stop in pairwise(offsets))
    assert outcome.relayed + outcome.withheld == data
    assert (tokens_of(outcome.usage), outcome.made, outcome.ended) == ((36, 4), ENDED, True)
    assert outcome.failed == (end == "failed")
    assert outcome.withheld, "the end of the last event waits for the settle"
    assert len(outcome.withheld) <= EVENT_BYTES_MAX + 1_000


def test_a_first_event_over_the_limit_names_its_response() -> None:
    """It repeats the instructions, which may be long; nothing that names the response goes out before it is known."""
    data = b"".join(stream_events({**LAST, "instructions": "x" * EVENT_BYTES_MAX}))
    reader = ResponsesStream()
    for at in range(0, len(data), 60_000):
        if reader.feed(data[at : at + 60_000]):
            assert reader.made is not None
    assert reader.made is not None
    assert reader.made.response_id == RESPONSE_ID


def test_a_large_last_event_that_breaks_off_is_no_end() -> None:
    data = b"".join(stream_events(LARGE))
    outcome = read([data[:-400]])
    assert outcome.relayed + outcome.withheld == data[:-400]
    assert (outcome.usage, outcome.ended) == (None, False)


def test_calls_are_counted_where_the_last_event_leaves_them_out() -> None:
    usage = read(stream_events({**LAST, "output": []}, items=[SEARCH, SEARCH])).usage
    assert usage is not None
    assert usage["hosted_calls"] == {"web_searches": 2}


def test_an_event_that_only_a_client_can_read_counts() -> None:
    events = stream_events(LAST)
    events[4] = events[4].replace(b'"logprobs":[]', b'"logprobs":[NaN]')
    events[-1] = events[-1].replace(b'"temperature":1.0', b'"temperature":NaN')
    outcome = read(events)
    assert (tokens_of(outcome.usage), outcome.ended) == ((36, 4), True)


def test_memory_is_bounded() -> None:
    """A stream of a hundred thousand words, and an upstream that goes on after its end."""
    delta: dict[str, Any] = {"item_id": "msg_1", "delta": "word "}
    block = b"".join(event("response.output_text.delta", number, **delta) for number in range(100))
    reader = ResponsesStream()
    for _ in range(50):
        assert reader.feed(block) == block
        assert len(reader._uncounted) <= UNCOUNTED_BYTES_MAX + len(block)
    # Five bytes each: a token and a quarter.
    assert reader.output_tokens_estimate() == 6_250
    reader.feed(stream_events(LAST)[-1])
    for _ in range(50):
        assert reader.feed(block) == b""
    assert len(reader.finish()) <= WITHHELD_BYTES_MAX
    assert orjson.loads(orjson.dumps(reader.usage))["total_tokens"] == 40
