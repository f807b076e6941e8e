"""A whole gateway for a test: real sockets, a real database, and what a test wants to ask of it."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from pydantic import SecretStr

from gateway.app import App, running
from gateway.clock import new_id
from gateway.core.catalogue import Meter, Model, Rates, Tier
from gateway.core.money import parse_nanos
from gateway.db import keys, prices, wallets
from gateway.db.pool import Database
from gateway.settings import Settings, UpstreamSettings

# One nano per input token and four per output token: a test can work out a cost in its head.
RATES: Rates = {Meter.INPUT: 1_000, Meter.CACHED_INPUT: 500, Meter.OUTPUT: 4_000}
MODEL = "test-model"
FREE_MODEL = "free-model"
CONTEXT, OUTPUT = 128_000, 16_384
# More than any test has in flight at the one upstream of the `gateway` fixture.
CALLS_AT_ONCE_MAX = 10_000


@dataclass(slots=True)
class Farebox:
    """A running gateway, with a wallet and its key."""

    app: App
    wallet_id: str
    key: str
    session: aiohttp.ClientSession
    key_id: str = ""
    directory: Path = field(default_factory=Path)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.app.port}/v1"

    @property
    def ops_url(self) -> str:
        return f"http://127.0.0.1:{self.app.ops_port}"

    def headers(self, key: str | None = None) -> dict[str, str]:
        return {"Authorization": f"Bearer {key or self.key}", "Content-Type": "application/json"}

    def chat(self, key: str | None = None, **members: object) -> "aiohttp.client._RequestContextManager":
        """A chat call; `members` go into the body."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Say something."}], **members}
        return self.session.post(
            f"{self.base_url}/chat/completions", data=orjson.dumps(body), headers=self.headers(key)
        )

    async def wallet(self, wallet_id: str | None = None) -> dict[str, Any]:
        row = await wallets.get(self.app.database, wallet_id or self.wallet_id)
        assert row is not None
        return dict(row)

    async def usage(self, wallet_id: str | None = None) -> list[dict[str, Any]]:
        """Resolved calls, newest first, their usage decoded."""
        rows = await wallets.usage(self.app.database, wallet_id or self.wallet_id, None, 10_000)
        return [dict(row) | {"usage": orjson.loads(row["usage"] or "null")} for row in rows]

    async def open_holds(self) -> int:
        row = await self.app.database.fetch_one("holds_summary")
        assert row is not None
        return int(row["open_holds"])

    async def new_wallet(self, credit: str) -> tuple[str, str]:
        """(wallet id, key) of another wallet."""
        return await make_wallet(self.app.database, credit)


async def make_wallet(database: Database, credit: str, *, models: Sequence[str] | None = None) -> tuple[str, str]:
    """A wallet with `credit` units and one key."""
    wallet_id, key = new_id(), keys.make_key()
    await wallets.create(database, wallet_id, "test")
    if parse_nanos(credit):
        await wallets.credit(database, wallet_id, new_id(), parse_nanos(credit), actor="test", reason="test")
    await keys.create(database, key, new_id(), wallet_id, name="test", models=models)
    return wallet_id, key


async def price_models(database: Database) -> None:
    """The test models and their prices, if they are not there yet."""
    if await prices.current(database):
        return
    await prices.save_models(database, [Model(MODEL, CONTEXT, OUTPUT), Model(FREE_MODEL, CONTEXT, OUTPUT)])
    free: Rates = {Meter.INPUT: 0, Meter.OUTPUT: 0}
    none: tuple[Tier, ...] = ()
    now = datetime.now(UTC)
    versions = [(MODEL, RATES), (FREE_MODEL, free)]
    await prices.add_prices(database, [prices.PriceVersion(name, now, rates, none, "test") for name, rates in versions])


@asynccontextmanager
async def farebox(
    dsn: str,
    base_urls: Sequence[str],
    *,
    credit: str = "100",
    upstream: dict[str, Any] | None = None,
    each: Sequence[dict[str, Any]] = (),
    **settings: Any,
) -> AsyncIterator[Farebox]:
    """A gateway before upstreams at `base_urls`, in order; `upstream` are settings of each of them, `each` of one."""
    directory = Path(tempfile.mkdtemp(prefix="farebox-test-"))
    database = Database(dsn)
    try:
        await price_models(database)
        wallet_id, key = await make_wallet(database, credit)
        upstreams = tuple(
            UpstreamSettings.model_validate(
                {"name": f"up{number}", "base_url": url, "api_key": SecretStr("sk-upstream-secret")}
                | (upstream or {})
                | (each[number] if number < len(each) else {})
            )
            for number, url in enumerate(base_urls)
        )
        chosen: dict[str, Any] = {"port": 0, "ops_port": 0, "data_directory": directory, "stop_seconds": 2.0} | settings
        async with (
            running(Settings(**chosen), dsn, upstreams=upstreams) as app,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        ):
            row = await keys.by_hash(database, keys.hash_key(key))
            assert row is not None
            yield Farebox(app, wallet_id, key, session, str(row["key_id"]), directory)
    finally:
        await database.close()
        shutil.rmtree(directory, ignore_errors=True)
