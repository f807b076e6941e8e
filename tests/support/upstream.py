"""The far side of the wire: an OpenAI-compatible upstream on loopback that does as it is told and logs what it did.

async with FakeUpstream() as upstream:
    upstream.next(Completion(output_tokens=7), RATE_LIMITED)   # the next two calls; then `upstream.default`
    ...
    served = await upstream.received()                         # the first call's entry in `upstream.log`
    await served.finished()
"""

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Iterator
from typing import Self

from aiohttp import web

from tests.support.behaviours import Behaviour, Completion
from tests.support.call import WAIT_SECONDS_MAX, Call, Served, recorded
from tests.support.completion import CREATED, DEFAULT_MODEL, Asked, error_json, read_asked

BODY_BYTES_MAX = 64 * 1024 * 1024


class FakeUpstream:
    """An HTTP/1.1 server on a free loopback port. `log` holds one `Served` per call, in order of arrival."""

    def __init__(self, default: Behaviour | None = None, *, models: tuple[str, ...] = (DEFAULT_MODEL,)) -> None:
        self.default: Behaviour = default or Completion()
        self.log: list[Served] = []
        self.port = 0
        self.models = models
        self._script: deque[Behaviour] = deque()
        self._arrived = asyncio.Event()
        self._live: set[asyncio.Transport] = set()
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_route("*", "/{path:.*}", self._answer)
        # A handler is cancelled when its client leaves: the log then knows at once how far it came.
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, backlog=4096)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        for transport in list(self._live):
            transport.abort()
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        """What an OpenAI SDK takes as its `base_url`."""
        return f"{self.url}/v1"

    def next(self, *behaviours: Behaviour) -> None:
        """Script the next calls, in order, before `default` answers again."""
        self._script.extend(behaviours)

    async def received(self, count: int = 1) -> Served:
        """Wait for the `count`-th call of all and return its entry. Raises TimeoutError."""
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while len(self.log) < count:
                await self._arrived.wait()
        return self.log[count - 1]

    async def idle(self) -> None:
        """Wait until every call so far has ended. Raises TimeoutError."""
        for served in self.log:
            await served.finished()

    @property
    def tokens(self) -> tuple[int, int]:
        """Prompt and completion tokens of all replies that were completely written, by honest count."""
        whole = [served for served in self.log if served.completed]
        return sum(served.prompt_tokens for served in whole), sum(served.completion_tokens for served in whole)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        served = Served(
            number=len(self.log) + 1,
            request_id=request.headers.get("x-request-id"),
            method=request.method,
            raw_path=request.raw_path,
            headers=request.headers,
            body=body,
            asked=_asked(body) if request.path.endswith("/chat/completions") else None,
        )
        self.log.append(served)
        self._arrived.set()
        self._arrived = asyncio.Event()
        call, transport = Call(request, served), request.transport
        assert transport is not None
        self._live.add(transport)
        try:
            async with recorded(call):
                behaviour = self._script[0] if self._script else self.default
                # Of other endpoints it knows nothing: what they answer is scripted.
                if served.asked is None and (request.path == "/v1/chat/completions" or not self._script):
                    return self._refuse(served)
                if self._script:
                    self._script.popleft()
                await behaviour.reply(call)
        finally:
            self._live.discard(transport)
        assert call.response is not None
        return call.response

    def _refuse(self, served: Served) -> web.Response:
        status = 400 if "/chat/completions" in served.raw_path else 404
        served.status = status
        return web.json_response(error_json("The fake upstream serves chat completions.", code="bad"), status=status)

    async def _list_models(self, request: web.Request) -> web.Response:
        models = [{"id": name, "object": "model", "created": CREATED, "owned_by": "fake"} for name in self.models]
        return web.json_response({"object": "list", "data": models})


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A loopback port that refuses connections, and that nobody else is given meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound and not listening
        yield held.getsockname()[1]


def _asked(body: bytes) -> Asked | None:
    try:
        return read_asked(body)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
