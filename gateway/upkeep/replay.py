"""Replay: what was journaled while the ledger was away goes to it, with the same ids, once it is back."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

from gateway.core.journal_record import Record
from gateway.db.journal import Journal, read_file
from gateway.db.lanes import Answer, Lane, LaneFull, Operation, OperationRefused
from gateway.db.pool import LedgerAway
from gateway.metrics import Metrics

_log = logging.getLogger("farebox.replay")


@dataclass(frozen=True, slots=True)
class Replayed:
    """Records given to the ledger, and how many were damaged or refused and so kept on disk."""

    records: int
    damaged: int
    refused: int

    def __add__(self, other: "Replayed") -> "Replayed":
        return Replayed(self.records + other.records, self.damaged + other.damaged, self.refused + other.refused)

    def __bool__(self) -> bool:
        return self.records + self.damaged + self.refused > 0


class Replay:
    """Own records and those of processes that died. A file is removed only when all of it was answered."""

    name = "replay"

    def __init__(
        self,
        journal: Journal,
        lane: Lane,
        metrics: Metrics,
        *,
        interval_seconds: float = 1.0,
        on_given: Callable[[int], None] = lambda _records: None,
    ) -> None:
        self._journal = journal
        self._on_given = on_given
        self._lane = lane
        self._metrics = metrics
        self.interval_seconds = interval_seconds

    async def run_once(self) -> Replayed:
        """Raises LedgerAway, having changed nothing on disk."""
        if self._lane.away:
            return Replayed(0, 0, 0)
        total = Replayed(0, 0, 0)
        if self._journal.records:
            count = self._journal.records
            records, damaged = await asyncio.to_thread(self._journal.read_own)
            own = await self._give(records, damaged)
            if not own.damaged and not own.refused:
                await self._journal.clear_own(count)
            else:
                await self._journal.set_aside(count)
            total = own
        total += await self.give_left_behind()
        self._metrics.journal_records.set(self._journal.records)
        return total

    async def give_left_behind(self) -> Replayed:
        """The files of processes that died, and of nobody who lives. Raises LedgerAway; what was given is gone."""
        total = Replayed(0, 0, 0)
        with self._journal.taken_over() as paths:
            for path in paths:
                given = await self._give(*await asyncio.to_thread(read_file, path))
                total += given
                if given.refused or given.damaged:
                    # What could not be given is kept for a person.
                    path.rename(path.with_suffix(".damaged"))
                else:
                    path.unlink()
        return total

    async def give_set_aside(self) -> Replayed:
        """Files set aside before: one that is answered whole is removed, and any other stays as it is. Raises
        LedgerAway."""
        total = Replayed(0, 0, 0)
        for path in self._journal.set_aside_files():
            given = await self._give(*await asyncio.to_thread(read_file, path))
            total += given
            if not given.refused and not given.damaged:
                path.unlink(missing_ok=True)
        return total

    async def _give(self, records: list[Record], damaged: int) -> Replayed:
        refused = 0
        for start in range(0, len(records), 512):
            futures: list[asyncio.Future[Answer]] = []
            for record in records[start : start + 512]:
                with contextlib.suppress(LaneFull):
                    futures.append(self._lane.submit(Operation(record.wallet_id, record.hold_id, record.document)))
            results = await asyncio.gather(*futures, return_exceptions=True)
            if len(futures) < len(records[start : start + 512]) or any(isinstance(r, LedgerAway) for r in results):
                raise LedgerAway("the replay goes on later")
            self._on_given(len(results))
            for result in results:
                if isinstance(result, OperationRefused):
                    refused += 1
                    _log.critical("a journaled settle was refused", exc_info=result)
                elif isinstance(result, BaseException):
                    raise result
        return Replayed(len(records) - refused, damaged, refused)
