"""Calls that carry an Idempotency-Key: asked again, they are answered again, and charged once.

A key is claimed, durably, before the hold is placed, and the claim names the hold's id; so whatever happens to this
process, the ledger can say what became of the call. A key of which nothing was charged may be taken over, but only
once its hold can charge nothing any more: not by being placed late, nor by being settled late. The table of cases is
in the README, and decided in sql/queries/idempotency.sql.

The reply is kept after the settle and before the last bytes go out: who saw all of it is answered with it again.
"""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from functools import partial

import orjson
from multidict import CIMultiDict

from gateway import points
from gateway.clock import monotonic_seconds, new_id
from gateway.core.money import format_nanos
from gateway.core.multipart import Form
from gateway.db import idempotency as store
from gateway.db.idempotency import Found, Key, Standing
from gateway.db.lanes import Lane, LaneFull, Operation, OperationRefused
from gateway.db.pool import Database, LedgerAway
from gateway.errors import (
    IdempotencyKeyReused,
    IdempotentCallRunning,
    IdempotentReplyLost,
    LedgerUnavailable,
    MalformedRequest,
    Overloaded,
)
from gateway.metrics import Metrics
from gateway.request.admit import Offer
from gateway.request.authenticate import Principal
from gateway.request.handle import IDEMPOTENCY_KEY, Finish, Serve
from gateway.request.hold import hold_fields
from gateway.request.vault import Kept, Vault
from gateway.request.watch import Client
from gateway.tasks import spawn

_log = logging.getLogger("farebox.idempotency")

KEY_CHARS_MAX = 255
_TRIES_MAX = 8
# How long a client waits for its reply to be kept; it is tried on behind its back.
_WAIT_SECONDS_MAX = 2.0
_RETRY_SECONDS = 0.5
_FINISH_SECONDS_MAX = 2.0
_INSISTENT_MAX = 1_000
# Of replies that are being collected or stored, over all callers.
_COLLECTED_BYTES_MAX = 2**28


class Fate(StrEnum):
    """What becomes of a call with a key, and of its reply: the labels of farebox_idempotency_total."""

    CLAIMED = "claimed"
    TAKEN_OVER = "taken_over"
    REPLAYED = "replayed"
    RUNNING = "running"
    OTHER_BODY = "other_body"
    LOST = "lost"
    UNREADABLE = "unreadable"
    KEPT = "kept"
    NOT_KEPT = "not_kept"
    RELEASED = "released"
    SUPERSEDED = "superseded"
    STORE_FAILED = "store_failed"


