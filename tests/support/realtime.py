"""The far side of realtime sessions: a WebSocket server on loopback whose log is the oracle, and a shop before it."""

import asyncio
import base64
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp
import orjson
import pytest
import pytest_asyncio
from aiohttp import WSMsgType, web

from gateway.core.catalogue import Meter, Model, Rates
from gateway.db import prices
from gateway.db.pool import Database
from tests.support.call import WAIT_SECONDS_MAX
from tests.support.postgres import ScratchPostgres
from tests.support.shop import Shop, open_shop, visit

REALTIME, WHISPER, TRANSCRIBE, TEXT_ONLY = "test-realtime", "test-whisper", "test-transcribe", "text-only"
REALTIME_RATES: Rates = {
    Meter.INPUT: 1_000, Meter.CACHED_INPUT: 500, Meter.OUTPUT: 4_000, Meter.AUDIO_INPUT: 8_000,
    Meter.CACHED_AUDIO_INPUT: 400, Meter.AUDIO_OUTPUT: 16_000, Meter.IMAGE_INPUT: 2_000,
}  # fmt: skip
TRANSCRIBE_RATES: Rates = {Meter.INPUT: 2_000, Meter.AUDIO_INPUT: 6_000, Meter.OUTPUT: 10_000}
_PRICED: Mapping[str, Rates] = {
    REALTIME: REALTIME_RATES,
    WHISPER: {Meter.AUDIO_MILLISECONDS: 100},
    TRANSCRIBE: TRANSCRIBE_RATES,
    TEXT_ONLY: {Meter.INPUT: 1_000, Meter.OUTPUT: 4_000},
}
CONTEXT, OUTPUT = 32_000, 4_096


def usage_of(text_in: int = 100, audio_in: int = 20, text_out: int = 10, audio_out: int = 30) -> dict[str, Any]:
    """U10, honest."""
    into, out = text_in + audio_in, text_out + audio_out
    return {
        "total_tokens": into + out,
        "input_tokens": into,
        "output_tokens": out,
        "input_token_details": {"text_tokens": text_in, "audio_tokens": audio_in, "cached_tokens": 0},
        "output_token_details": {"text_tokens": text_out, "audio_tokens": audio_out},
    }


def cost_of(text_in: int = 100, audio_in: int = 20, text_out: int = 10, audio_out: int = 30) -> int:
    """What `usage_of` costs, in nanos."""
    return text_in + 8 * audio_in + 4 * text_out + 16 * audio_out


EXACT = cost_of()


def frame(kind: str, **members: Any) -> bytes:
    """An event as bytes."""
    return orjson.dumps({"type": kind, **members})


def sound(seconds: float) -> str:
    """So much silence as pcm16 in base64."""
    return base64.b64encode(bytes(int(seconds * 48_000))).decode()


@dataclass(slots=True)
class Turn:
    """What a response is to be like. `stop`: where it ends: after `created`, after `delta`, or `done`."""

    usage: Any = field(default_factory=usage_of)
    status: str = "completed"
    text: tuple[str, ...] = ("Hello.",)
    audio_seconds: float = 0.5
    stop: str = "done"
    refuse: bool = False


@dataclass(slots=True, eq=False)
class Live:
    """One session as the upstream sees it."""

    socket: web.WebSocketResponse
    request: web.BaseRequest
    received: list[dict[str, Any]] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    done: list[tuple[str, Any]] = field(default_factory=list)
    close_code: int | None = None
    ended: bool = False
    number: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def touch(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, kind: str, count: int = 1) -> dict[str, Any]:
        """The event of this type, when the client's `count`th has come. Raises TimeoutError."""
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while len(found := [event for event in self.received if event.get("type") == kind]) < count:
                await self._changed.wait()
        return found[count - 1]

    async def finished(self) -> None:
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while not self.ended:
                await self._changed.wait()

    async def emit(self, kind: str, **members: Any) -> None:
        with contextlib.suppress(ConnectionError):
            await self.socket.send_str(orjson.dumps({"type": kind, "event_id": "event_up", **members}).decode())

    async def respond(self, turn: Turn, event: Mapping[str, Any] | None = None) -> str:
        """One response, from `created` to where the turn stops; its id."""
        if turn.refuse:
            error = {"code": "conversation_already_has_active_response", "message": "No."}
            await self.emit("error", error={**error, "event_id": (event or {}).get("event_id")})
            return ""
        self.number += 1
        key = f"resp_{id(self):x}_{self.number}"
        await self.emit("response.created", response={"id": key, "status": "in_progress"})
        if turn.stop == "created":
            return key
        for text in turn.text:
            await self.emit("response.output_audio_transcript.delta", response_id=key, delta=text)
        if turn.audio_seconds:
            await self.emit("response.output_audio.delta", response_id=key, delta=sound(turn.audio_seconds))
        if turn.stop == "delta":
            return key
        await self.finish(key, turn)
        return key

    async def finish(self, key: str, turn: Turn) -> None:
        """The end of a response."""
        self.done.append((key, turn.usage))
        await self.emit("response.done", response={"id": key, "status": turn.status, "usage": turn.usage})


