"""Journal lines: what was acknowledged is read back; torn or damaged lines are told from whole ones."""

import orjson
import pytest

from gateway.core.journal_record import Record, decode, encode

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


@pytest.mark.parametrize("line", [b"?", b"00000000", b"00000000 ", b"\0" * 100, b"deadbeef {}"])
def test_a_line_that_never_was_a_record_is_damaged(line: bytes) -> None:
    assert decode(LINES[0] + line + b"\n" + LINES[1]) == (RECORDS[:2], 1)
    assert decode(LINES[0] + line) == (RECORDS[:1], 0)
