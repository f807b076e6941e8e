"""A lane sends operations on wallets to the ledger: one connection, one statement in flight, no timer.

What comes while a statement is in flight, or the loop is busy after, is the next batch (lane_pace.py says how large).
A call at rest pays one round trip; a busy gateway a fraction. The lane never cancels a statement: a caller that leaves,
or a deadline, does not change what the ledger does. On a deadline the connection is dropped and the same operations,
with the same ids, are asked again on another one: wallet_apply answers an id that it knows with what it did by a write.
"""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

import asyncpg

from gateway.db.lane_pace import Pace
from gateway.db.pool import RETRIED_STATES, Doubts, LedgerAway, is_away
from gateway.db.queries import queries

_RECONNECT_SECONDS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0)
_RETRY_SECONDS_MAX = 0.2
# How often an operation may go unanswered, alone, while others are answered, before it is taken for the cause.
_STRIKES_MAX = 6
_IDLE_TURN_SECONDS = 0.00005  # of an event loop that has nothing to do
_GATHER_SECONDS_MAX = 0.005
_HURRY_WAIT_SECONDS = 0.25
_HURRY_STATEMENT_SECONDS = 0.5


class Outcome(StrEnum):
    """What wallet_apply may answer; the order is that of the enum wallet_outcome in sql/schema.sql."""

    WALLET_UNKNOWN = "wallet_unknown"
    HOLD_OUT_OF_RANGE = "hold_out_of_range"
    ALREADY_SETTLED = "already_settled"
    ALREADY_VOIDED = "already_voided"
    ALREADY_EXPIRED = "already_expired"
    HOLD_UNKNOWN = "hold_unknown"
    HOLD_NOT_DUE = "hold_not_due"
    WALLET_SUSPENDED = "wallet_suspended"
    INSUFFICIENT_FUNDS = "insufficient_funds"
    HELD = "held"
    EXTENDED = "extended"
    CHECKPOINTED = "checkpointed"
    SETTLED = "settled"
    SETTLED_SHORT = "settled_short"
    SETTLED_LATE = "settled_late"
    SETTLED_UNHELD = "settled_unheld"
    VOIDED = "voided"
    EXPIRED = "expired"
    ALREADY_POSTED = "already_posted"
    POSTED = "posted"


_OUTCOMES = {str(outcome): outcome for outcome in Outcome}


class LaneFull(Exception):
    """More operations are waiting than the lane takes."""


class OperationRefused(Exception):
    """The ledger refused this operation alone, or never answers it while it answers others: a bug, or damaged data."""


class Answer(NamedTuple):
    """What became of one operation. Amounts in nanos; the balance and what is held are the wallet's after the batch."""

    outcome: Outcome
    amount_nanos: int
    shortfall_nanos: int
    available_nanos: int
    balance_nanos: int
    held_nanos: int


@dataclass(slots=True, eq=False)
class Operation:
    """One operation: `document` is its JSON as wallet_apply takes it.

    `undo` is sent if this one took effect and nobody was waiting for the answer any more. A `patient` operation waits
    however long the ledger is away; others fail with LedgerAway after the lane's wait.
    """

    wallet_id: str
    hold_id: str
    document: bytes
    undo: bytes | None = None
    patient: bool = False
    sent: bool = False
    since_seconds: float = 0.0
    strikes: int = 0
    struck_at: int = -1
    answer: "asyncio.Future[Answer]" = field(init=False)


class LaneObserver(Protocol):
    """Who hears what a lane does."""

    def batch_sent(self, operations: int) -> None: ...
    def statement_failed(self, kind: str) -> None: ...


