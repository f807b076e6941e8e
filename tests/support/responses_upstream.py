"""The far side of the wire for the Responses API: a server on loopback that keeps responses, and logs what it did.

async with FakeResponses() as upstream:
    upstream.next(Broken(after_events=5))      # the next POST; then it answers honestly
    upstream.finish("completed")               # what is in the background ends so, from the next look on
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import orjson
from aiohttp import web

from tests.support.responses import message_item, response_json, stream_events, usage_json

WORDS = ("Say", " something", " kind", ".")
USAGE = usage_json(10, 20)
WAIT_SECONDS_MAX = 10.0


@dataclass(slots=True)
class Asked:
    """One entry of the log."""

    method: str
    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    left: bool = False


class Behaviour(Protocol):
    """Answers one POST."""

    async def reply(self, upstream: "FakeResponses", request: web.Request, asked: Asked) -> web.StreamResponse: ...


@dataclass(frozen=True, slots=True)
class Honest:
    """A response as it was asked for. `members` replace some of its own, `items` are those of tools."""

    members: dict[str, Any] = field(default_factory=dict)
    items: tuple[object, ...] = ()
    usage: Any = field(default_factory=lambda: USAGE)
    after_events: int | None = None  # the connection is then cut
    stall: bool = False  # it says nothing more after those, instead of being cut
    pause_seconds: float = 0.0
    large_bytes: int = 0

    async def reply(self, upstream: "FakeResponses", request: web.Request, asked: Asked) -> web.StreamResponse:
        text = "".join(WORDS) + "x" * self.large_bytes
        output = [*self.items, message_item(text)]
        made = response_json(
            response_id=upstream.new_id(),
            output=output,
            usage=self.usage,
            background=asked.body.get("background", False),
            store=asked.body.get("store", True),
        )
        made |= {"model": asked.body["model"], **self.members}
        if asked.body.get("background"):
            upstream.ends[made["id"]] = made
            made = {**made, "status": "queued", "output": [], "usage": None}
        if asked.body.get("store") is not False:
            upstream.kept[made["id"]] = made
        if asked.body.get("stream"):
            return await self._stream(upstream, request, made)
        return upstream.json(made)

    async def _stream(
        self, upstream: "FakeResponses", request: web.Request, made: dict[str, Any]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        events = stream_events(upstream.ends.get(made["id"], made), items=self.items)
        for number, event in enumerate(events):
            if number == self.after_events:
                assert request.transport is not None
                if self.stall:
                    async with asyncio.timeout(WAIT_SECONDS_MAX):
                        await asyncio.Event().wait()
                request.transport.abort()
                return response
            await response.write(event)
            await asyncio.sleep(self.pause_seconds)
        if made["id"] in upstream.ends:
            upstream.kept[made["id"]] = upstream.ends.pop(made["id"])
        await response.write_eof()
        return response


@dataclass(frozen=True, slots=True)
class Says:
    """Exactly this."""

    status: int
    body: bytes
    content_type: str = "application/json"

    async def reply(self, upstream: "FakeResponses", request: web.Request, asked: Asked) -> web.StreamResponse:
        return web.Response(status=self.status, body=self.body, headers={"content-type": self.content_type})


class FakeResponses:
    """`kept` are the responses by id, `ends` how those in the background will end, `log` what was asked."""

    def __init__(self) -> None:
        self.default: Behaviour = Honest()
        self.log: list[Asked] = []
        self.kept: dict[str, dict[str, Any]] = {}
        self.ends: dict[str, dict[str, Any]] = {}
        self.is_down = False
        self.by_id: web.StreamResponse | None = None  # the reply to whatever is asked about a response
        self.pause_seconds = 0.0  # between the events of a replay
        self.on_create: Callable[[], None] | None = None  # before the reply to a POST
        self.port = 0
        self._script: deque[Behaviour] = deque()
        self._count = 0
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/responses", self._create)
        app.router.add_post("/v1/responses/input_tokens", self._count_tokens)
        app.router.add_post("/v1/responses/compact", self._compact)
        app.router.add_route("*", "/v1/responses/{id}", self._by_id)
        app.router.add_route("*", "/v1/responses/{id}/{what}", self._by_id)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def next(self, *behaviours: Behaviour) -> None:
        self._script.extend(behaviours)

    def new_id(self) -> str:
        self._count += 1
        return f"resp_{self.port}_{self._count:032x}"

    def finish(self, status: str = "completed", **members: object) -> None:
        """What works in the background ends so."""
        for response_id, end in list(self.ends.items()):
            self.kept[response_id] = {**end, "status": status, **members}
            del self.ends[response_id]

    def asked(self, method: str, ending: str = "") -> list[Asked]:
        """What was asked of paths that end so."""
        return [asked for asked in self.log if asked.method == method and asked.path.endswith(ending)]

    def json(self, document: object, status: int = 200) -> web.Response:
        return web.Response(status=status, body=orjson.dumps(document), headers={"content-type": "application/json"})

    async def _note(self, request: web.Request) -> Asked:
        body = await request.read()
        asked = Asked(request.method, request.path_qs, orjson.loads(body or b"{}"), dict(request.headers))
        self.log.append(asked)
        return asked

    async def _create(self, request: web.Request) -> web.StreamResponse:
        asked = await self._note(request)
        behaviour = self._script.popleft() if self._script else self.default
        if self.on_create is not None:
            self.on_create()
        try:
            return await behaviour.reply(self, request, asked)
        except (ConnectionResetError, asyncio.CancelledError):
            asked.left = True
            raise

    async def _count_tokens(self, request: web.Request) -> web.StreamResponse:
        await self._note(request)
        return self.json({"object": "response.input_tokens", "input_tokens": 11})

    async def _compact(self, request: web.Request) -> web.StreamResponse:
        await self._note(request)
        item = {"type": "compaction", "id": "cmp_1", "encrypted_content": "QUJD" * 10}
        return self.json(
            {"id": "resp_c", "object": "response.compaction", "created_at": 1, "output": [item], "usage": USAGE}
        )

    async def _by_id(self, request: web.Request) -> web.StreamResponse:
        asked = await self._note(request)
        if self.is_down:
            return self.json({"error": {"message": "Down.", "type": "server_error", "code": None}}, 500)
        if self.by_id is not None:
            return self.by_id
        response_id, what = request.match_info["id"], request.match_info.get("what")
        found = self.kept.get(response_id)
        if found is None:
            message = f"Response with id '{response_id}' not found."
            error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
            return self.json({"error": error}, 404)
        if what == "input_items":
            return self.json({"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False})
        if what == "cancel":
            self.kept[response_id] = found = {**found, "status": "cancelled"}
            self.ends.pop(response_id, None)
        elif asked.method == "DELETE":
            del self.kept[response_id]
            return self.json({"id": response_id, "object": "response", "deleted": True})
        elif request.query.get("stream") == "true":
            return await Honest(pause_seconds=self.pause_seconds)._stream(self, request, found)
        return self.json(found)
