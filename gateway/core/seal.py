"""The seal on ledger entries: which bytes are hashed, and in what order. A changed rule is a new format.

A block is a run of one wallet's entries. Its hash is SHA-256 over the hash of the wallet's block before it and the
bytes of each entry by seq, so that no sealed entry can be changed, left out, added or moved without another hash. A
head does the same for the blocks that were sealed together, over the head before it: one hash stands for the whole
ledger up to there, and a copy of it kept elsewhere shows even a ledger whose seals were all made anew.

A block also keeps a fingerprint of each entry (CRC-32, four bytes). It proves nothing; it tells which entry changed.
"""

import re
import struct
import zlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import NamedTuple
from uuid import UUID

FORMAT = 1
_CHAIN, _HEADS = f"farebox seal {FORMAT}\n".encode(), f"farebox head {FORMAT}\n".encode()
FINGERPRINT_BYTES = 4
# What the first head follows.
FIRST_HASH = bytes(32)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# seq, amount, balance after, microseconds since 1970, and which of the optional fields follow.
_FIXED = struct.Struct(">qqqqB")
_LENGTH = struct.Struct(">I")
_BLOCK = struct.Struct(">qqq")
_HEAD = re.compile(r"([0-9]{1,18}):([0-9a-fA-F]{64})")
_HAS_HOLD, _HAS_POSTING, _HAS_ACTOR, _HAS_REASON = 1, 2, 4, 8


class Entry(NamedTuple):
    """A ledger entry as the database has it; rows are read in this order."""

    wallet_id: UUID
    seq: int
    kind: str
    contra: str
    amount_nanos: int
    balance_after_nanos: int
    hold_id: UUID | None
    posting_id: UUID | None
    actor: str | None
    reason: str | None
    created_at: datetime


class Seal(NamedTuple):
    """A sealed block: entries `first_seq` to `last_seq` of a wallet. Blocks of a wallet count from 1."""

    wallet_id: UUID
    block: int
    first_seq: int
    last_seq: int
    fingerprints: bytes
    hash: bytes


class Change(NamedTuple):
    """Where a block is not what was sealed. `seq` is the first entry that differs, `what` its field or the block."""

    seq: int
    what: str
    expected: str
    found: str


def entry_bytes(entry: Entry) -> bytes:
    """The canonical bytes of an entry, but for its wallet, which the chain begins with."""
    _, seq, kind, contra, amount, balance_after, hold_id, posting_id, actor, reason, created_at = entry
    age = created_at - _EPOCH
    microseconds = (age.days * 86_400 + age.seconds) * 1_000_000 + age.microseconds
    flags = 0
    tail = b""
    if hold_id is not None:
        flags = _HAS_HOLD
        tail = hold_id.bytes
    if posting_id is not None:
        flags |= _HAS_POSTING
        tail += posting_id.bytes
    tail += _text(kind) + _text(contra)
    if actor is not None:
        flags |= _HAS_ACTOR
        tail += _text(actor)
    if reason is not None:
        flags |= _HAS_REASON
        tail += _text(reason)
    return _FIXED.pack(seq, amount, balance_after, microseconds, flags) + tail


def _text(value: str) -> bytes:
    encoded = value.encode()
    return _LENGTH.pack(len(encoded)) + encoded


def first_previous(wallet_id: UUID) -> bytes:
    """What the first block of a wallet follows: it binds the chain to its wallet."""
    return sha256(_CHAIN + wallet_id.bytes).digest()


def seal_block(block: int, previous: bytes, entries: Sequence[Entry]) -> Seal:
    """Seal `entries`, one wallet's in dense order of seq, after the block whose hash is `previous`."""
    digest = sha256(previous)
    fingerprints = bytearray()
    for entry in entries:
        encoded = entry_bytes(entry)
        digest.update(encoded)
        fingerprints += zlib.crc32(encoded).to_bytes(FINGERPRINT_BYTES, "big")
    first = entries[0]
    return Seal(first.wallet_id, block, first.seq, entries[-1].seq, bytes(fingerprints), digest.digest())


def head_hash(previous: bytes, seals: Iterable[tuple[UUID, int, int, int, bytes]]) -> bytes:
    """The hash of a head over (wallet, block, first seq, last seq, hash) of its seals, in the order it lists them."""
    digest = sha256(_HEADS + previous)
    for wallet_id, block, first_seq, last_seq, block_hash in seals:
        digest.update(wallet_id.bytes + _BLOCK.pack(block, first_seq, last_seq) + block_hash)
    return digest.digest()


def find_change(seal: Seal, previous: bytes | None, entries: Sequence[Entry]) -> Change | None:
    """The first difference between a seal and what its range of seq holds now, or None.

    `previous` is None where the block before is lost: then only the fingerprints speak.
    """
    seqs = [entry.seq for entry in entries]
    for expected, found in zip(range(seal.first_seq, seal.last_seq + 1), [*seqs, None], strict=False):
        if expected != found:
            return Change(expected, "entry", f"sealed in block {seal.block}", "no such entry")
    again = seal_block(seal.block, previous or b"", entries)
    if again.hash == seal.hash:
        if again.fingerprints == seal.fingerprints:
            return None
        return Change(seal.first_seq, f"fingerprints of block {seal.block}", "those of its entries", "others")
    for number, entry in enumerate(entries):
        at = slice(number * FINGERPRINT_BYTES, (number + 1) * FINGERPRINT_BYTES)
        if seal.fingerprints[at] != again.fingerprints[at]:
            return Change(
                seal.first_seq + number,
                "entry",
                f"as sealed in block {seal.block}, fingerprint {seal.fingerprints[at].hex()}",
                f"{again.fingerprints[at].hex()}, {describe(entry)}",
            )
    if previous is None:
        return None
    return Change(seal.first_seq, f"hash of block {seal.block}", seal.hash.hex(), again.hash.hex())


def describe(found: Entry) -> str:
    """An entry in a few words, for people."""
    source = f"hold {found.hold_id}" if found.hold_id is not None else f"posting {found.posting_id}"
    by = f" by {found.actor} ({found.reason})" if found.actor is not None or found.reason is not None else ""
    return (
        f"{found.kind} of {found.amount_nanos} with {found.contra}, {found.balance_after_nanos} after it, "
        f"{source}, at {found.created_at.isoformat()}{by}"
    )


def format_head(head: int, digest: bytes) -> str:
    """A head as people keep it: `17:9f86…`."""
    return f"{head}:{digest.hex()}"


def parse_head(text: str) -> tuple[int, bytes]:
    """The (head, hash) of `format_head`. Raises ValueError."""
    found = _HEAD.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:80]!r} is not a head: a number, a colon and 64 hexadecimal digits")
    return int(found[1]), bytes.fromhex(found[2])
