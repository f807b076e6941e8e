"""Calls that carry an Idempotency-Key, and what a test asks of the rows behind them."""

from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson
from multidict import CIMultiDict

from tests.support.gateway import MODEL, Farebox
from tests.support.shop import CREDIT_NANOS, settled

HEADER = "Idempotency-Key"


@dataclass(slots=True)
class Answer:
    """One reply; `is_broken` where the connection ended before it did."""

    status: int | None = None
    headers: CIMultiDict[str] = field(default_factory=CIMultiDict)
    body: bytes = b""
    is_broken: bool = False

    @property
    def is_replayed(self) -> bool:
        return self.headers.get("idempotent-replayed") == "true"

    @property
    def error(self) -> dict[str, Any]:
        """The error of a refusal; empty where there is none."""
        return dict(orjson.loads(self.body)["error"]) if self.status != 200 else {}

    @property
    def is_still_running(self) -> bool:
        return self.status == 409 and self.error["code"] == "idempotent_call_running"


def post(
    session: aiohttp.ClientSession, base_url: str, api_key: str, key: str | None, **members: object
) -> "aiohttp.client._RequestContextManager":
    """A chat call with this idempotency key."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Say something."}], **members}
    headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}
    if key is not None:
        headers[HEADER] = key
    return session.post(f"{base_url}/chat/completions", data=orjson.dumps(body), headers=headers)


async def ask_at(
    session: aiohttp.ClientSession, base_url: str, api_key: str, key: str | None, **members: object
) -> Answer:
    """One call with this key, to its end, whatever that is."""
    answer = Answer()
    try:
        async with post(session, base_url, api_key, key, **members) as response:
            answer.status = response.status
            answer.headers = CIMultiDict(response.headers)
            async for data in response.content.iter_any():
                answer.body += data
    except (aiohttp.ClientError, ConnectionError):
        answer.is_broken = True
    return answer


async def ask(gateway: Farebox, key: str | None, **members: object) -> Answer:
    """The same at a gateway in this process."""
    return await ask_at(gateway.session, gateway.base_url, gateway.key, key, **members)


async def rows(gateway: Farebox) -> list[dict[str, Any]]:
    """This wallet's keys as they are stored."""
    async with gateway.app.database.connection() as connection:
        found = await connection.fetch("SELECT * FROM idempotency_keys WHERE wallet_id = $1", gateway.wallet_id)
    return [dict(row) | {"hold_id": str(row["hold_id"])} for row in found]


async def change(gateway: Farebox, statement: str, *arguments: object) -> None:
    """Change something behind the gateway's back; $1 is the wallet."""
    async with gateway.app.database.connection() as connection:
        await connection.execute(statement, gateway.wallet_id, *arguments)


async def charged(gateway: Farebox) -> list[int]:
    """What this wallet's calls were charged, those that were; nothing is held."""
    await settled(gateway)
    wallet = await gateway.wallet()
    charges = [event["charged_nanos"] for event in await gateway.usage() if event["charged_nanos"]]
    assert (wallet["balance_nanos"], wallet["held_nanos"]) == (CREDIT_NANOS - sum(charges), 0)
    return charges
