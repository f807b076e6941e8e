"""What operators watch: money held, and whether the books balance."""

import logging
from dataclasses import dataclass

from gateway.db.invariants import failing_invariants
from gateway.db.pool import Database
from gateway.metrics import Metrics

_log = logging.getLogger("farebox.vitals")


class HeldGauges:
    """Held sum, open holds and the oldest of them, over all wallets."""

    name = "held"

    def __init__(self, database: Database, metrics: Metrics, *, interval_seconds: float = 5.0) -> None:
        self._database = database
        self._metrics = metrics
        self.interval_seconds = interval_seconds

    async def run_once(self) -> None:
        """Raises LedgerAway."""
        row = await self._database.fetch_one("holds_summary")
        assert row is not None
        self._metrics.open_holds.set(row["open_holds"])
        self._metrics.held_nanos.set(row["held_nanos"])
        self._metrics.oldest_hold.set(row["oldest_seconds"])


@dataclass(frozen=True, slots=True)
class Drift:
    """Invariants that returned rows: the ledger has drifted."""

    failing: dict[str, int]

    def __bool__(self) -> bool:
        return bool(self.failing)


class Invariants:
    """Runs sql/invariants.sql, and says so loudly if anything is found."""

    name = "invariants"

    def __init__(self, database: Database, metrics: Metrics, *, interval_seconds: float) -> None:
        self._database = database
        self._metrics = metrics
        self.interval_seconds = interval_seconds
        self.failing: dict[str, int] = {}

    async def run_once(self) -> Drift:
        """Raises LedgerAway."""
        found = await failing_invariants(self._database)
        for name, count in found.items():
            self._metrics.invariant_failures.labels(name).set(count)
        self.failing = {name: count for name, count in found.items() if count}
        if self.failing:
            _log.critical("the ledger has drifted", extra={"fields": {"invariants": self.failing}})
        return Drift(self.failing)
