"""A realtime session: frames both ways, in order, and each response and transcription a metered call of its own.

A frame that may start a response is sent upstream only while a hold stands that covers it. The frame that ends one
reaches the client only when its charge is durable. Where the funds end, what runs is finished within its hold; then
the client is told, and the session closed with 1008, after which no SDK connects again by itself.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import orjson

from gateway.clock import monotonic_seconds, new_id
from gateway.core.catalogue import Meter
from gateway.core.usage import says_nothing
from gateway.endpoints.endpoint import InvalidRequest
from gateway.endpoints.realtime import (
    Extent,
    Sound,
)
from gateway.endpoints.realtime_events import FromUpstream, Kind, read_upstream, with_error_id
from gateway.endpoints.realtime_frames import FromClient, event_id_of, read_client, with_event_id
from gateway.errors import Failure, MalformedRequest, Refused, SessionEnded, Stopping, UpstreamUnusable
from gateway.request.meter import Ending
from gateway.request.session_offers import SessionOffers
from gateway.request.tab import Payer, Tab
from gateway.request.upstream_socket import ABNORMAL, Socket
from gateway.tasks import spawn, stop

_log = logging.getLogger("farebox.session")
_RESPONSES_MAX = 32  # that run or are asked for at a time
_OUR_IDS = "event_farebox_"


class Close(NamedTuple):
    """How a session ends: the code for the client, what becomes of what runs, and what the client is told."""

    code: int
    ending: Ending
    failure: Failure | None = None
    reason: str = ""


class SessionLimits(NamedTuple):
    """How long a session may be silent, and how large a frame may be."""

    idle_seconds: float
    frame_bytes_max: int


def _minded(failure: Failure) -> Close:
    """No more may run: a refusal is final, while the ledger's absence is not."""
    return Close(1008 if isinstance(failure, Refused) else 1013, Ending.CUT_OFF, failure)


