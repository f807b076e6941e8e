"""Raw requests to a shop, and what every refusal must look like."""

import re
from collections.abc import AsyncIterator

import orjson
import pytest_asyncio

from tests.support.gateway import MODEL
from tests.support.postgres import ScratchPostgres
from tests.support.rawhttp import Reply, exchange, request
from tests.support.shop import Shop, open_shop, visit

PATH = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Say something."}]
BODY = orjson.dumps({"model": MODEL, "messages": MESSAGES})
STRICT_BODY_BYTES_MAX = 4_096
UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def post(shop: Shop, body: bytes, *headers: str, path: str = PATH) -> bytes:
    """A call by the shop's wallet."""
    return request("POST", path, *headers, body=body, key=shop.farebox.key)


def check_envelope(reply: Reply, status: int, code: str, param: str | None = None) -> None:
    """All four keys, and an id to ask about."""
    assert reply.status == status, reply.body
    assert reply.headers["Content-Type"] == "application/json"
    assert UUID7.fullmatch(reply.headers["x-request-id"])
    error = orjson.loads(reply.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    assert error["message"]
    assert error["type"].endswith(("_error", "_funds"))


async def check_refused(shop: Shop, data: bytes, status: int, code: str, param: str | None = None) -> Reply:
    """The request is refused with this code; nothing was sent upstream, held or charged."""
    reply = await exchange(shop.farebox.app.port, data)
    check_envelope(reply, status, code, param)
    await shop.untouched()
    return reply


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def strict_all_day(scratch: ScratchPostgres) -> AsyncIterator[Shop]:
    """A gateway with little patience."""
    async with open_shop(
        scratch,
        "strict",
        header_seconds=0.3,
        body_seconds=0.3,
        keep_alive_seconds=0.3,
        body_bytes_max=STRICT_BODY_BYTES_MAX,
    ) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def strict(strict_all_day: Shop) -> AsyncIterator[Shop]:
    """That gateway for one test."""
    async with visit(strict_all_day) as shop:
        yield shop
