"""The ledger as one page of Python: what wallet_apply and wallet_post must do, one operation after the other.

It knows nothing of batches, locks, rows or SQL. Time is a number of seconds that the test moves.
"""

from dataclasses import dataclass, field
from typing import Any

from tests.support.ledger_operations import Op

# (outcome, amount, shortfall, available before it)
Told = tuple[str, int, int, int]


@dataclass(slots=True)
class HoldRow:
    """An open hold, or a declined one."""

    nanos: int
    decline: str | None
    valid_seconds: int
    renewed_at: int
    checkpoint: int = 0


@dataclass(slots=True)
class Resolution:
    """How a hold ended, what that charged, and what a late settle added."""

    how: str
    charged: int
    late: int | None = None


@dataclass(slots=True)
class ModelWallet:
    """Everything that the ledger keeps of one wallet. `entries` and `events` are as their tables have them."""

    floor: int = 0
    balance: int = 0
    held: int = 0
    suspended: bool = False
    holds: dict[str, HoldRow] = field(default_factory=dict)
    resolved: dict[str, Resolution] = field(default_factory=dict)
    posted: set[str] = field(default_factory=set)
    entries: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    now: int = 0

    @property
    def available(self) -> int:
        return self.balance - self.held + self.floor

    def apply(self, op: Op) -> Told:
        """Decide one operation."""
        available = self.available
        hold_id = op["hold"]
        ended = self.resolved.get(hold_id)
        if ended is not None and not (op["op"] == "settle" and ended.how == "expired" and ended.late is None):
            outcome, amount = self._ended(op["op"], ended)
            return outcome, amount, 0, available
        outcome, amount, short = getattr(self, f"_{op['op']}")(op, hold_id)
        return outcome, amount, short, available

    def post(self, kind: str, amount: int, posting_id: str) -> str:
        """Decide one posting."""
        if posting_id in self.posted:
            return "already_posted"
        if amount < 0 and self.available + amount < 0:
            return "insufficient_funds"
        self.posted.add(posting_id)
        self._enter(kind, amount, None)
        return "posted"

    def due(self) -> list[str]:
        """What the sweep would find."""
        return sorted(hold_id for hold_id, row in self.holds.items() if self._is_due(row))

    def open_ids(self) -> list[str]:
        """Holds that may still be charged."""
        return [hold_id for hold_id, row in self.holds.items() if row.decline is None]

    @staticmethod
    def _ended(name: str, ended: Resolution) -> tuple[str, int]:
        if name == "hold":
            return f"already_{ended.how}", 0
        if name == "settle" and ended.how == "expired":
            assert ended.late is not None
            return "already_settled", ended.charged + ended.late
        return f"already_{ended.how}", ended.charged

    def _hold(self, op: Op, hold_id: str) -> tuple[str, int, int]:
        row = self.holds.get(hold_id)
        if row is not None:
            return row.decline or "held", row.nanos, 0
        decline = None
        if self.suspended:
            decline = "wallet_suspended"
        elif op["minimum"] > self.available:
            decline = "insufficient_funds"
        nanos = 0 if decline else min(op["ceiling"], self.available)
        self.held += nanos
        self.holds[hold_id] = HoldRow(nanos, decline, op["seconds"], self.now)
        return decline or "held", nanos, 0

    def _settle(self, op: Op, hold_id: str) -> tuple[str, int, int]:
        ended = self.resolved.get(hold_id)
        prior = ended.charged if ended else 0
        row = self.holds.get(hold_id)
        was_open = row is not None and row.decline is None
        held = self._release(hold_id)
        charged, short = self._charge(max(op["cost"] - prior, 0), hold_id)
        if ended is not None:
            ended.late = charged
        else:
            self.resolved[hold_id] = Resolution("settled", charged)
        self._note(hold_id, "settled", held, op["cost"], charged, short, prior=prior, late=ended is not None)
        if ended is not None:
            return "settled_late", charged, short
        if not was_open:
            return "settled_unheld", charged, short
        return ("settled_short" if short else "settled"), charged, short

    def _void(self, _op: Op, hold_id: str) -> tuple[str, int, int]:
        held = self._release(hold_id)
        self.resolved[hold_id] = Resolution("voided", 0)
        self._note(hold_id, "voided", held, 0, 0, 0)
        return "voided", 0, 0

    def _checkpoint(self, op: Op, hold_id: str) -> tuple[str, int, int]:
        row = self.holds.get(hold_id)
        if row is None or row.decline:
            return "hold_unknown", 0, 0
        row.checkpoint, row.valid_seconds, row.renewed_at = op["cost"], op["seconds"], self.now
        return "checkpointed", 0, 0

    def _extend(self, op: Op, hold_id: str) -> tuple[str, int, int]:
        row = self.holds.get(hold_id)
        if row is None or row.decline:
            return "hold_unknown", 0, 0
        if op["minimum"] > row.nanos:
            if self.suspended:
                return "wallet_suspended", row.nanos, 0
            if op["minimum"] > row.nanos + self.available:
                return "insufficient_funds", row.nanos, 0
            growth = min(op["ceiling"] - row.nanos, self.available)
            self.held += growth
            row.nanos += growth
        row.valid_seconds, row.renewed_at = op["seconds"], self.now
        return "extended", row.nanos, 0

    def _expire(self, _op: Op, hold_id: str) -> tuple[str, int, int]:
        row = self.holds.get(hold_id)
        if row is None:
            return "hold_unknown", 0, 0
        if not self._is_due(row):
            return "hold_not_due", 0, 0
        held = self._release(hold_id)
        if row.decline:
            return "expired", 0, 0
        charged, short = self._charge(row.checkpoint, hold_id)
        self.resolved[hold_id] = Resolution("expired", charged)
        self._note(hold_id, "expired", held, row.checkpoint, charged, short)
        return "expired", charged, short

    def _is_due(self, row: HoldRow) -> bool:
        return self.now >= row.renewed_at + 2 * row.valid_seconds

    def _release(self, hold_id: str) -> int:
        row = self.holds.pop(hold_id, None)
        held = row.nanos if row else 0
        self.held -= held
        return held

    def _charge(self, owed: int, hold_id: str) -> tuple[int, int]:
        """Take what is free; the hold has been released before."""
        charged = min(owed, self.available)
        if charged:
            self._enter("charge", -charged, hold_id)
        return charged, owed - charged

    def _enter(self, kind: str, amount: int, hold_id: str | None) -> None:
        self.balance += amount
        entry = {"seq": len(self.entries) + 1, "kind": kind, "amount_nanos": amount}
        self.entries.append(entry | {"balance_after_nanos": self.balance, "hold_id": hold_id})

    def _note(
        self,
        hold_id: str,
        how: str,
        held: int,
        cost: int,
        charged: int,
        short: int,
        *,
        prior: int = 0,
        late: bool = False,
    ) -> None:
        event = {"hold_id": hold_id, "late": late, "resolution": how, "held_nanos": held, "cost_nanos": cost}
        money = {"prior_nanos": prior, "charged_nanos": charged, "shortfall_nanos": short}
        self.events.append(event | money | {"entry_seq": len(self.entries) if charged else None})
