"""The written form of a journaled operation: a checksum, a space, one JSON object, a newline.

A torn or damaged record is told from a whole one without trusting what follows it.
"""

import zlib
from dataclasses import dataclass

import orjson


@dataclass(frozen=True, slots=True)
class Record:
    """One operation on one wallet, as the lane takes it."""

    wallet_id: str
    hold_id: str
    document: bytes


def placed_at_seconds(record: Record) -> float:
    """Unix time at which the hold was placed, from its UUIDv7; 0 where the id is none."""
    digits = record.hold_id.replace("-", "")[:12]
    try:
        return int(digits, 16) / 1_000
    except ValueError:
        return 0.0


def encode(record: Record) -> bytes:
    """One line. The document is JSON and so has no raw newline."""
    body = b'{"wallet":"%s","hold":"%s","operation":%s}' % (
        record.wallet_id.encode(),
        record.hold_id.encode(),
        record.document,
    )
    return b"%08x %s\n" % (zlib.crc32(body), body)


def decode(data: bytes) -> tuple[list[Record], int]:
    """The whole records of a journal file, and how many lines were damaged.

    A torn last line is what a crash leaves: it was never acknowledged, and does not count. A damaged line elsewhere
    was, so the caller must keep the file for a person to see.
    """
    records: list[Record] = []
    damaged = 0
    *lines, tail = data.split(b"\n")
    for line in lines:
        record = _read(line)
        if record is not None:
            records.append(record)
        elif line:
            damaged += 1
    whole_tail = _read(tail) or _read(tail[:-1])  # its newline never came, or was damaged
    if whole_tail is not None:
        records.append(whole_tail)
    return records, damaged


def _read(line: bytes) -> Record | None:
    checksum, _, body = line.partition(b" ")
    if not body or checksum != b"%08x" % zlib.crc32(body):
        return None
    document = orjson.loads(body)
    return Record(document["wallet"], document["hold"], orjson.dumps(document["operation"]))