class Lane:
    """See the module. `run()` is the lane's own task; it ends after `close()` once the queue is empty."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[asyncpg.Connection]],
        observer: LaneObserver,
        *,
        batch_operations_max: int,
        queue_operations_max: int,
        statement_seconds: float,
        wait_seconds: float,
    ) -> None:
        self._connect = connect
        self._observer = observer
        self._batch_operations_max = batch_operations_max
        self._queue_operations_max = queue_operations_max
        self._statement_seconds = statement_seconds
        self._wait_seconds = wait_seconds
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Operation] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._connection: asyncpg.Connection | None = None
        self._doubts: Doubts | None = None
        self._failures = 0
        self._unanswered = 0  # statements in a row
        self._operations_now = batch_operations_max
        self._answered = 0
        self._closing = False
        self._sql = queries()["lane_apply"]
        self.away_since_seconds: float | None = None
        # How many calls there are that have sent, or will send, an operation.
        self.calls_in_flight: Callable[[], int] = lambda: batch_operations_max
        self.on_silence: Callable[[], None] = lambda: None  # a statement was not answered by its deadline
        self._pace = Pace()

    def submit(self, operation: Operation) -> "asyncio.Future[Answer]":
        """Queue `operation`; its future gives the Answer, or LedgerAway or OperationRefused. Raises LaneFull."""
        if len(self._queue) >= self._queue_operations_max and not operation.patient:
            raise LaneFull
        operation.since_seconds = self._loop.time()
        operation.answer = self._loop.create_future()
        self._queue.append(operation)
        self._rouse()
        return operation.answer

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def away(self) -> bool:
        """Whether the ledger has been away for longer than a caller is made to wait."""
        since = self.away_since_seconds
        return since is not None and self._loop.time() - since > self._wait_seconds

    def stuck_seconds(self) -> float:
        """How long the oldest waiting operation, or the ledger's absence, has lasted."""
        since = [self._queue[0].since_seconds] if self._queue else []
        if self.away_since_seconds is not None:
            since.append(self.away_since_seconds)
        return max(0.0, self._loop.time() - min(since)) if since else 0.0

    def hurry(self) -> None:
        """The process is stopping: from now on nobody waits long for a ledger that is away or does not answer."""
        self._wait_seconds = min(self._wait_seconds, _HURRY_WAIT_SECONDS)
        self._statement_seconds = min(self._statement_seconds, _HURRY_STATEMENT_SECONDS)

    def close(self) -> None:
        """Let `run()` end once what is queued has been answered, or cannot be."""
        self._closing = True
        self._rouse()

    async def run(self) -> None:
        await self._reconnect()
        while not (self._closing and (not self._queue or self.away)):
            if not self._queue and (self.away_since_seconds is None or self._is_connected()):
                # Whoever made the ledger's absence known has given up or left; the next to ask will find out.
                self.away_since_seconds = None
                self._wake = self._loop.create_future()
                await self._wake
                self._wake = None
                continue
            connection = self._connection if self._is_connected() else await self._reconnect()
            if connection is None or not self._queue:
                continue
            if not self._queue[0].strikes or await self._probe(connection):
                await self._send(connection, self._take())
                await self._gather()
        for operation in self._queue:
            self._fail(operation, LedgerAway("the lane is closed"))
        self._queue.clear()
        self._queue_operations_max = 0  # who comes now is told at once
        if self._connection is not None:
            self._connection.terminate()

    async def _gather(self) -> None:
        """Let what is ready run before the next statement, as long as that makes it larger, or, for as long as a
        statement takes, while the loop has other work: the ledger may rest meanwhile. At rest nobody waits."""
        wanted = self._pace.wanted(len(self._queue), self.calls_in_flight())
        began = turned = time.perf_counter()
        while (before := len(self._queue)) < wanted:
            await asyncio.sleep(0)
            now = time.perf_counter()
            may_wait = now - began < min(self._pace.statement_seconds, _GATHER_SECONDS_MAX)
            if len(self._queue) == before and not (may_wait and now - turned > _IDLE_TURN_SECONDS):
                break
            turned = now

    def _is_connected(self) -> bool:
        return self._connection is not None and not self._connection.is_closed()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _take(self) -> list[Operation]:
        """The next batch: in order, each hold id once, without what nobody waits for any more; after statements without
        an answer ever smaller, so that an operation that takes its server down comes to stand alone, and stays so."""
        if len(self._queue) == 1 or self._queue[0].strikes:
            operation = self._queue.popleft()
            return [] if self._is_forgotten(operation) else [operation]
        batch: list[Operation] = []
        seen: set[str] = set()
        later: list[Operation] = []
        operations_max = min(self._operations_now, self._pace.wanted(len(self._queue), self.calls_in_flight()))
        while self._queue and len(batch) < operations_max:
            operation = self._queue.popleft()
            if operation.hold_id in seen or operation.strikes:
                later.append(operation)
            elif not self._is_forgotten(operation):
                seen.add(operation.hold_id)
                batch.append(operation)
        self._queue.extendleft(reversed(later))
        return batch

    @staticmethod
    def _is_forgotten(operation: Operation) -> bool:
        """A hold that was never sent and whose caller left need not be sent. Anything else must."""
        return operation.undo is not None and not operation.sent and operation.answer.done()

    async def _send(self, connection: asyncpg.Connection, batch: list[Operation]) -> None:
        if not batch:
            return
        wallets: dict[str, list[Operation]] = defaultdict(list)
        for operation in batch:
            operation.sent = True
            wallets[operation.wallet_id].append(operation)
        order = sorted(wallets)
        documents = [(b"[%s]" % b",".join([o.document for o in wallets[wallet]])).decode() for wallet in order]
        self._observer.batch_sent(len(batch))
        deadline = self._loop.call_later(self._statement_seconds, self._silent, connection)
        began = time.perf_counter()
        try:
            rows = await connection.fetch(self._sql, order, documents)
            self._refuse_doubts()
        except asyncio.CancelledError:
            connection.terminate()
            raise
        except Exception as error:
            await self._failed(connection, batch, error)
            return
        finally:
            deadline.cancel()
        self.away_since_seconds = None
        self._failures = self._unanswered = 0
        self._operations_now = min(self._batch_operations_max, self._operations_now * 2)
        self._answered += 1
        self._pace.answered(len(batch), time.perf_counter() - began, time.process_time())
        for wallet, row in zip(order, rows, strict=True):
            self._answer(wallets[wallet], row)

    def _refuse_doubts(self) -> None:
        if self._doubts is not None and self._doubts.raised:
            raise LedgerAway("the commit may not have reached the standby")

    def _silent(self, connection: asyncpg.Connection) -> None:
        connection.terminate()
        self.on_silence()

    def _answer(self, operations: list[Operation], row: Any) -> None:
        _, outcomes, amounts, shortfalls, availables, balance, held = row
        for operation, outcome, amount, short, available in zip(
            operations, outcomes, amounts, shortfalls, availables, strict=True
        ):
            answer = Answer(_OUTCOMES[outcome], amount, short, available, balance or 0, held or 0)
            if not operation.answer.done():
                operation.answer.set_result(answer)
            elif operation.undo is not None and answer.outcome is Outcome.HELD:
                self.submit(Operation(operation.wallet_id, operation.hold_id, operation.undo, patient=True))

    async def _failed(self, connection: asyncpg.Connection, batch: list[Operation], error: Exception) -> None:
        state = getattr(error, "sqlstate", None) or ""
        if state in RETRIED_STATES:  # rolled back whole for the sake of another: asked again whole
            self._observer.statement_failed("retried")
            self._queue.extendleft(reversed(batch))
            await asyncio.sleep(min(self._pause_seconds(), _RETRY_SECONDS_MAX))
            self._failures += 1
            self._give_up()
        elif is_away(error, connection):  # whether the batch took effect is unknown: asked again, first, with its ids
            self._observer.statement_failed("unknown")
            connection.terminate()
            self._unanswered += 1
            self._mark_away()
            if self._unanswered > 1 or self._operations_now < self._batch_operations_max:  # once is an accident
                self._operations_now = max(1, len(batch) // 4)
            if len(batch) == 1:
                self._strike(batch[0])
            else:
                self._queue.extendleft(reversed(batch))
        elif len(batch) == 1:
            self._observer.statement_failed("refused")
            self._fail(batch[0], OperationRefused(f"{type(error).__name__} {state}"))
        else:
            # One bad operation must not stop its neighbours: halve until it stands alone.
            self._observer.statement_failed("split")
            middle = len(batch) // 2
            await self._send(connection, batch[:middle])
            await self._send(connection, batch[middle:])

    def _strike(self, operation: Operation) -> None:
        """An operation went unanswered, alone: it lets others pass first, and is refused if all else is answered."""
        if operation.struck_at != self._answered:
            operation.strikes += 1
            operation.struck_at = self._answered
        if operation.strikes <= _STRIKES_MAX:
            self._queue.append(operation)
        else:
            self._observer.statement_failed("refused")
            self._fail(operation, OperationRefused("no answer to this operation alone"))
            self._failures = 0
            self.away_since_seconds = None

    async def _probe(self, connection: asyncpg.Connection) -> bool:
        """Before something suspect is asked again: whether a commit without it gets as far as the standby."""
        deadline = self._loop.call_later(self._statement_seconds, self._silent, connection)
        try:
            await connection.fetchval(queries()["lane_probe"])
            self._refuse_doubts()
        except Exception as error:
            if not (isinstance(error, asyncpg.PostgresError) or is_away(error, connection)):
                raise
            self._mark_away()
            connection.terminate()
            return False
        finally:
            deadline.cancel()
        self.away_since_seconds = None
        self._failures = self._queue[0].strikes
        self._answered += 1
        return True

    def _pause_seconds(self) -> float:
        return _RECONNECT_SECONDS[min(self._failures, len(_RECONNECT_SECONDS) - 1)]

    async def _reconnect(self) -> asyncpg.Connection | None:
        """A new connection, or None after one failed try; those who waited long enough are told."""
        await asyncio.sleep(self._pause_seconds())
        try:
            async with asyncio.timeout(self._statement_seconds):
                self._connection = await self._connect()
            self._doubts = Doubts(self._connection)
            # With something queued, only an answered statement shows that the ledger is back.
            if not self._queue:
                self.away_since_seconds = None
                self._failures = 0
        except (LedgerAway, TimeoutError):
            self._connection = None
            self._mark_away()
        self._give_up()
        return self._connection

    def _mark_away(self) -> None:
        self._failures += 1
        if self.away_since_seconds is None:
            self.away_since_seconds = self._loop.time()

    def _give_up(self) -> None:
        """Fail what has waited too long. What was sent stays queued, to be undone if it turns out to have happened."""
        now = self._loop.time()
        kept: deque[Operation] = deque()
        for operation in self._queue:
            late = not operation.patient and now - operation.since_seconds > self._wait_seconds
            if late:
                self._fail(operation, LedgerAway("no answer from the ledger"))
            if not late or (operation.sent and operation.undo is not None):
                kept.append(operation)
        self._queue = kept

    @staticmethod
    def _fail(operation: Operation, error: Exception) -> None:
        if not operation.answer.done():
            operation.answer.set_exception(error)
            operation.answer.exception()  # retrieved: a caller that left must not make it loud
