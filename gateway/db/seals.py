"""Seals on ledger entries: making them behind the calls, and looking at them again.

Calls do none of this. A step holds the row of the newest head while it reads entries and writes seals, so that gateways
take turns and no chain forks: whoever finds it held leaves the work to its holder.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar
from uuid import UUID

import asyncpg

from gateway.core.seal import Change, Entry, Seal, find_change, first_previous, head_hash, seal_block
from gateway.db.pool import Connection, Database
from gateway.db.queries import queries

LEAST_ID = UUID(int=0)
WALLETS_PER_STEP = 1_000
ENTRIES_PER_STEP = 8_192
# Read and hashed between two turns of the event loop: about 2 ms.
_ENTRIES_AT_ONCE = 256
# Of five parts of time, sealing takes one: calls come first.
_REST_PER_WORK = 4
_STATEMENT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Limits:
    """A block is closed at `entries_max` entries, or when its first is `age_seconds` old."""

    entries_max: int
    age_seconds: float


@dataclass(slots=True)
class Step:
    """What one step did. `after` is where the next begins; None at the end of the wallets."""

    after: UUID | None
    is_busy: bool = False
    seals: list[Seal] = field(default_factory=list)
    head: int = 0
    hash: bytes = b""
    # Of the entries that it left unsealed.
    oldest_seconds: float = 0.0
    # Wallets whose entries are not those that their seq promises.
    unsealable: list[tuple[UUID, str]] = field(default_factory=list)

    @property
    def entries(self) -> int:
        return sum(seal.last_seq - seal.first_seq + 1 for seal in self.seals)


class _TakenOver(Exception):
    """Another gateway added the head meanwhile; nothing of this step stays."""


async def seal_step(database: Database, after: UUID, limits: Limits) -> Step:
    """Seal the closed blocks of some wallets after `after`, under one new head. Raises LedgerAway."""
    try:
        async with database.connection() as connection, connection.transaction():
            head = await connection.fetchrow(queries()["head_lock"], timeout=_STATEMENT_SECONDS)
            if head is None:
                return Step(after, is_busy=True)
            step = await _seal_wallets(connection, after, limits)
            if step.seals:
                await _add(connection, step, head["head"], head["hash"])
            return step
    except _TakenOver:
        return Step(after, is_busy=True)


async def _add(connection: Connection, step: Step, last_head: int, last_hash: bytes) -> None:
    seals = step.seals
    step.head = last_head + 1
    step.hash = head_hash(last_hash, [(s.wallet_id, s.block, s.first_seq, s.last_seq, s.hash) for s in seals])
    wallets, blocks = [s.wallet_id for s in seals], [s.block for s in seals]
    if await connection.fetchval(queries()["head_add"], step.head, wallets, blocks, step.hash) is None:
        raise _TakenOver
    # Seal's fields are the statement's arguments, in order; a block that is there already is a primary key violated.
    await connection.execute(queries()["seals_add"], *map(list, zip(*seals, strict=True)))


async def _seal_wallets(connection: Connection, after: UUID, limits: Limits) -> Step:
    """The seals that are due after `after`, as many as a step may hold, not yet written."""
    rows = await connection.fetch(queries()["seal_candidates"], after, WALLETS_PER_STEP, timeout=_STATEMENT_SECONDS)
    step = Step(rows[-1]["wallet_id"] if rows else None)
    plan: list[_Range] = []
    room = ENTRIES_PER_STEP
    for row in rows:
        pending = row["entry_seq"] - row["last_seq"]
        if pending and row["oldest_seconds"] is None:
            step.unsealable.append((row["wallet_id"], f"seq {row['last_seq'] + 1}: no such entry"))
            continue
        count = due = pending if pending and row["oldest_seconds"] >= limits.age_seconds else _whole(pending, limits)
        if due > room:
            count = _whole(room, limits)
        plan += _ranges(row, count, limits)
        room -= count
        if count < pending and count < limits.entries_max:
            step.oldest_seconds = max(step.oldest_seconds, row["oldest_seconds"])
        if count < due:
            step.after = UUID(int=row["wallet_id"].int - 1)  # the next step begins with this wallet again
            break
    previous = {row["wallet_id"]: row["hash"] or first_previous(row["wallet_id"]) for row in rows}
    await _seal_ranges(connection, plan, previous, step)
    return step


class _Range(NamedTuple):
    """A block to be sealed."""

    wallet_id: UUID
    block: int
    first_seq: int
    last_seq: int


_R = TypeVar("_R", _Range, Seal)


def _whole(entries: int, limits: Limits) -> int:
    return entries - entries % limits.entries_max


def _ranges(row: asyncpg.Record, count: int, limits: Limits) -> Iterator[_Range]:
    for number, first in enumerate(range(1, count + 1, limits.entries_max), row["block"] + 1):
        last = min(first + limits.entries_max - 1, count)
        yield _Range(row["wallet_id"], number, row["last_seq"] + first, row["last_seq"] + last)


async def _seal_ranges(connection: Connection, plan: list[_Range], previous: dict[UUID, bytes], step: Step) -> None:
    """Hash each range after the block that it follows; a wallet that lacks an entry is left as it is."""
    broken: set[UUID] = set()
    async for ranges, found in _read(connection, plan):
        for one, entries in zip(ranges, found, strict=True):
            if one.wallet_id in broken:
                continue
            if [entry.seq for entry in entries] != list(range(one.first_seq, one.last_seq + 1)):
                broken.add(one.wallet_id)
                seqs = f"seq {one.first_seq} to {one.last_seq}"
                step.unsealable.append((one.wallet_id, f"{seqs}: {len(entries)} entries"))
                continue
            seal = seal_block(one.block, previous[one.wallet_id], entries)
            previous[one.wallet_id] = seal.hash
            step.seals.append(seal)


async def _read(connection: Connection, ranges: Sequence[_R]) -> AsyncIterator[tuple[Sequence[_R], list[list[Entry]]]]:
    """The entries of each range, some ranges at a time; the event loop turns, and calls come first."""
    start = 0
    while start < len(ranges):
        end, entries = start, 0
        while end < len(ranges) and (entries < _ENTRIES_AT_ONCE or end == start):
            entries += ranges[end].last_seq - ranges[end].first_seq + 1
            end += 1
        some = ranges[start:end]
        arguments = ([r.wallet_id for r in some], [r.first_seq for r in some], [r.last_seq for r in some])
        rows = await connection.fetch(queries()["seal_entries"], *arguments, timeout=_STATEMENT_SECONDS)
        began = time.monotonic()
        yield some, _grouped(some, rows)
        await asyncio.sleep(_REST_PER_WORK * (time.monotonic() - began))
        start = end


def _grouped(ranges: Sequence[_Range | Seal], rows: Sequence[asyncpg.Record]) -> list[list[Entry]]:
    """Rows in the order of `ranges`, each given to its own."""
    found: list[list[Entry]] = [[] for _ in ranges]
    number = 0
    for row in rows:
        entry = Entry(*row.values())
        while entry.wallet_id != ranges[number].wallet_id or entry.seq > ranges[number].last_seq:
            number += 1
        found[number].append(entry)
    return found


@dataclass(frozen=True, slots=True)
class Looked:
    """What one look at sealed blocks found. `after` is the last block seen; None at the end."""

    after: tuple[UUID, int] | None
    blocks: int
    changed: list[tuple[UUID, Change]]


async def look_again(database: Database, after: tuple[UUID, int], blocks: int) -> Looked:
    """Compare up to `blocks` seals after `after` with their entries. Raises LedgerAway."""
    changed: list[tuple[UUID, Change]] = []
    async with (
        database.connection() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        rows = await connection.fetch(queries()["seals_after"], *after, blocks, timeout=_STATEMENT_SECONDS)
        seals = [Seal(*(row[name] for name in Seal._fields)) for row in rows]
        previous = {(row["wallet_id"], row["block"]): row["previous"] for row in rows}
        async for some, found in _read(connection, seals):
            for seal, entries in zip(some, found, strict=True):
                before = previous[seal.wallet_id, seal.block]
                if seal.block == 1:
                    before = first_previous(seal.wallet_id)
                change = find_change(seal, before, entries)
                if before is None:
                    change = change or Change(seal.first_seq, f"block {seal.block - 1}", "a seal", "none")
                if change is not None:
                    changed.append((seal.wallet_id, change))
    return Looked((seals[-1].wallet_id, seals[-1].block) if seals else None, len(seals), changed)
