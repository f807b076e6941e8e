"""The seal: ledger entries are chained by hashes soon after they were written, and sealed ones are looked at again."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from gateway.core.seal import format_head
from gateway.db.pool import Database
from gateway.db.seals import LEAST_ID, Limits, look_again, seal_step
from gateway.metrics import Metrics

_log = logging.getLogger("farebox.seal")
STEPS_MAX = 100
BLOCKS_PER_LOOK = 32
# Enough to know what happened; the audit lists the rest.
_KEPT_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Sealed:
    """What a run sealed, and the newest head of its own: its log line is a copy of the head kept elsewhere."""

    entries: int
    blocks: int
    head: str
    is_busy: bool = False

    def __bool__(self) -> bool:
        return self.blocks > 0


class SealService:
    """Seals closed blocks, some wallets at a time, until it has been round them all or the run is long enough."""

    name = "seal"

    def __init__(self, database: Database, metrics: Metrics, limits: Limits, *, interval_seconds: float) -> None:
        self._database = database
        self._metrics = metrics
        self._limits = limits
        self.interval_seconds = interval_seconds
        self._after: UUID = LEAST_ID
        self._oldest_seconds = 0.0
        self._unsealable: dict[UUID, str] = {}
        self.unsealable: dict[UUID, str] = {}

    async def run_once(self) -> Sealed:
        """Raises LedgerAway."""
        entries = blocks = 0
        head = ""
        for _ in range(STEPS_MAX):
            step = await seal_step(self._database, self._after, self._limits)
            if step.is_busy:
                # Another gateway seals, and says how far it has come.
                self._metrics.seal_lag.set(0)
                return Sealed(entries, blocks, head, is_busy=True)
            entries, blocks = entries + step.entries, blocks + len(step.seals)
            self._metrics.sealed_entries.inc(step.entries)
            if step.seals:
                head = format_head(step.head, step.hash)
            self._oldest_seconds = max(self._oldest_seconds, step.oldest_seconds)
            self._unsealable.update(step.unsealable[:_KEPT_MAX])
            if step.after is None:
                self._end_round()
                break
            self._after = step.after
        return Sealed(entries, blocks, head)

    def _end_round(self) -> None:
        self.unsealable = self._unsealable
        self._metrics.seal_lag.set(self._oldest_seconds)
        self._metrics.seal_mismatches.labels("unsealable").set(len(self.unsealable))
        if self.unsealable:
            _complain("entries cannot be sealed", [f"wallet {w}, {what}" for w, what in self.unsealable.items()])
        self._after, self._oldest_seconds, self._unsealable = LEAST_ID, 0.0, {}


@dataclass(frozen=True, slots=True)
class Found:
    """How many blocks a run looked at; true where some of them changed, and worth a line in the log."""

    blocks: int
    changed: int

    def __bool__(self) -> bool:
        return self.changed > 0


class ChainService:
    """Looks at sealed blocks again, a few at a time and round and round: have their entries changed?"""

    name = "chain"

    def __init__(
        self, database: Database, metrics: Metrics, *, interval_seconds: float, blocks: int = BLOCKS_PER_LOOK
    ) -> None:
        self._database = database
        self._metrics = metrics
        self._blocks = blocks
        self.interval_seconds = interval_seconds
        self._after = (LEAST_ID, 0)
        self._found: dict[tuple[UUID, int], str] = {}
        self.changed: dict[tuple[UUID, int], str] = {}

    async def run_once(self) -> Found:
        """Raises LedgerAway."""
        looked = await look_again(self._database, self._after, self._blocks)
        for wallet_id, change in looked.changed:
            if len(self._found) < _KEPT_MAX:
                said = f"{change.what}: expected {change.expected}, found {change.found}"
                self._found[wallet_id, change.seq] = said
        if looked.changed:
            _complain("sealed entries have changed", [f"wallet {w}, seq {c.seq}, {c.what}" for w, c in looked.changed])
        # Said at once; forgotten when a whole round has found them well again.
        self.changed |= self._found
        if looked.after is None:
            self.changed, self._found = self._found, {}
        self._after = looked.after or (LEAST_ID, 0)
        self._metrics.seal_mismatches.labels("changed").set(len(self.changed))
        return Found(looked.blocks, len(looked.changed))


def _complain(what: str, places: Iterable[str]) -> None:
    _log.critical(what, extra={"fields": {"first": min(places)}})
