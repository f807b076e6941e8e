"""Events are cut where they end, whatever the line ends and wherever the reads fall; nothing is lost or held back."""

from time import perf_counter

import pytest

from gateway.core.sse import Kind, Piece, SseSplitter, event_data, event_end, is_whole, split_events


def fed(*reads: bytes, event_bytes_max: int = 100) -> tuple[list[Piece], bytes]:
    splitter = SseSplitter(event_bytes_max)
    pieces = [piece for read in reads for piece in splitter.feed(read)]
    return pieces, splitter.rest()


def events(*data: bytes) -> list[Piece]:
    return [Piece(Kind.EVENTS, item) for item in data]


@pytest.mark.parametrize(
    ("reads", "pieces", "rest"),
    [
        ((b"",), [], b""),
        ((b"data: a\n\n",), events(b"data: a\n\n"), b""),
        ((b"data: a\n\ndata: b\n\n",), events(b"data: a\n\ndata: b\n\n"), b""),
        ((b"data: a\n\ndata: b",), events(b"data: a\n\n"), b"data: b"),
        ((b"data: a", b"\n", b"\n"), events(b"data: a\n\n"), b""),
        ((b"data: a\r\n", b"\r\n"), events(b"data: a\r\n\r\n"), b""),
        # A CRLF over two reads: the event is not held back for its second half, which follows alone.
        ((b"data: a\r\n\r", b"\ndata: b\r\n\r\n"), [*events(b"data: a\r\n\r"), Piece(Kind.LINE_FEED, b"\n"),
                                                  *events(b"data: b\r\n\r\n")], b""),
        ((b"data: a\r", b"\n\r\n"), events(b"data: a\r\n\r\n"), b""),
        ((b"data: a\r\r", b"data: b\r\r"), events(b"data: a\r\r", b"data: b\r\r"), b""),
        ((b"data: a\r", b"data: b\r"), [], b"data: a\rdata: b\r"),
        # Further blank lines are given out at once and never begin an event.
        ((b"\n", b"\r", b"\ndata: a\n\n"), [*events(b"\n", b"\r"), Piece(Kind.LINE_FEED, b"\n"),
                                            *events(b"data: a\n\n")], b""),
        ((b"data: a\n\n\n\ndata: b",), events(b"data: a\n\n\n\n"), b"data: b"),
        ((b"data: a\n\r\n\rdata: b",), events(b"data: a\n\r\n\r"), b"data: b"),
    ],
)  # fmt: skip
def test_pieces(reads: tuple[bytes, ...], pieces: list[Piece], rest: bytes) -> None:
    assert fed(*reads) == (pieces, rest)


@pytest.mark.parametrize(
    ("reads", "pieces"),
    [
        ((b"data: 7\n\n",), [Piece(Kind.EVENTS, b"data: 7\n\n")]),
        ((b"data: 89\n\n",), [Piece(Kind.OPAQUE, b"data: 89\n\n")]),
        ((b"data: 89", b"\n\n"), [Piece(Kind.OPAQUE, b"data: 89"), Piece(Kind.OPAQUE, b"\n\n")]),
        ((b"data: 89\n", b"\ndata: a\n\n"), [Piece(Kind.OPAQUE, b"data: 89"), Piece(Kind.OPAQUE, b"\n\n"),
                                            Piece(Kind.EVENTS, b"data: a\n\n")]),
        ((b"data: 89\r\n\r", b"\n:\n\n"), [Piece(Kind.OPAQUE, b"data: 89\r\n\r"), Piece(Kind.LINE_FEED, b"\n"),
                                           Piece(Kind.EVENTS, b":\n\n")]),
        ((b"data: 89", b"\r\n\r", b"\n"), [Piece(Kind.OPAQUE, b"data: 89"), Piece(Kind.OPAQUE, b"\r\n\r"),
                                           Piece(Kind.LINE_FEED, b"\n")]),
        # A line end inside it does not end it, and its size does not count the line ends that close it.
        ((b"data: 12345\n", b"data: 2\n\n"), [Piece(Kind.OPAQUE, b"data: 12345"),
                                              Piece(Kind.OPAQUE, b"\ndata: 2\n\n")]),
        ((b"data: 7\r\n", b"\r\n"), [Piece(Kind.EVENTS, b"data: 7\r\n\r\n")]),
        ((b":\n\ndata: 89\n\n:\n\n",), [Piece(Kind.EVENTS, b":\n\n"), Piece(Kind.OPAQUE, b"data: 89\n\n"),
                                        Piece(Kind.EVENTS, b":\n\n")]),
    ],
)  # fmt: skip
def test_an_event_over_the_limit_is_passed_on_unread(reads: tuple[bytes, ...], pieces: list[Piece]) -> None:
    assert fed(*reads, event_bytes_max=7) == (pieces, b"")


