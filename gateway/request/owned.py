"""Whose responses are whose. An upstream knows one account, whose ids all callers share; here each has its own.

The owner is written down before the caller is told the id, so nobody can name a response that is nobody's. Many are
written in one statement: whatever arrives while one is in flight is the next. A response whose owner cannot be written
down, since the ledger is away, is handed out all the same, and cannot be asked for again; unless it works in the
background, where the row is what settles it.
"""

import asyncio
import logging

from gateway.clock import monotonic_seconds
from gateway.db import responses as store
from gateway.db.pool import Database, LedgerAway
from gateway.db.responses import Owner
from gateway.errors import ResponseNotFound
from gateway.metrics import Metrics
from gateway.request.admit import Offer
from gateway.request.authenticate import Principal
from gateway.tasks import spawn

_log = logging.getLogger("farebox.owned")

_BATCH = 256
_WAITING_MAX = 10_000
# How long a caller waits for its response to be written down, and one in the background, which must be.
_WAIT_SECONDS = 2.0
_INSIST_SECONDS = 10.0
_RETRY_SECONDS = 0.25


class Owned:
    """See the module. `references`: whether what nobody here owns (conversations, items by id) may be named."""

    def __init__(self, database: Database, metrics: Metrics, *, references: str) -> None:
        self._database = database
        self._metrics = metrics
        self._is_strict = references == "refuse"
        self._waiting: list[tuple[Owner, asyncio.Future[bool]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def allow(self, principal: Principal, offer: Offer) -> Offer:
        """The offer, if all that it refers to is its wallet's, narrowed to where that is.

        Raises ResponseNotFound, LedgerAway.
        """
        request = offer.request
        if request.unowned is not None and self._is_strict:
            message = "What is kept upstream under an id can only be named by who made it, and that is not known here."
            raise ResponseNotFound(message, param=request.unowned)
        if request.follows is None:
            return offer
        found = await store.owner(self._database, principal.wallet_id, request.follows)
        routes = tuple(r for r in offer.routes if found is not None and r.upstream.name == found.upstream)
        if not routes:
            message = f"Previous response with id '{request.follows}' not found."
            raise ResponseNotFound(message, param="previous_response_id", code="previous_response_not_found")
        return offer._replace(routes=routes)

    async def owner(self, principal: Principal, response_id: str) -> Owner:
        """Raises ResponseNotFound, LedgerAway."""
        found = await store.owner(self._database, principal.wallet_id, response_id)
        if found is None:
            raise ResponseNotFound(f"Response with id '{response_id}' not found.")
        return found

    async def write_down(self, owner: Owner) -> bool:
        """Whether it is written down, durably."""
        until = monotonic_seconds() + (_WAIT_SECONDS if owner.unsettled is None else _INSIST_SECONDS)
        while True:
            if len(self._waiting) >= _WAITING_MAX:
                break
            written = asyncio.get_running_loop().create_future()
            self._waiting.append((owner, written))
            if self._writer is None:
                self._writer = spawn(self._write(), name="owners")
            done, _ = await asyncio.wait((written,), timeout=max(0.0, until - monotonic_seconds()))
            if done and written.result():
                return True
            if owner.unsettled is None or monotonic_seconds() > until:
                break
            await asyncio.sleep(_RETRY_SECONDS)
        self._metrics.unowned.inc()
        return False

    async def settled(self, owner: Owner) -> None:
        """Nothing is left to be settled; if that cannot be said now, the next look finds it so."""
        try:
            await store.settled(self._database, owner.wallet_id, owner.response_id, owner.hold_id)
        except LedgerAway:
            _log.warning("a settled response is looked at once more", extra={"fields": {"hold": owner.hold_id}})

    async def relayed(self, owner: Owner, output_count: int) -> None:
        """Keep how much of an unsettled one its client has been sent: cancelled, it is charged for that."""
        try:
            await store.relayed(self._database, owner, output_count)
        except LedgerAway:
            _log.warning("what was relayed of a response is not kept", extra={"fields": {"hold": owner.hold_id}})

    async def look_later(self, owner: Owner, seconds: float) -> None:
        """Look at an unsettled one after so many seconds; if that cannot be said now, then in its time."""
        try:
            await store.look_later(self._database, owner, seconds)
        except LedgerAway:
            _log.warning("a response is looked at in its time", extra={"fields": {"hold": owner.hold_id}})

    async def _write(self) -> None:
        try:
            while self._waiting:
                batch: dict[tuple[str, str], tuple[Owner, asyncio.Future[bool]]] = {}
                later: list[tuple[Owner, asyncio.Future[bool]]] = []
                for owner, written in self._waiting:
                    key = (owner.wallet_id, owner.response_id)
                    if len(batch) < _BATCH and key not in batch:
                        batch[key] = (owner, written)
                    else:
                        later.append((owner, written))
                self._waiting = later
                done = await self._written([owner for owner, _ in batch.values()])
                for key, (_, written) in batch.items():
                    if not written.done():
                        written.set_result(key in done)
        finally:
            self._writer = None

    async def _written(self, owners: list[Owner]) -> set[tuple[str, str]]:
        try:
            return await store.own(self._database, owners)
        except LedgerAway:
            return set()
        except Exception as error:  # a bug must not leave whoever waits without an answer
            self._metrics.crashes.inc()
            _log.exception("owners of responses could not be written", exc_info=error)
            return set()
