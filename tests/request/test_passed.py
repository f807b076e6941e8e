"""What an operator allows although nothing meters it: free, or at a flat price, and never a way around a meter."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
import pytest_asyncio

from gateway.core.catalogue import Meter, Model
from gateway.db import prices
from gateway.request.passed import matching, rules_of
from gateway.settings import AllowSettings
from tests.support.gateway import MODEL
from tests.support.offers import upstream_of
from tests.support.postgres import ScratchPostgres
from tests.support.rawhttp import Reply, exchange, request
from tests.support.refusals import BODY, check_envelope
from tests.support.scripted import Script
from tests.support.shop import CREDIT_NANOS, Shop, open_shop, settled, visit

pytestmark = pytest.mark.asyncio(loop_scope="module")

NANOS = 12_345
ALLOW: list[dict[str, Any]] = [
    {"path": "/files", "methods": ["GET", "POST"], "upstream": "up0"},
    {"path": "/files/{id}", "methods": ["GET", "DELETE"], "upstream": "up0"},
    {"path": "/files/{id}/content", "upstream": "up0", "model": "passed-model"},
    {"path": "/batches", "methods": ["POST"], "upstream": "up0", "model": "passed-model"},
    {"path": "/evals", "methods": ["POST"], "upstream": "up0", "model": MODEL},
    {"path": "/chat/completions", "methods": ["GET", "POST"], "upstream": "up0"},
]


def reply(body: bytes, status: str = "200 OK", content_type: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nX-Theirs: a\r\n\r\n"
    return head.encode() + body


@dataclass(slots=True)
class Door:
    """A shop whose first upstream answers by script, byte for byte."""

    shop: Shop
    script: Script

    async def ask(self, method: str, path: str, *headers: str, body: bytes = b"", key: str | None = None) -> Reply:
        data = request(method, f"/v1{path}", *headers, body=body, key=self.shop.farebox.key if key is None else key)
        return await exchange(self.shop.farebox.app.port, data)

    async def balance(self) -> tuple[int, int]:
        """(spent, held)"""
        await settled(self.shop.farebox)
        wallet = await self.shop.farebox.wallet()
        return CREDIT_NANOS - wallet["balance_nanos"], wallet["held_nanos"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door_all_day(scratch: ScratchPostgres) -> AsyncIterator[Door]:
    script = Script()
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0, limit=2**23)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with open_shop(scratch, "passed", urls=[url], allow=ALLOW) as opened:
        app = opened.farebox.app
        await prices.save_models(app.database, [Model("passed-model", 1, 1)])
        version = prices.PriceVersion("passed-model", datetime.now(UTC), {Meter.REQUESTS: NANOS * 1_000}, (), "test")
        await prices.add_prices(app.database, [version])
        await app.catalogue.run_once()
        yield Door(opened, script)
    for writer in script.writers:
        writer.transport.abort()
    server.close()
    await asyncio.sleep(0.01)


@pytest_asyncio.fixture(loop_scope="module")
async def door(door_all_day: Door) -> AsyncIterator[Door]:
    door_all_day.script.requests.clear()
    door_all_day.script.replies.clear()
    async with visit(door_all_day.shop) as shop:
        yield Door(shop, door_all_day.script)


async def test_what_is_free_passes_as_it_is_and_costs_nothing(door: Door) -> None:
    door.script.replies.append(reply(b'{"id":"file-1","usage":{"prompt_tokens":9}}'))
    got = await door.ask("GET", "/files/file-1?limit=2&after=a%20b", "X-Mine: 1")
    assert (got.status, got.body) == (200, b'{"id":"file-1","usage":{"prompt_tokens":9}}')
    assert got.headers["x-theirs"] == "a"
    assert got.headers["x-farebox-billing-source"] == "none"
    assert "x-farebox-hold" not in got.headers
    (sent,) = door.script.requests
    assert sent.startswith(b"GET /v1/files/file-1?limit=2&after=a%20b HTTP/1.1\r\n")
    assert b"\r\nX-Mine: 1\r\n" in sent
    assert b"\r\nAuthorization: Bearer sk-upstream-secret\r\n" in sent
    assert door.shop.farebox.key.encode() not in sent
    await door.shop.untouched()
    assert door.shop.count("farebox_passed_total", path="/files/{id}", price="free") == 1


async def test_any_kind_of_body_passes_byte_for_byte(door: Door) -> None:
    body = b"--b\r\nContent-Disposition: form-data; name=file\r\n\r\n" + bytes(range(256)) * 400 + b"\r\n--b--\r\n"
    got = await door.ask("POST", "/files", "Content-Type: multipart/form-data; boundary=b", body=body)
    assert got.status == 200
    assert door.script.requests[0].endswith(b"\r\n\r\n" + body)
    assert b"multipart/form-data; boundary=b\r\n" in door.script.requests[0]


@pytest.mark.parametrize(("path", "spent"), [("/files/f", 0), ("/files/f/content", NANOS)])
async def test_a_download_passes_as_it_comes(door: Door, path: str, spent: int) -> None:
    sound = bytes(range(256)) * 2**13
    door.script.replies.append(reply(sound, content_type="application/octet-stream"))
    got = await door.ask("GET", path)
    assert (got.status, got.body) == (200, sound)
    assert await door.balance() == (spent, 0)


@pytest.mark.parametrize("path", ["/files/f", "/files/f/content"])
async def test_half_a_download_is_not_taken_for_a_whole_one(door: Door, path: str) -> None:
    half = reply(b"x" * 100_000, content_type="application/octet-stream")[:-50_000]
    door.script.replies.append(half.replace(b"\r\nX-Theirs", b"\r\nConnection: close\r\nX-Theirs"))
    async with door.shop.farebox.session.get(
        f"{door.shop.farebox.base_url}{path}", headers=door.shop.farebox.headers()
    ) as response:
        with pytest.raises(Exception, match=r"not completed|[Cc]onnection|payload"):
            await response.read()
    assert (await door.balance())[1] == 0


async def test_a_flat_price_is_held_charged_and_explained(door: Door) -> None:
    got = await door.ask("POST", "/batches", body=b"anything")
    assert got.status == 200
    assert await door.balance() == (NANOS, 0)
    event = await door.shop.event()
    assert (event["endpoint"], event["basis"], event["upstream"]) == ("passed", "reported", "up0")
    assert event["usage"] == {"requests": 1}


@pytest.mark.parametrize("status", ["400 Bad Request", "500 Internal Server Error"])
async def test_a_flat_price_is_not_paid_for_a_failure(door: Door, status: str) -> None:
    door.script.replies.append(reply(b'{"error":{}}', status))
    got = await door.ask("POST", "/batches")
    assert (got.status, got.body) == (int(status[:3]), b'{"error":{}}')
    assert await door.balance() == (0, 0)


async def test_asked_again_with_its_key_it_is_charged_once(door: Door) -> None:
    for _ in range(2):
        got = await door.ask("POST", "/batches", "Idempotency-Key: one", body=b"{}")
        assert got.status == 200
    assert len(door.script.requests) == 1
    assert await door.balance() == (NANOS, 0)


async def test_without_funds_nothing_is_sent(door: Door) -> None:
    _, poor = await door.shop.farebox.new_wallet("0.000012344")
    got = await door.ask("POST", "/batches", key=poor)
    assert (got.status, orjson.loads(got.body)["error"]["code"]) == (402, "insufficient_funds")
    assert not door.script.requests


@pytest.mark.parametrize(
    ("method", "path", "key", "status", "code"),
    [
        ("GET", "/files", "", 401, "invalid_api_key"),
        ("POST", "/batches", "fb-nobody", 401, "invalid_api_key"),
        # A price without `requests` would make it free.
        ("POST", "/evals", None, 404, "model_not_priced"),
        ("DELETE", "/files", None, 405, "method_not_allowed"),
        ("GET", "/files/a/b", None, 403, "not_metered"),
        ("GET", "/files/..", None, 404, "unknown_path"),
        ("GET", "/files/a%2Fb", None, 404, "unknown_path"),
        ("GET", "/files/", None, 404, "unknown_path"),
        ("GET", "/threads", None, 403, "not_metered"),
    ],
)
async def test_what_is_not_allowed_is_not_sent(
    door: Door, method: str, path: str, key: str | None, status: int, code: str
) -> None:
    got = await door.ask(method, path, key=key)
    check_envelope(got, status, code)
    assert not door.script.requests
    await door.shop.untouched()


async def test_a_meter_cannot_be_allowed_away(door: Door) -> None:
    got = await door.ask("POST", "/chat/completions", body=b"{}")
    check_envelope(got, 400, "invalid_request", "model")
    assert not door.script.requests
    assert (await door.ask("POST", "/chat/completions", body=BODY)).status == 200
    assert (await door.balance())[0] > 0
    door.script.requests.clear()
    assert (await door.ask("GET", "/chat/completions?limit=1")).status == 200
    assert door.script.requests[0].startswith(b"GET /v1/chat/completions?limit=1 ")


async def test_rules_are_tried_in_their_order() -> None:
    given = [AllowSettings.model_validate(rule) for rule in [*ALLOW, {"path": "/x.y", "upstream": "gone"}]]
    rules = rules_of(given, [upstream_of()])
    assert len(rules) == len(ALLOW)
    found, _ = matching(rules, "GET", "/files/a")
    assert found is not None
    assert found.path == "/files/{id}"
    assert matching(rules, "PUT", "/files") == (None, ["GET", "POST"])
    assert matching(rules, "GET", "/x.y") == matching(rules, "GET", "/files/a/../b") == (None, [])
