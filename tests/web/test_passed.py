"""Bodies of requests that are passed on: of any kind, and bounded as any other. What becomes of them:
tests/request/test_passed.py."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.support.postgres import ScratchPostgres
from tests.support.rawhttp import request
from tests.support.refusals import check_refused
from tests.support.shop import Shop, open_shop, visit

pytestmark = pytest.mark.asyncio(loop_scope="module")
RULE = {"path": "/files", "methods": ["POST"], "upstream": "up0"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bounded_all_day(scratch: ScratchPostgres) -> AsyncIterator[Shop]:
    async with open_shop(scratch, "bounded", allow=[RULE], body_bytes_max=4_096, body_seconds=0.3) as opened:
        yield opened


@pytest.mark.parametrize(
    ("headers", "body", "status", "code"),
    [
        ((), b"x" * 4_097, 413, "body_too_large"),
        (("Transfer-Encoding: chunked",), b"1001\r\n" + b"x" * 4_097 + b"\r\n0\r\n\r\n", 413, "body_too_large"),
        (("Content-Encoding: gzip",), b"x", 415, "unsupported_media_type"),
        (("Content-Length: 9",), b"x", 408, "request_timed_out"),
    ],
)
async def test_a_body_is_bounded(
    bounded_all_day: Shop, headers: tuple[str, ...], body: bytes, status: int, code: str
) -> None:
    async with visit(bounded_all_day) as shop:
        framed = any("Length" in header or "Transfer" in header for header in headers)
        data = request("POST", "/v1/files", *headers, body=b"" if framed else body, key=shop.farebox.key)
        if framed:
            head = data.replace(b"Content-Length: 0\r\n", b"")
            data = head + body
        await check_refused(shop, data, status, code)