class Idempotency:
    """See the module. `hold_valid_seconds` times the patience with a call of which nothing is heard."""

    def __init__(
        self,
        database: Database,
        lane: Lane,
        vault: Vault,
        metrics: Metrics,
        *,
        keep_seconds: int,
        reply_bytes_max: int,
        hold_valid_seconds: int,
    ) -> None:
        self._database = database
        self._lane = lane
        self._vault = vault
        self._metrics = metrics
        # Each is there from the start, so that its first count is an increase.
        self._counts = {fate: metrics.idempotency.labels(fate) for fate in Fate}
        self._keep_seconds = keep_seconds
        self.reply_bytes_max = reply_bytes_max
        self._unplaced_seconds = 2.0 * hold_valid_seconds
        self._grace_seconds = float(hold_valid_seconds)
        self._unfinished: set[asyncio.Task[None]] = set()
        self._collected_bytes = 0

    @property
    def unfinished(self) -> int:
        """How many claims are being released, or replies kept."""
        return len(self._unfinished)

    async def finished(self) -> None:
        """Wait, not for ever, until nothing is unfinished. For the end of the process."""
        if self._unfinished:
            await asyncio.wait(self._unfinished, timeout=_FINISH_SECONDS_MAX)

    async def run(
        self, principal: Principal, offer: Offer, path: str, headers: Mapping[str, str], client: Client, serve: Serve
    ) -> Finish:
        """Serve the call, or replay what it was answered before.

        Raises MalformedRequest, IdempotencyKeyReused, IdempotentCallRunning, IdempotentReplyLost, LedgerUnavailable,
        LedgerAway, Overloaded, and what `serve` raises.
        """
        key = request_key(principal.wallet_id, path, headers, offer.body)
        if self._lane.away:
            raise LedgerUnavailable
        claimed = await self._claimed(key, principal, offer)
        if isinstance(claimed, Found):
            return await self._replay(key, claimed, client)
        if points.armed:
            points.reach("idempotency.claimed")
        return await self._serve(key, claimed, client, serve)

    async def _claimed(self, key: Key, principal: Principal, offer: Offer) -> str | Found:
        """The id of the hold that this call may place, or the reply that is kept. Raises the refusals of `run`."""
        database, keep_seconds = self._database, self._keep_seconds
        for _ in range(_TRIES_MAX):
            hold_id = new_id()
            try:
                if await store.claim(database, key, hold_id, keep_seconds=keep_seconds):
                    self._count(Fate.CLAIMED)
                    return hold_id
                found = await store.look(
                    database, key, unplaced_seconds=self._unplaced_seconds, grace_seconds=self._grace_seconds
                )
                if found is None:
                    continue  # released meanwhile
                if found.standing is Standing.FREE:
                    if await store.take_over(database, key, found.hold_id, hold_id, keep_seconds=keep_seconds):
                        self._count(Fate.TAKEN_OVER)
                        return hold_id
                    continue
            except BaseException:
                # Whether the claim took effect is not known; a retry must not have to wait for it to grow old.
                self._behind(partial(store.release, database, key, hold_id))
                raise
            if found.standing is Standing.FINISHED:
                return found
            if found.standing not in (Standing.UNPLACED, Standing.SWEPT):
                raise self._refusal(found)
            await self._supersede(found, principal, offer)
        self._count(Fate.RUNNING)
        raise IdempotentCallRunning

    def _refusal(self, found: Found) -> IdempotencyKeyReused | IdempotentCallRunning | IdempotentReplyLost:
        self._count(Fate(found.standing))
        if found.standing is Standing.OTHER_BODY:
            return IdempotencyKeyReused()
        if found.standing is Standing.LOST:
            return _lost(found)
        return IdempotentCallRunning()

    async def _supersede(self, found: Found, principal: Principal, offer: Offer) -> None:
        """See that the hold of a call that died can charge nothing any more, even if its gateway only slept.

        A hold that was never placed is voided: placed later, it is refused. One that was swept at nothing is settled
        at nothing: settled later, by a gateway that wakes up or from a journal, it was settled already.
        """
        shared = {**hold_fields(principal, offer, found.hold_id), "upstream": None, "reason": "superseded"}
        if found.standing is Standing.UNPLACED:
            document = {"op": "void", **shared}
        else:
            document = {"op": "settle", **shared, "cost": 0, "picos": 0, "usage": {}, "basis": "none"}
        try:
            await self._lane.submit(Operation(principal.wallet_id, found.hold_id, orjson.dumps(document)))
        except LaneFull:
            raise Overloaded from None
        except OperationRefused as error:
            self._metrics.crashes.inc()
            raise LedgerUnavailable from error

    async def _replay(self, key: Key, found: Found, client: Client) -> Finish:
        kept = None if found.reply is None else self._vault.open(key, found.reply)
        if kept is None:
            self._count(Fate.UNREADABLE)
            _log.error("a kept reply cannot be read", extra={"fields": {"hold": found.hold_id}})
            raise _lost(found)
        self._count(Fate.REPLAYED)
        headers = CIMultiDict(kept.headers)
        headers["idempotent-replayed"] = "true"
        if not headers.get("Content-Type", "").lower().startswith("text/event-stream"):
            return Finish(kept.status, headers, kept.body, started=False)
        with suppress(ConnectionError):  # it has left; nothing is owed
            await client.start(kept.status, headers)
        return Finish(kept.status, headers, kept.body, started=True)

    async def _serve(self, key: Key, hold_id: str, client: Client, serve: Serve) -> Finish:
        """Serve the call as the one that has the key, and keep its reply."""
        copy = _Copy(client, self)
        let_go = partial(self._let_go, key, hold_id)
        try:
            finish = await serve(hold_id, copy)
        except BaseException as error:
            # Refused or failed: where nothing was charged, asking again begins anew, and may do so at once.
            copy.discard()
            releasing = self._behind(let_go)
            if isinstance(error, Exception):
                await self._waited(releasing)
            raise
        body = copy.whole(finish)
        if body is None:
            copy.discard()
            await self._waited(self._behind(let_go))
            return finish
        keeping = self._behind(partial(self._keep, key, hold_id, finish, body))
        keeping.add_done_callback(lambda _: copy.discard())
        await self._waited(keeping)
        if points.armed:
            points.reach("idempotency.stored")
        return finish

    async def _keep(self, key: Key, hold_id: str, finish: Finish, body: bytes) -> None:
        sealed = self._vault.seal(key, Kept(finish.status, list(finish.headers.items()), body))
        is_kept = await store.keep(self._database, key, hold_id, sealed, keep_seconds=self._keep_seconds)
        self._count(Fate.KEPT if is_kept else Fate.SUPERSEDED)

    async def _let_go(self, key: Key, hold_id: str) -> None:
        if await store.release(self._database, key, hold_id):
            self._count(Fate.RELEASED)
        elif await store.lose(self._database, key, hold_id):
            self._count(Fate.NOT_KEPT)

    @staticmethod
    async def _waited(task: "asyncio.Task[None]") -> None:
        """Wait for it, but not for long. Whoever is cancelled here does not stop it."""
        await asyncio.wait({task}, timeout=_WAIT_SECONDS_MAX)

    def _behind(self, work: Callable[[], Awaitable[object]]) -> "asyncio.Task[None]":
        """Do what must not end with its caller."""
        task = spawn(self._insist(work), name="idempotency")
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        return task

    async def _insist(self, work: Callable[[], Awaitable[object]]) -> None:
        """Try again while the ledger is away, for half of the time that others wait before they call the reply lost; at
        once no more, where many are at it."""
        until = monotonic_seconds() + self._grace_seconds / 2
        try:
            while True:
                try:
                    await work()
                    return
                except LedgerAway:
                    if monotonic_seconds() > until or len(self._unfinished) > _INSISTENT_MAX:
                        raise
                await asyncio.sleep(_RETRY_SECONDS)
        except Exception as error:
            if not isinstance(error, LedgerAway):
                self._metrics.crashes.inc()
            self._count(Fate.STORE_FAILED)
            _log.exception("an idempotency key could not be brought up to date", exc_info=error)

    def make_room(self, size: int) -> bool:
        """Whether so many more bytes may be collected; they are then to be given back."""
        if self._collected_bytes + size > _COLLECTED_BYTES_MAX:
            return False
        self._collected_bytes += size
        return True

    def give_back(self, size: int) -> None:
        """So many bytes are collected no more."""
        self._collected_bytes -= size

    def _count(self, fate: Fate) -> None:
        self._counts[fate].inc()