def test_endless_event_takes_no_memory() -> None:
    splitter = SseSplitter(1_000)
    out_bytes = sum(len(piece.data) for _ in range(1_000) for piece in splitter.feed(b"x" * 5_000))
    assert out_bytes == 5_000_000
    assert splitter.rest() == b""


def test_one_byte_at_a_time_is_linear() -> None:
    def seconds(event_bytes: int) -> float:
        splitter = SseSplitter()
        event = b"data: " + b"x" * event_bytes + b"\r\n\r\n"
        started = perf_counter()
        for at in range(len(event)):
            splitter.feed(event[at : at + 1])
        return perf_counter() - started

    # Eight times the bytes: 8 if linear, 64 if every byte looked at all before it.
    assert min(seconds(200_000) for _ in range(2)) < 24 * min(seconds(25_000) for _ in range(3))


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: a\n\n", b"a"),
        (b"data:a\n\n", b"a"),
        (b"data:  a\n\n", b" a"),
        (b"data\n\n", b""),
        (b"data:\n\n", b""),
        (b"data: a\r\rdata", b"a\n"),
        (b"data: a\r\ndata: b\r\n\r\n", b"a\nb"),
        (b"data: a\n", b"a"),
        (b"data: a", b"a"),
        (b": comment\nid: 1\nevent: message\nretry: 5\ndata: a\n\n", b"a"),
        (b"\xef\xbb\xbfdata: a\n\n", b"a"),
        (b": data: a\n\n", None),
        (b"event: ping\n\n", None),
        (b"database: a\n\n", None),
        (b"\n", None),
        (b"", None),
        (b"data: \x00\x85\x0b\xe2\x80\xa8\n\n", b"\x00\x85\x0b\xe2\x80\xa8"),
    ],
)
def test_event_data(event: bytes, data: bytes | None) -> None:
    assert event_data(event) == data


@pytest.mark.parametrize(
    ("block", "parts"),
    [
        (b"data: a\n\n", [b"data: a\n\n"]),
        (b"a\n\nb\r\rc\r\n\r\n", [b"a\n\n", b"b\r\r", b"c\r\n\r\n"]),
        (b"a\n\n\nb\n\n", [b"a\n\n", b"\n", b"b\n\n"]),
        (b"\r\na\n\n", [b"\r\n", b"a\n\n"]),
        (b"\na\n\n", [b"\n", b"a\n\n"]),
        (b"a\n\n\n", [b"a\n\n", b"\n"]),
        (b"\n", [b"\n"]),
        (b"a\nb\r\nc\n\r", [b"a\nb\r\nc\n\r"]),
    ],
)
def test_split_events(block: bytes, parts: list[bytes]) -> None:
    assert split_events(block) == parts
    assert b"".join(parts) == block


def test_is_whole_only_where_an_idle_splitter_hands_it_back() -> None:
    for data in (b"data: a\n\n", b"data: a\n\n\n\ndata: b\n\n", b"\n\n"):
        assert is_whole(data)
        assert SseSplitter().feed(data) == events(data)
    for data in (b"", b"data: a\n", b"data: a\r\n\r\n", b"data: a\n\ndata: b"):
        assert not is_whole(data)
    assert not is_whole(b"data: 89\n\n", event_bytes_max=7)


@pytest.mark.parametrize("data", [b"data", b"data: a\n\nb", b"data: a\r\r", b"x" * 101, b"x" * 101 + b"\n"])
def test_a_splitter_is_idle_only_between_events(data: bytes) -> None:
    splitter = SseSplitter(100)
    idle = [splitter.idle]
    for read in (data, b"\n\n"):
        splitter.feed(read)
        idle.append(splitter.idle)
    assert idle == [True, False, True]


@pytest.mark.parametrize(
    ("data", "start", "end"),
    [
        (b"a\n\nb\n\n", 0, 3),
        (b"a\n\nb\n\n", 1, 3),
        (b"a\n\nb\n\n", 2, 6),
        (b"a\r\n\r\nb", 0, 5),
        (b"a\r\rb", 0, 3),
        (b"a\n", 0, 0),
    ],
)
def test_event_end(data: bytes, start: int, end: int) -> None:
    assert event_end(data, start) == end
