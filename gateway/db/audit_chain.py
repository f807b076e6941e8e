"""The audit of the chain: every sealed entry against its seal, every seal against its head, in one pass each.

Entries and seals are both read in the order of wallet and seq and merged here, so that memory is bounded by a batch of
each and one block.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import asyncpg

from gateway.core.audit import Difference, Finding
from gateway.core.seal import FIRST_HASH, Entry, Seal, find_change, first_previous, format_head, head_hash
from gateway.db.pool import Connection
from gateway.db.queries import queries
from gateway.db.streams import stream

ENTRIES_CHECK = "every_sealed_entry_is_as_it_was"
HEADS_CHECK = "every_head_is_over_its_seals"
KEPT_CHECK = "the_kept_head_is_in_the_chain"


class _Entries:
    """The entries in their order; ranges of them are taken in the same order."""

    def __init__(self, batches: AsyncIterator[Sequence[asyncpg.Record]], on_read: Callable[[int], None]) -> None:
        self._batches = batches
        self._on_read = on_read
        self._rows: Sequence[asyncpg.Record] = ()
        self._at = 0
        self._read = 0

    async def take(self, wallet_id: UUID, first_seq: int, last_seq: int) -> list[Entry]:
        """What there is of a range; whatever comes before it is passed over."""
        found: list[Entry] = []
        while True:
            rows, at, end = self._rows, self._at, len(self._rows)
            while at < end:
                entry = Entry(*rows[at])
                if entry.wallet_id == wallet_id:
                    if entry.seq > last_seq:
                        break
                    if entry.seq >= first_seq:
                        found.append(entry)
                elif entry.wallet_id > wallet_id:
                    break
                at += 1
            self._at = at
            if at < end or not await self._next():
                return found

    async def _next(self) -> bool:
        self._at = 0
        try:
            self._rows = await anext(self._batches)
        except StopAsyncIteration:
            self._rows = ()
        self._read += len(self._rows)
        self._on_read(self._read)
        return bool(self._rows)


async def check_entries(connection: Connection, on_read: Callable[[int], None]) -> Finding:
    """Every seal, in the order of wallet and block, against the entries that it covers; `rows` are sealed entries."""
    finding = Finding(ENTRIES_CHECK)
    entries = _Entries(stream(connection, queries()["entries_for_audit"]), on_read)
    wallet_id, block, last_seq = UUID(int=0), 0, 0
    previous: bytes | None = None
    async for rows in stream(connection, queries()["seals_for_audit"]):
        for row in rows:
            seal = Seal(*row)
            if seal.wallet_id != wallet_id:
                wallet_id, block, last_seq, previous = seal.wallet_id, 0, 0, first_previous(seal.wallet_id)
            if (seal.block, seal.first_seq) != (block + 1, last_seq + 1):
                expected, found = (f"block {b} from seq {s}" for b, s in ((block + 1, last_seq + 1), seal[1:3]))
                finding.add(Difference(str(wallet_id), last_seq + 1, "", "the chain", expected, found))
                previous = None
            covered = await entries.take(wallet_id, seal.first_seq, seal.last_seq)
            change = find_change(seal, previous, covered)
            if change is not None:
                finding.add(Difference(str(wallet_id), change.seq, "", change.what, change.expected, change.found))
            finding.rows += len(covered)
            # Later blocks follow what was sealed, so that one change is one difference.
            block, last_seq, previous = seal.block, seal.last_seq, seal.hash
    return finding


@dataclass(slots=True)
class _Head:
    """A head as stored, with the seals that it names as far as they are there."""

    head: int
    hash: bytes
    seals: list[tuple[UUID, int, int, int, bytes]] = field(default_factory=list)
    missing: list[tuple[UUID, int]] = field(default_factory=list)


async def check_heads(connection: Connection, kept: tuple[int, bytes] | None) -> tuple[list[Finding], str]:
    """Every head against the one before and its seals, `kept` against its own; and the newest head."""
    finding, keeping = Finding(HEADS_CHECK), Finding(KEPT_CHECK)
    number, previous = -1, b""
    kept_hash: bytes | None = None
    async for head in _heads(connection):
        finding.rows += 1
        if head.head != number + 1:
            gap = f"head {number + 1}", f"head {head.head}"
            finding.add(Difference("", 0, "", "the chain of heads", *gap))
        for wallet_id, block in head.missing:
            what = f"block {block}"
            finding.add(Difference(str(wallet_id), 0, "", what, f"a seal under head {head.head}", "none"))
        if head.head == number + 1 and not head.missing:
            expected = head_hash(previous, head.seals) if head.head else FIRST_HASH
            if head.hash != expected:
                what = f"hash of head {head.head}"
                finding.add(Difference("", 0, "", what, expected.hex(), head.hash.hex()))
        number, previous = head.head, head.hash
        if kept is not None and head.head == kept[0]:
            kept_hash = head.hash
    if kept is None:
        return [finding], format_head(number, previous)
    keeping.rows = 1
    if kept_hash != kept[1]:
        found = kept_hash.hex() if kept_hash is not None else "no such head"
        keeping.add(Difference("", 0, "", f"head {kept[0]}", kept[1].hex(), found))
    return [finding, keeping], format_head(number, previous)


async def _heads(connection: Connection) -> AsyncIterator[_Head]:
    head: _Head | None = None
    async for rows in stream(connection, queries()["heads_for_audit"]):
        for row in rows:
            if head is None or head.head != row["head"]:
                if head is not None:
                    yield head
                head = _Head(row["head"], row["head_hash"])
            if row["hash"] is not None:
                head.seals.append((row["wallet_id"], row["block"], row["first_seq"], row["last_seq"], row["hash"]))
            elif row["block"] is not None:
                head.missing.append((row["wallet_id"], row["block"]))
    if head is not None:
        yield head
