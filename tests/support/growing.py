"""Streams whose holds grow, as a test asks for them and reads them.

A slice is 64 tokens. The prompt "Go on." makes a body of 84 bytes with `"stream":true`: at most 340 tokens, 21 by its
size, and 8 to the upstream. Its words are short, so that an output token is an event.
"""

import asyncio
from typing import Any

import orjson

from tests.support.call import WAIT_SECONDS_MAX
from tests.support.ledger_operations import open_ledger
from tests.support.shop import Shop

SLICE = 64
PROMPT_MAX, PROMPT_ESTIMATE, PROMPT = 84 + 256, 21, 8
FIRST = PROMPT_MAX + 4 * SLICE
ASKED: dict[str, Any] = {"stream": True, "messages": [{"role": "user", "content": "Go on."}]}


def extensions(shop: Shop, outcome: str) -> float:
    return shop.count("farebox_hold_extensions_total", outcome=outcome)


async def stream(shop: Shop, key: str | None = None, **members: object) -> tuple[int, bytes]:
    """(status, body) of a whole call. Raises TimeoutError: an upstream here may be endless."""
    async with asyncio.timeout(2 * WAIT_SECONDS_MAX), shop.farebox.chat(key, **ASKED | members) as response:
        return response.status, await response.read()


def words(body: bytes) -> int:
    """How many tokens of output a client has had."""
    return sum(body.count(b'"content":"%b"' % word) for word in (b"Go", b" Go", b" on."))


async def held(shop: Shop, event: dict[str, Any]) -> int:
    """What a call's hold had grown to when it was resolved."""
    async with open_ledger(shop.dsn) as ledger:
        statement = "SELECT held_nanos FROM usage_events WHERE hold_id = $1"
        return int(await ledger.connection.fetchval(statement, event["hold_id"]))


def cut_off(body: bytes) -> dict[str, Any]:
    """The error with which a stream was ended, well-formed to its last byte."""
    *_, last, end, rest = body.split(b"\n\n")
    assert (end, rest) == (b"data: [DONE]", b"")
    error: dict[str, Any] = orjson.loads(last.removeprefix(b"data: "))["error"]
    assert error["code"] == "cut_off"
    return error