class Session:
    """One session. It is looked after by the watch, as calls are."""

    def __init__(self, payer: Payer, model: str, limits: SessionLimits) -> None:
        self.is_client_gone = False
        self._offers = offers = SessionOffers(payer, model)
        self.responses: Tab[Extent] = Tab(payer, offers.find_model, offers.response)
        self.transcriptions: Tab[Sound] = Tab(payer, offers.find_transcriber, offers.transcription)
        self._payer = payer
        self._gateway = payer.gateway
        self._limits = limits
        self._conversation = offers.conversation
        self._promised: dict[str, int] = {}  # responses asked for: event id -> the most tokens they may produce
        self._closing: asyncio.Future[Close] = asyncio.get_running_loop().create_future()
        self._stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._moved_at_seconds = monotonic_seconds()
        self._ends_at_seconds = 0.0
        self._writing_since_seconds = 0.0
        self._client: Socket
        self._upstream: Socket
        payer.is_busy = self._is_busy

    # What is held

    def _need(self, cap: int | None = None) -> Extent:
        """Of the next response."""
        running = sum(item.need.output_tokens for item in self.responses.running.values())
        return self._offers.need(running + sum(self._promised.values()), cap)

    def _is_busy(self) -> bool:
        return bool(self.responses.running or self.transcriptions.running or self._promised)

    async def hold_first(self) -> None:
        """Hold what the first response may cost. Raises Failure."""
        await self.responses.ready(lambda: (self._need(), 1))

    async def give_up(self) -> None:
        """The session was never opened."""
        await self.responses.close(Ending.REFUSED)

    # Both directions

    async def run(self, upstream: Socket, client: Socket, total_seconds: float) -> None:
        """Relay until either side, the funds or a limit ends it; then resolve every hold."""
        self._upstream, self._client = upstream, client
        self._moved_at_seconds = monotonic_seconds()
        self._ends_at_seconds = self._moved_at_seconds + total_seconds
        self._gateway.metrics.sessions.inc()
        self._gateway.watch.enter(self)
        up = spawn(self._guarded(self._from_upstream), name="session from upstream")
        down = spawn(self._guarded(self._from_client), name="session from client")
        close = Close(1011, Ending.CRASHED)
        try:
            close = await asyncio.shield(self._closing)
            await stop(down)
            if close.ending is Ending.CLIENT_GONE and self._is_busy():
                waiting = (up, self._stopped)
                await asyncio.wait(waiting, timeout=self._gateway.drain_seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await stop(down)
            await stop(up)
            try:
                await self._wind_up(close)
            finally:
                self._gateway.watch.leave(self)
                self._gateway.metrics.sessions.dec()

    async def _guarded(self, pump: Callable[[], Awaitable[None]]) -> None:
        try:
            await pump()
        except Exception as error:
            self._gateway.metrics.crashes.inc()
            _log.exception("a session crashed", exc_info=error)
            self._end(Close(1011, Ending.CRASHED, Failure("Farebox failed unexpectedly. The failure was recorded.")))

    async def _wind_up(self, close: Close) -> None:
        """Every hold is resolved; then both sides are told."""
        try:
            await self.responses.close(close.ending)
            await self.transcriptions.close(close.ending)
        finally:
            await asyncio.gather(self._upstream.close(1000), self._part(close), return_exceptions=True)

    async def _part(self, close: Close) -> None:
        if close.failure is not None and not self.is_client_gone:
            document = {**_error(close.failure.document()), "status": close.failure.status}
            await self._to_client(orjson.dumps(document))
        await self._client.close(close.code, close.reason)

    def _end(self, close: Close) -> None:
        """The first reason counts."""
        if not self._closing.done():
            self.is_client_gone = self.is_client_gone or close.ending is Ending.CLIENT_GONE
            self._closing.set_result(close)

    async def _from_client(self) -> None:
        while not self._closing.done():
            frame = await self._client.receive()
            self._moved_at_seconds = monotonic_seconds()
            if frame.close_code is not None:
                self._end(Close(frame.close_code, Ending.CLIENT_GONE))
                await self._client.close(frame.close_code)  # what runs may take longer than it likes to wait
                return
            try:
                if not frame.is_text:
                    raise InvalidRequest("Send events as text frames.", code="invalid_frame")
                read = read_client(frame.data)
                data = self._admit(read)
            except InvalidRequest as error:
                await self._refuse(frame.data, MalformedRequest(error.message, code=error.code, param=error.param))
                continue
            except Failure as failure:
                await self._refuse(frame.data, failure)
                continue
            try:
                data = await self._cover(read, data)
                if self._closing.done():
                    return
                await self._upstream.send(data)
            except ConnectionError:
                return  # the other direction sees how it ended
            except Failure as failure:
                self._end(_minded(failure))
                return

    async def _refuse(self, data: bytes, failure: Failure) -> None:
        """Tell the client that a frame was not sent; the session goes on."""
        self._gateway.metrics.refused.labels("refused", failure.code).inc()
        await self._to_client(orjson.dumps(_error(failure.document(), event_id_of(data))))

    def _admit(self, frame: FromClient) -> bytes:
        """What to send upstream for a frame. Raises InvalidRequest, ModelNotFound."""
        if frame.starts and len(self.responses.running) + len(self._promised) >= _RESPONSES_MAX:
            raise InvalidRequest(f"At most {_RESPONSES_MAX} responses run at a time.", code="too_many_responses")
        return self._offers.admit(frame)

    async def _cover(self, frame: FromClient, data: bytes) -> bytes:
        """Return, once holds cover what may come of this frame, what to send. Raises Failure."""
        if frame.may_start:
            cap = self._offers.own_cap(frame)
            await self.responses.ready(lambda: (self._need(cap), len(self._promised) + 1 if frame.starts else 1))
            if frame.starts:
                # By its id an error is known to be about this frame; the client's own may be that of others, too.
                event_id = f"{_OUR_IDS}{new_id()}:{frame.event_id or ''}"
                data = with_event_id(frame, data, event_id)
                self._promised[event_id] = self._need(cap).output_tokens
        if self._conversation.transcription is not None and frame.type.startswith("input_audio_buffer."):
            if self._offers.has_changed(self.transcriptions.spares):
                await self.transcriptions.drop_spares()
            await self.transcriptions.ready(lambda: (self._conversation.sound(), 1))
        return data

    async def _from_upstream(self) -> None:
        while True:
            frame = await self._upstream.receive()
            self._moved_at_seconds = monotonic_seconds()
            if frame.close_code is not None:
                failure = UpstreamUnusable("The upstream broke off.") if frame.close_code == ABNORMAL else None
                self._end(Close(frame.close_code, Ending.BROKE, failure, frame.reason))
                return
            data = frame.data
            if frame.is_text:
                data = await self._hear(read_upstream(data), data)
            if not self.is_client_gone:
                await self._to_client(data, is_text=frame.is_text)
            elif not self._is_busy():
                return

    async def _to_client(self, data: bytes, *, is_text: bool = True) -> None:
        self._writing_since_seconds = monotonic_seconds()
        try:
            await self._client.send(data, is_text=is_text)
        except ConnectionError:
            self._end(Close(ABNORMAL, Ending.CLIENT_GONE))
        finally:
            self._writing_since_seconds = 0.0

    # What the upstream says

    async def _hear(self, seen: FromUpstream, data: bytes) -> bytes:
        """Begin and end what a frame begins and ends; returns what the client gets."""
        if seen.kind is Kind.OUTPUT:
            item = self.responses.running.get(seen.id)
            if item is not None:
                item.relayed(seen.text_bytes, seen.audio_bytes)
        elif seen.kind is Kind.CREATED:
            await self._created(seen.id)
        elif seen.kind is Kind.DONE:
            await self._done(seen)
        elif seen.kind is Kind.COMMITTED:
            await self._committed(seen.id)
        elif seen.kind in (Kind.TRANSCRIBED, Kind.NOT_TRANSCRIBED):
            await self._transcribed(seen)
        elif seen.kind is Kind.SESSION and seen.session is not None:
            try:
                self._offers.announced(seen.session, len(data), is_answer=seen.status == "updated")
            except Failure as failure:
                self._end(_minded(failure))
        elif seen.kind is Kind.ERROR and seen.id:
            if self._promised.pop(seen.id, None) is not None:
                self._payer.released.set()
            if seen.id.startswith(_OUR_IDS):
                return with_error_id(data, seen.id.partition(":")[2] or None)
        return data

    async def _created(self, key: str) -> None:
        if self.responses.knows(key):
            return
        self._payer.reply_bytes_per_second = self._conversation.reply_bytes_per_second
        need = self._need()
        if self._promised:
            del self._promised[next(iter(self._promised))]
        failure = await self.responses.begin(key, need, self._conversation.estimate())
        if failure is not None:
            self._end(_minded(failure))

    async def _done(self, seen: FromUpstream) -> None:
        if self.responses.has_ended(seen.id):
            return
        await self._created(seen.id)
        item = self.responses.running[seen.id]
        ending = Ending.COMPLETED
        if seen.status in ("failed", "cancelled") and (seen.usage is None or says_nothing(seen.usage)):
            ending = Ending.BROKE if seen.status == "failed" else Ending.COMPLETED
            ending = ending if item.events else Ending.REFUSED
        charge = await self.responses.end(seen.id, ending, seen.usage)
        if charge.basis == "reported":
            counts = {name: count for name, count in charge.usage.items() if isinstance(count, int)}
            output = counts.get(Meter.OUTPUT, 0) + counts.get(Meter.AUDIO_OUTPUT, 0)
            output += counts.get(Meter.REASONING_OUTPUT, 0)
            read = sum(count for name, count in counts.items() if name.endswith("input") or name.startswith("cache_w"))
            self._conversation.responded(read, output)
        else:
            self._conversation.responded(0, item.need.output_tokens)

    async def _committed(self, key: str) -> None:
        sound = self._conversation.committed()
        if self._conversation.transcription is None or self.transcriptions.knows(key):
            return
        tokens = -(-sound.milliseconds // 100)
        estimated: dict[str, int] = {Meter.AUDIO_INPUT: tokens, Meter.AUDIO_MILLISECONDS: sound.milliseconds}
        failure = await self.transcriptions.begin(key, sound, estimated)
        if failure is not None:
            self._end(_minded(failure))

    async def _transcribed(self, seen: FromUpstream) -> None:
        tab = self.transcriptions
        if tab.has_ended(seen.id) or not self._offers.transcriber:
            return
        if seen.id not in tab.running:
            await tab.begin(seen.id, self._conversation.sound(), {})
        if seen.text_bytes:
            tab.running[seen.id].relayed(seen.text_bytes, 0)
        ending = Ending.COMPLETED if seen.kind is Kind.TRANSCRIBED else Ending.REFUSED
        await tab.end(seen.id, ending, seen.usage)

    # What the watch asks

    def look(self, now: float) -> None:
        """Called by the watch a few times a second."""
        if now > self._ends_at_seconds or now - self._moved_at_seconds > self._limits.idle_seconds:
            self._end(Close(1000, Ending.CUT_OFF, SessionEnded()))
        elif self._gateway.stopping and not self._is_busy():
            self._end(Close(1012, Ending.STOPPED, Stopping()))
        if self._writing_since_seconds and now - self._writing_since_seconds > self._limits.idle_seconds:
            self._client.abort()  # one that takes nothing keeps money held
        self.responses.renew(now)
        self.transcriptions.renew(now)

    def stop(self) -> None:
        """End it now: the process is shutting down."""
        self._end(Close(1012, Ending.STOPPED, Stopping()))
        if not self._stopped.done():
            self._stopped.set_result(None)


def _error(document: dict[str, object], event_id: str | None = None) -> dict[str, object]:
    """OpenAI's envelope as an event of a session."""
    error = document["error"]
    assert isinstance(error, dict)
    return {"type": "error", "event_id": f"event_{new_id()}", "error": {**error, "event_id": event_id}}