class FakeRealtime:
    """Answers each `response.create` with the next turn; what else a test wants, it emits on a `Live` session."""

    def __init__(self) -> None:
        self.log: list[Live] = []
        self.turns: deque[Turn] = deque()
        self.refuse_status = 0
        self.greeting: dict[str, Any] = {"type": "realtime", "model": REALTIME, "instructions": "Be kind."}
        self.base_url = ""
        self._arrived = asyncio.Event()

    async def __aenter__(self) -> "FakeRealtime":
        self._runner = web.ServerRunner(web.Server(self._serve))
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        assert self._runner.addresses
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        for live in self.log:
            if live.request.transport is not None:
                live.request.transport.abort()
        await self._runner.cleanup()

    def forget(self) -> None:
        """Begin anew, for another test."""
        self.log.clear()
        self.turns.clear()
        self.refuse_status = 0
        self.greeting = {"type": "realtime", "model": REALTIME, "instructions": "Be kind."}

    async def live(self, count: int = 1) -> Live:
        """The `count`th session. Raises TimeoutError."""
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while len(self.log) < count:
                self._arrived.clear()
                await self._arrived.wait()
        return self.log[count - 1]

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.refuse_status:
            return web.Response(status=self.refuse_status, text="no")
        socket = web.WebSocketResponse(protocols=("realtime",), max_msg_size=2**26, autoclose=True)
        await socket.prepare(request)
        live = Live(socket, request)
        self.log.append(live)
        self._arrived.set()
        await live.emit("session.created", session=self.greeting)
        try:
            async for message in socket:
                if message.type is not WSMsgType.TEXT:
                    break
                await self._take(live, message.data)
        finally:
            live.ended, live.close_code = True, socket.close_code
            live.touch()
        return socket

    async def _take(self, live: Live, data: str) -> None:
        event = orjson.loads(data)
        live.raw.append(data.encode())
        live.received.append(event)
        live.touch()
        if event["type"] == "response.create":
            await live.respond(self.turns.popleft() if self.turns else Turn(), event)
        elif event["type"] == "session.update":
            await live.emit("session.updated", session={**self.greeting, **event["session"]})


@dataclass(slots=True)
class Talk:
    """The client's side of a session."""

    socket: aiohttp.ClientWebSocketResponse[bool]
    seen: list[dict[str, Any]] = field(default_factory=list)

    async def send(self, kind: str, **members: Any) -> None:
        await self.socket.send_str(orjson.dumps({"type": kind, **members}).decode())

    async def until(self, kind: str) -> dict[str, Any]:
        """The next event of this type; others before it are kept in `seen`. Raises TimeoutError, EOFError."""
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while True:
                message = await self.socket.receive()
                if message.type is not WSMsgType.TEXT:
                    raise EOFError(message)
                event: dict[str, Any] = orjson.loads(message.data)
                self.seen.append(event)
                if event["type"] == kind:
                    return event

    async def closed(self) -> int:
        """The code with which the gateway closes it; what came before is in `seen`. Raises TimeoutError."""
        with contextlib.suppress(EOFError):
            await self.until("never")
        assert self.socket.close_code is not None
        return self.socket.close_code

    async def respond(self, **response: Any) -> dict[str, Any]:
        """Ask for a response and wait for its end."""
        await self.send("response.create", **({"response": response} if response else {}))
        done: dict[str, Any] = (await self.until("response.done"))["response"]
        return done


@asynccontextmanager
async def talk(
    shop: Shop,
    model: str = REALTIME,
    *,
    key: str | None = None,
    greeted: bool = True,
    headers_more: Mapping[str, str] | None = None,
) -> AsyncIterator[Talk]:
    """A session by the shop's wallet."""
    url = f"{shop.farebox.base_url}/realtime?model={model}"
    headers = {"Authorization": f"Bearer {key or shop.farebox.key}", **(headers_more or {})}
    async with shop.farebox.session.ws_connect(url, headers=headers, max_msg_size=0) as socket:
        mine = Talk(socket)
        if greeted:
            await mine.until("session.created")
        yield mine


async def price_sessions(database: Database) -> None:
    """The models of sessions, and their prices."""
    await prices.save_models(database, [Model(model, CONTEXT, OUTPUT) for model in _PRICED])
    now = datetime.now(UTC)
    versions = [prices.PriceVersion(model, now, rates, (), "test") for model, rates in _PRICED.items()]
    await prices.add_prices(database, versions)


@asynccontextmanager
async def open_realtime_shop(
    scratch: ScratchPostgres, name: str, **settings: Any
) -> AsyncIterator[tuple[Shop, FakeRealtime]]:
    """A gateway before a fake of realtime (and one of chat, which refuses it)."""
    async with FakeRealtime() as fake, open_shop(scratch, name, urls=[fake.base_url], **settings) as shop:
        await price_sessions(shop.farebox.app.database)
        await shop.farebox.app.catalogue.run_once()
        yield shop, fake


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def realtime_all_day(
    scratch: ScratchPostgres, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[Shop, FakeRealtime]]:
    """The gateway itself; a test asks for `shop` and `fake`."""
    async with open_realtime_shop(scratch, request.node.path.stem, drain_seconds=0.5) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def fake(realtime_all_day: tuple[Shop, FakeRealtime]) -> FakeRealtime:
    """The upstream, with an empty log."""
    realtime_all_day[1].forget()
    return realtime_all_day[1]


@pytest_asyncio.fixture(loop_scope="module")
async def shop(realtime_all_day: tuple[Shop, FakeRealtime], fake: FakeRealtime) -> AsyncIterator[Shop]:
    """The gateway with a wallet of this test's own; after it nothing may be held."""
    async with visit(realtime_all_day[0]) as mine:
        yield mine
