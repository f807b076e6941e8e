"""Step 6: make the charge durable, in the ledger or else in the journal. Only then may the client have the end."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, NamedTuple

import orjson

from gateway.clock import monotonic_seconds
from gateway.core.journal_record import Record
from gateway.db.journal import Journal, JournalUnwritable
from gateway.db.lanes import Answer, Lane, LaneFull, Operation, OperationRefused, Outcome
from gateway.db.pool import LedgerAway
from gateway.metrics import Metrics
from gateway.request.admit import Offer
from gateway.request.hold import Hold
from gateway.request.meter import Charge
from gateway.tasks import spawn

_log = logging.getLogger("farebox.settle")
_FINISH_SECONDS_MAX = 2.0
_JOURNAL_RETRY_SECONDS = 0.25


class Receipt(NamedTuple):
    """What the caller is told. `balance_nanos` is None where the settle is journaled."""

    cost_nanos: int
    balance_nanos: int | None


class Settler:
    """The one owner of settles and voids."""

    def __init__(self, lane: Lane, journal: Journal, metrics: Metrics) -> None:
        self._lane = lane
        self._journal = journal
        self._metrics = metrics
        self._outcomes = {outcome: metrics.settles.labels(outcome) for outcome in Outcome}
        self._unfinished: set[asyncio.Task[object]] = set()

    async def settle(self, offer: Offer, hold: Hold, charge: Charge, upstream: str | None) -> Receipt:
        """Return once `charge` is durable. A caller that is cancelled does not stop it."""
        operation = Operation(hold.wallet_id, hold.hold_id, document(offer, hold, charge, upstream))
        try:
            answer = None if self._lane.away else await self._lane.submit(operation)
        except LedgerAway:
            answer = None
        except LaneFull:
            answer = None
        except OperationRefused as error:
            # The ledger answers, but not to this: a bug. The record is kept for a person, and nothing is lost.
            self._metrics.crashes.inc()
            _log.critical("a settle was refused", exc_info=error, extra={"fields": {"hold": hold.hold_id}})
            answer = None
        except asyncio.CancelledError:
            # Asked again with the same id, by a task that nobody cancels: whichever comes first is the one that counts.
            self._see_through(self.settle(offer, hold, charge, upstream))
            raise
        if answer is None:
            await asyncio.shield(self._see_through(self._write_down(operation)))
            return Receipt(charge.cost_nanos, None)
        self._count(offer, hold, charge, answer)
        return Receipt(charge.cost_nanos, answer.balance_nanos)

    async def _write_down(self, operation: Operation) -> None:
        """Journal the operation; if even that fails, stay with both the ledger and the journal until one takes it."""
        if await self._journaled(operation):
            return
        self._metrics.journal_failures.inc()
        _log.critical("the journal cannot be written", extra={"fields": {"hold": operation.hold_id}})
        again = self._lane.submit(Operation(operation.wallet_id, operation.hold_id, operation.document, patient=True))
        while not (await asyncio.wait([again], timeout=_JOURNAL_RETRY_SECONDS))[0]:
            if self._journal.unwritable is None and await self._journaled(operation):
                return
        again.result()

    async def _journaled(self, operation: Operation) -> bool:
        try:
            await self._journal.append(Record(operation.wallet_id, operation.hold_id, operation.document))
        except JournalUnwritable:
            return False
        self._outcomes_journaled()
        return True

    def _see_through(self, work: Coroutine[Any, Any, object]) -> "asyncio.Task[object]":
        """Run what must not end with its caller."""
        task = spawn(work, name="settle")
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        return task

    async def finished(self) -> None:
        """Wait, not for ever, until what was seen through is durable. For the end of the process."""
        if self._unfinished:
            await asyncio.wait(self._unfinished, timeout=_FINISH_SECONDS_MAX)

    def _outcomes_journaled(self) -> None:
        self._metrics.settles.labels("journaled").inc()
        self._metrics.journal_records.set(self._journal.records)

    def _count(self, offer: Offer, hold: Hold, charge: Charge, answer: Answer) -> None:
        metrics = self._metrics
        self._outcomes[answer.outcome].inc()
        if charge.is_void:
            return
        model = offer.model.name
        metrics.cost_nanos.labels(model).inc(charge.cost_nanos)
        metrics.charged_nanos.labels(model).inc(answer.amount_nanos)
        if answer.shortfall_nanos:
            metrics.shortfall_nanos.labels(model).inc(answer.shortfall_nanos)
        if charge.cost_nanos > hold.granted_nanos:
            is_over = hold.holds is None or charge.cost_nanos > offer.ceiling.nanos
            (metrics.over_ceiling if is_over else metrics.over_hold).labels(model).inc()
        if charge.basis == "estimated":
            metrics.estimates.labels(charge.reason or "none").inc()

    async def timed(self, offer: Offer, hold: Hold, charge: Charge, upstream: str | None) -> Receipt:
        """`settle`, measured."""
        began = monotonic_seconds()
        receipt = await self.settle(offer, hold, charge, upstream)
        self._metrics.settle_seconds.observe(monotonic_seconds() - began)
        return receipt


def document(offer: Offer, hold: Hold, charge: Charge, upstream: str | None) -> bytes:
    """The operation as wallet_apply takes it, complete in itself so that a journal can replay it."""
    fields: dict[str, object] = {
        "op": "void" if charge.is_void else "settle",
        "hold": hold.hold_id,
        "key": hold.key_id,
        "price": offer.price.price_id,
        "endpoint": offer.endpoint.name,
        "upstream": upstream,
        "reason": charge.reason,
    }
    if not charge.is_void:
        fields["cost"] = charge.cost_nanos
        fields["picos"] = charge.cost_picos
        fields["usage"] = charge.usage
        fields["basis"] = charge.basis
    return orjson.dumps(fields)
