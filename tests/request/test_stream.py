"""A stream on its way to the client: as far as its limit, and the same wherever the reads fall."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.endpoints.chat_stream import ChatStream
from gateway.request.limit import Limit
from gateway.request.stream import Stream
from gateway.request.watch import Call
from tests.request import test_watch

WORD = b'data: {"choices":[{"index":0,"delta":{"content":"on"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
ALLOWED = 64  # of a cap of 0, four times which and 64 more is proof that it is ignored


class Caller(test_watch.Caller):
    """The client's side: what it was told, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[bytes] = []

    async def write(self, data: bytes) -> None:
        self.told.append(data)


class Granting(Limit):
    """Reached once, and then granted."""

    async def is_granted(self) -> bool:
        self._allowed *= 4
        return True


def a_stream(limit: Limit | None = None) -> tuple[Stream, ChatStream, Caller]:
    caller, reader = Caller(), ChatStream(remove_usage=False)
    return Stream(Call(caller, drain_seconds=1), reader, limit or Limit(0), None), reader, caller


def reads_of(data: bytes) -> st.SearchStrategy[list[bytes]]:
    """The same bytes in reads of any sizes."""
    cuts = st.lists(st.integers(0, len(data)), max_size=8).map(sorted)
    return cuts.map(lambda ends: [data[a:b] for a, b in zip([0, *ends], [*ends, len(data)], strict=True) if a < b])


async def _taken(stream: Stream, reads: list[bytes]) -> bool:
    for data in reads:
        if not await stream.take(data):
            return False
    return True


@given(reads_of(WORD * 100 + DONE))
async def test_what_goes_past_the_limit_is_neither_passed_on_nor_counted(reads: list[bytes]) -> None:
    stream, reader, caller = a_stream()
    assert not await _taken(stream, reads)
    assert b"".join(caller.told) == WORD * ALLOWED
    assert (stream.count_output(), reader.ended) == (ALLOWED, False)


@given(reads_of(WORD * ALLOWED + DONE))
async def test_what_ends_at_its_limit_is_whole(reads: list[bytes]) -> None:
    stream, reader, caller = a_stream()
    assert await _taken(stream, reads)
    assert b"".join(caller.told) + reader.finish() == WORD * ALLOWED + DONE
    assert (stream.count_output(), reader.ended) == (ALLOWED, True)


@st.composite
def odd_streams(draw: st.DrawFn) -> list[bytes]:
    """Events of many sizes with any line ends, in reads of any sizes."""
    blank = 2 * draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    sizes = draw(st.lists(st.sampled_from([1, 2, 7, 40, 170, 400]), min_size=1, max_size=80))
    text = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}'
    events = [text % (b"x" * size) + blank for size in sizes]
    return draw(reads_of(b"".join(events) + b"data: [DONE]" + blank))


@given(odd_streams(), st.sampled_from([0, 1, 20]))
async def test_no_token_past_the_limit_is_passed_on_whatever_the_stream_is_like(reads: list[bytes], cap: int) -> None:
    """Half an event that waits in the reader is counted when its rest comes, however short that is."""
    stream, reader, caller = a_stream(Limit(cap))
    is_whole = await _taken(stream, reads)
    told = b"".join(caller.told)
    counter = ChatStream(remove_usage=False)
    counter.feed(told)
    assert stream.count_output() == counter.output_tokens_estimate() <= ALLOWED + 4 * cap
    assert b"".join(reads).startswith(told)
    assert not is_whole or told + reader.finish() == b"".join(reads)


@given(reads_of(WORD * 100 + DONE))
async def test_what_is_granted_is_passed_on_whole_and_in_order(reads: list[bytes]) -> None:
    stream, reader, caller = a_stream(Granting(0))
    assert await _taken(stream, reads)
    assert b"".join(caller.told) + reader.finish() == WORD * 100 + DONE
    assert stream.count_output() == 100


async def test_what_is_below_the_limit_is_passed_on_before_the_stream_waits_there() -> None:
    class Waiting(Limit):
        async def is_granted(self) -> bool:
            assert b"".join(caller.told) == WORD * ALLOWED
            return False

    stream, _, caller = a_stream(Waiting(0))
    assert not await stream.take(WORD * 100)


async def test_the_note_is_made_before_the_client_is_told() -> None:
    told: list[int] = []
    caller, reader = Caller(), ChatStream(remove_usage=False)

    async def note() -> None:
        told.append(len(caller.told))

    stream = Stream(Call(caller, drain_seconds=1), reader, Limit(0), note)
    assert await stream.take(WORD)
    assert not await stream.take(WORD * 100)
    assert (told, len(caller.told)) == ([0, 1], 2)