def request_key(wallet_id: str, path: str, headers: Mapping[str, str], body: bytes | Form) -> Key:
    """The key of a request, by its one header. Raises MalformedRequest."""
    values = [value for name, value in headers.items() if name.lower() == IDEMPOTENCY_KEY]
    if len(values) != 1:
        raise MalformedRequest("Send one Idempotency-Key.", code="invalid_idempotency_key")
    value = values[0]
    if not (1 <= len(value) <= KEY_CHARS_MAX and value.isascii() and value.isprintable()):
        message = f"An Idempotency-Key has 1 to {KEY_CHARS_MAX} printable ASCII characters."
        raise MalformedRequest(message, code="invalid_idempotency_key")
    encoded = value.encode()
    # The key goes into the second hash too: with a key that cannot be guessed, nor can a short prompt be.
    request = hashlib.sha256(b"%d\0%b\0POST %b\0" % (len(encoded), encoded, path.encode()))
    # Of a form counts what it says: its boundary is another one each time.
    request.update(body if isinstance(body, bytes) else body.digest())
    return Key(wallet_id, hashlib.sha256(encoded).digest(), request.digest())


def _lost(found: Found) -> IdempotentReplyLost:
    details = {"charged": format_nanos(found.charged_nanos), "hold": found.hold_id}
    return IdempotentReplyLost(details=details, headers={"x-farebox-hold": found.hold_id})


class _Copy:
    """The client, and a copy of the stream that it is sent, as far as that may be kept."""

    __slots__ = ("_client", "_held_bytes", "_home", "_is_dropped", "_pieces")

    def __init__(self, client: Client, home: Idempotency) -> None:
        self._client = client
        self._home = home
        self._pieces: list[bytes] = []
        self._held_bytes = 0
        self._is_dropped = False

    def gone(self) -> bool:
        return self._client.gone()

    def abort(self) -> None:
        self._client.abort()

    async def start(self, status: int, headers: CIMultiDict[str]) -> None:
        await self._client.start(status, headers)

    async def write(self, data: bytes) -> None:
        self._add(data)
        await self._client.write(data)

    def missed(self, data: bytes) -> None:
        """A client that left and asks again gets the whole of what it has paid for."""
        self._add(data)

    def whole(self, finish: Finish) -> bytes | None:
        """All of the reply, if it is one that may be kept."""
        if not finish.is_whole or finish.is_broken:
            return None
        for piece in (*finish.pieces, finish.body):
            self._add(piece)
        body = None if self._is_dropped else b"".join(self._pieces)
        self._pieces.clear()
        return body

    def discard(self) -> None:
        """Give back what was collected."""
        self._pieces.clear()
        self._home.give_back(self._held_bytes)
        self._held_bytes = 0
        self._is_dropped = True

    def _add(self, data: bytes) -> None:
        if self._is_dropped:
            return
        too_large = self._held_bytes + len(data) > self._home.reply_bytes_max
        if too_large or not self._home.make_room(len(data)):
            self.discard()
            return
        self._held_bytes += len(data)
        self._pieces.append(data)
