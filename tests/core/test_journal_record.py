"""Journal lines: what was acknowledged is read back; torn or damaged lines are told from whole ones."""

import orjson
import pytest

from gateway.core.journal_record import Record, decode, encode, placed_at_seconds

RECORDS = [
    Record("wallet-1", "hold-1", b'{"op":"settle","cost":90,"picos":4611686018427387904}'),
    Record("wallet-1", "hold-2", orjson.dumps({"op": "void", "reason": "line\nbreak \u20ac"})),
    Record("wallet-2", "hold-3", b"{}"),
]
LINES = [encode(record) for record in RECORDS]
FILE = b"".join(LINES)


def test_records_come_back_as_they_were() -> None:
    assert decode(FILE) == (RECORDS, 0)
    assert decode(b"") == ([], 0)
    assert all(line.count(b"\n") == 1 and line.endswith(b"\n") for line in LINES)


def test_a_file_torn_anywhere_gives_every_whole_record() -> None:
    ends = [sum(map(len, LINES[:count])) for count in range(len(LINES) + 1)]
    for size in range(len(FILE) + 1):
        records, damaged = decode(FILE[:size])
        # A record whose newline alone is missing is whole all the same.
        whole = sum(end <= size + 1 for end in ends[1:])
        assert (records, damaged) == (RECORDS[:whole], 0)


@pytest.mark.parametrize("number", range(len(LINES)))
def test_a_damaged_line_is_counted_and_hides_no_other(number: int) -> None:
    others = RECORDS[:number] + RECORDS[number + 1 :]
    for at in range(len(LINES[number]) - 1):
        line = bytearray(LINES[number])
        line[at] ^= 0x01
        found = decode(b"".join([*LINES[:number], bytes(line), *LINES[number + 1 :]]))
        assert found == (others, 1)


def test_no_flipped_bit_loses_a_record_unseen() -> None:
    """Wherever it is: in a checksum, the space, a body, or a newline, the last one too."""
    for at in range(len(FILE) * 8):
        flipped = bytearray(FILE)
        flipped[at // 8] ^= 1 << at % 8
        records, damaged = decode(bytes(flipped))
        assert [record for record in RECORDS if record in records] == records
        assert records == RECORDS or damaged > 0


def test_the_age_of_a_record_is_in_its_id() -> None:
    assert placed_at_seconds(Record("w", "0193d3a0-1234-7000-8000-000000000000", b"{}")) == 0x0193D3A01234 / 1_000
    assert placed_at_seconds(RECORDS[0]) == 0


@pytest.mark.parametrize("line", [b"?", b"00000000", b"00000000 ", b"\0" * 100, b"deadbeef {}"])
def test_a_line_that_never_was_a_record_is_damaged(line: bytes) -> None:
    assert decode(LINES[0] + line + b"\n" + LINES[1]) == (RECORDS[:2], 1)
    assert decode(LINES[0] + line) == (RECORDS[:1], 0)
