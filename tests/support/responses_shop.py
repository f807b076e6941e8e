"""A gateway before a fake of the Responses API, shared by the tests of a module, with a wallet for each."""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest
import pytest_asyncio

from gateway.app import App
from tests.support.gateway import MODEL, Farebox, farebox, make_wallet
from tests.support.ledger_check import check_invariants
from tests.support.postgres import ScratchPostgres
from tests.support.responses_upstream import Behaviour, FakeResponses
from tests.support.shop import CREDIT_NANOS, settled

# The fake counts 10 tokens in and 20 out, at 1 and 4 nanos.
EXACT = 10 + 4 * 20
BODY: dict[str, Any] = {"model": MODEL, "input": "Say something."}
FORMS: dict[str, dict[str, Any]] = {"json": {}, "stream": {"stream": True}}
both_forms = pytest.mark.parametrize("form", FORMS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def open_all_day(
    scratch: ScratchPostgres, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[Farebox, FakeResponses, str]]:
    dsn = await scratch.clone(request.node.path.stem)
    async with (
        FakeResponses() as upstream,
        farebox(dsn, [upstream.base_url], drain_seconds=0.2, background_look_seconds=0.1) as running,
    ):
        yield running, upstream, dsn
    await scratch.drop(request.node.path.stem)


@pytest_asyncio.fixture(loop_scope="module")
async def shop(open_all_day: tuple[Farebox, FakeResponses, str]) -> AsyncIterator["Shop"]:
    running, upstream, dsn = open_all_day
    upstream.log.clear()
    wallet_id, key = await make_wallet(running.app.database, "100")
    shop = Shop(running, upstream, wallet_id, key)
    yield shop
    await settled(running)
    await check_invariants(dsn)


class Shop:
    """The gateway with a wallet of one test."""

    def __init__(self, running: Farebox, upstream: FakeResponses, wallet_id: str, key: str) -> None:
        self.running, self.upstream, self.wallet_id, self.key = running, upstream, wallet_id, key

    @property
    def app(self) -> App:
        return self.running.app

    def get(self, path: str, key: str | None = None, **query: str) -> "aiohttp.client._RequestContextManager":
        return self.ask("GET", path, key, **query)

    def ask(
        self, method: str, path: str, key: str | None = None, **query: str
    ) -> "aiohttp.client._RequestContextManager":
        url = f"{self.running.base_url}/responses/{path}"
        headers = {"Authorization": f"Bearer {key or self.key}"}
        return self.running.session.request(method, url, params=query, headers=headers)

    async def made(self, **members: Any) -> dict[str, Any]:
        """A new response."""
        async with self.post(**members) as response:
            assert response.status == 200, await response.text()
            made: dict[str, Any] = await response.json()
            return made

    def post(self, path: str = "", **members: Any) -> "aiohttp.client._RequestContextManager":
        url, data = f"{self.running.base_url}/responses{path}", orjson.dumps({**BODY, **members})
        return self.running.session.post(url, data=data, headers=self.running.headers(self.key))

    async def call(self, form: str, behaviour: Behaviour, **members: object) -> tuple[int, bytes]:
        self.upstream.next(behaviour)
        async with self.post(**{**FORMS[form], **members}) as response:
            return response.status, await response.read()

    async def resolved(self, charge: int, basis: str, reason: str | None) -> dict[str, Any]:
        await settled(self.running)
        events = await self.running.usage(self.wallet_id)
        assert len(events) == 1, events
        found = events[0]
        assert (found["charged_nanos"], found["basis"], found["reason"]) == (charge, basis, reason)
        assert found["endpoint"] == "responses"
        wallet = await self.running.wallet(self.wallet_id)
        assert (wallet["balance_nanos"], wallet["held_nanos"]) == (CREDIT_NANOS - charge, 0)
        return found
