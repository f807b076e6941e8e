"""What a client gets is what the upstream sent, but for the documented list; what goes upstream is what it asked."""

import asyncio
import re
from collections.abc import Mapping
from typing import Any

import aiohttp
import orjson
import pytest

from gateway.core.money import format_nanos
from gateway.tasks import spawn
from tests.support.behaviours import Completion, End, Form, RawStream, Status, Wire, failure
from tests.support.call import Gate
from tests.support.completion import absent
from tests.support.gateway import MODEL, Farebox, farebox
from tests.support.ledger_proxy import ledger_proxy
from tests.support.postgres import ScratchPostgres
from tests.support.rawhttp import RawConnection, exchange
from tests.support.refusals import BODY, PATH, UUID7, post
from tests.support.shop import DONE, EXACT, FORMS, Shop, both_forms, open_shop, until, visit
from tests.support.upstream import FakeUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

UPSTREAM_KEY = "sk-upstream-secret"
# The documented list: what is added to a reply, and what of the upstream's is not passed on.
OURS = {"x-request-id", "x-farebox-hold", "x-farebox-billing-source", "x-farebox-upstream-request-id"}
OURS_WHOLE = OURS | {"x-farebox-cost", "x-farebox-balance"}
NOT_RETURNED = {
    "set-cookie": "session=upstream",
    "openai-organization": "org-upstream",
    "openai-project": "proj-upstream",
    "alt-svc": 'h3=":443"',
    "keep-alive": "timeout=5",
    "proxy-authenticate": "Basic",
    "trailer": "x-checksum",
    "upgrade": "h2c",
}
RETURNED = {
    "openai-version": "2020-10-01",
    "x-ratelimit-remaining-tokens": "149999",
    "cache-control": "no-cache",
    "retry-after-ms": "20",
    "x-should-retry": "true",
    "x-anything": "at all",
}
TRANSPORT = {"date", "server", "connection", "content-length", "transfer-encoding"}


async def direct(shop: Shop, **members: object) -> tuple[int, Mapping[str, str], bytes]:
    """What the upstream itself answers."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Say something."}], **members}
    async with shop.farebox.session.post(f"{shop.upstream.base_url}/chat/completions", json=body) as response:
        return response.status, response.headers, await response.read()


def names(headers: Mapping[str, str]) -> set[str]:
    return {name.lower() for name in headers} - TRANSPORT


# Replies -------------------------------------------------------------------------------------------------------------


@both_forms
@pytest.mark.parametrize("status", [200, 201, 400, 429, 500])
async def test_status_headers_and_bytes_are_the_upstreams(shop: Shop, form: str, status: int) -> None:
    behaviour = Completion(status=status, headers={**RETURNED, **NOT_RETURNED}, usage=absent)
    shop.upstream.next(behaviour)
    direct_status, direct_headers, direct_body = await direct(shop, **FORMS[form])
    relayed_status, headers, body = await shop.call(form, behaviour)
    assert relayed_status == direct_status == status
    # The two calls differ in the id that the upstream gave them, and a stream whose usage we asked for in its nulls.
    body = body.replace(b"chatcmpl-2", b"chatcmpl-1").replace(b',"usage":null', b"")
    assert body == direct_body
    assert names(direct_headers) >= {*NOT_RETURNED, *RETURNED}
    whole = form == "json" or status >= 300
    assert names(headers) == names(direct_headers) - set(NOT_RETURNED) | (OURS_WHOLE if whole else OURS)
    for name, value in {**RETURNED, "content-type": direct_headers["content-type"]}.items():
        assert headers[name] == value
    assert headers["x-farebox-upstream-request-id"] == "req_2"


async def test_our_headers_say_what_the_call_was(shop: Shop) -> None:
    _, headers, _ = await shop.call("json", Completion())
    event = await shop.event()
    assert UUID7.fullmatch(headers["x-request-id"])
    assert headers["x-request-id"] == headers["x-farebox-hold"] == str(event["hold_id"])
    assert (headers["x-farebox-cost"], headers["x-farebox-balance"]) == ("0.00000009", "99.99999991")
    assert headers["x-farebox-billing-source"] == "balance"
    assert "x-farebox-output-cap" not in headers


async def test_an_error_that_quotes_our_key_does_not_pass_it_on(shop: Shop) -> None:
    for status in (401, 500):
        _, _, body = await shop.call("json", failure(status, f"Incorrect API key provided: {UPSTREAM_KEY}."))
        assert UPSTREAM_KEY.encode() not in body
        assert orjson.loads(body)["error"]["message"] == "Incorrect API key provided: ***."


async def test_a_gzipped_reply_comes_plain(shop: Shop) -> None:
    for form in FORMS:
        status, headers, body = await shop.call(form, Completion(gzip=True))
        assert (status, headers.get("content-encoding")) == (200, None)
        assert b"Say" in body
        assert shop.upstream.log[-1].headers["accept-encoding"] == "identity"


async def test_an_encoding_that_we_cannot_undo_is_passed_on(shop: Shop) -> None:
    """Its usage cannot be read: the client gets the bytes, and their meaning."""
    body = bytes(range(256))
    status, headers, got = await shop.call("json", Status(200, body, headers={"content-encoding": "rot13"}))
    assert (status, headers["content-encoding"], got) == (200, "rot13", body)
    event = await shop.event()
    assert (event["basis"], event["reason"], event["usage"]["output"]) == ("estimated", "usage_missing", 64)


async def test_leading_blank_lines_are_passed_on(shop: Shop) -> None:
    """As some upstreams send to keep a connection open."""
    for form, start in (("json", b"{"), ("stream", b"data:")):
        _, _, body = await shop.call(form, Completion(leading=b"\n\n\n"))
        assert body.startswith(b"\n\n\n" + start)


@both_forms
async def test_a_reply_in_the_form_that_nobody_asked_for_is_passed_on(shop: Shop, form: str) -> None:
    other = {"json": Form.SSE, "stream": Form.JSON}[form]
    _, headers, body = await shop.call(form, Completion(form=other))
    assert headers["content-type"].startswith("text/event-stream" if other is Form.SSE else "application/json")
    assert body.startswith(b"data:" if other is Form.SSE else b"{")


@pytest.mark.parametrize(
    ("head", "status", "code"),
    [
        (b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n", 200, None),
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n", 502, "upstream_broke"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 502, None),
        (b"SSH-2.0-OpenSSH_9.6\r\n", 502, "upstream_unreachable"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n", 502, None),
    ],
    ids=["HTTP/1.0", "too short", "bad chunk", "no HTTP", "101"],
)
async def test_an_upstream_that_speaks_http_badly(shop: Shop, head: bytes, status: int, code: str | None) -> None:
    body = b'{"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":20}}'
    answered, _, got = await shop.call("json", Wire([head, body]))
    assert answered == status
    if status == 200:
        assert got == body
        assert (await shop.event())["charged_nanos"] == EXACT
    else:
        error = orjson.loads(got)["error"]
        assert code is None or error["code"] == code
        assert (await shop.event())["charged_nanos"] == 0


# Requests ------------------------------------------------------------------------------------------------------------


async def test_the_clients_secrets_stay_here(shop: Shop) -> None:
    secrets = {
        "api-key": shop.farebox.key,
        "x-api-key": shop.farebox.key,
        "OpenAI-Organization": "org-client",
        "OpenAI-Project": "proj-client",
        "Cookie": f"key={shop.farebox.key}",
        "Proxy-Authorization": "Basic x",
        "X-Forwarded-For": "10.0.0.7",
        "Forwarded": "for=10.0.0.7",
        "X-Real-IP": "10.0.0.7",
        "X-Farebox-Receipt": "1",
    }
    passed = {"OpenAI-Beta": "x", "User-Agent": "OpenAI/Python 2.0", "X-Stainless-Lang": "python", "Accept": "*/*"}
    lines = [f"{name}: {value}" for name, value in {**secrets, **passed}.items()]
    reply = await exchange(
        shop.farebox.app.port,
        post(shop, BODY, *lines, "X-Request-ID: mine", "TE: trailers", "X-Hop: x", "Connection: keep-alive, X-Hop"),
    )
    assert reply.status == 200
    served = shop.upstream.log[0]
    sent = {name.lower(): value for name, value in served.headers.items()}
    text = orjson.dumps(sent) + served.body
    for secret in (shop.farebox.key, "org-client", "proj-client", "10.0.0.7", f"127.0.0.1:{shop.farebox.app.port}"):
        assert secret.encode() not in text
    assert {name: sent.pop(name.lower()) for name in passed} == passed
    assert sent.pop("authorization") == f"Bearer {UPSTREAM_KEY}"
    assert sent.pop("x-request-id") == reply.headers["x-farebox-hold"]
    assert set(sent) == {"host", "content-type", "content-length", "accept-encoding"}


@both_forms
async def test_the_body_is_sent_as_it_came(shop: Shop, form: str) -> None:
    """Spaces, order, escapes, big numbers and unknown members are kept; a stream only gains the wish for its usage."""
    body = (
        b'{ "seed" : 123456789012345678 , "x":1.10,"stream": STREAM,\n"messages":[{"role":"user","content":"\\u0041"}],'
        b'"model":"test-model" ,"unknown":{"b":1,"a":[1e2, null]} }'
    ).replace(b"STREAM", b"true" if form == "stream" else b"false")
    assert (await exchange(shop.farebox.app.port, post(shop, body))).status == 200
    wish = b'"stream_options":{"include_usage":true},' if form == "stream" else b""
    assert shop.upstream.log[0].body == b"{" + wish + body[1:]


async def test_a_stream_that_asks_for_its_usage_is_sent_and_returned_as_it_is(shop: Shop) -> None:
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    _, _, direct_body = await direct(shop, **options)
    _, _, body = await shop.call("stream", Completion(), stream_options={"include_usage": True})
    assert body.replace(b"chatcmpl-2", b"chatcmpl-1") == direct_body
    assert b'"choices":[],"usage":{"prompt_tokens":10' in body
    sent, given = shop.upstream.log[1].body, shop.upstream.log[0].body
    assert orjson.loads(sent) == orjson.loads(given)


async def test_a_usage_chunk_is_removed_only_where_nobody_asked_for_it(scratch: ScratchPostgres, shop: Shop) -> None:
    _, _, body = await shop.call("stream", Completion())
    assert b'"choices":[]' not in body
    assert b'"usage":{' not in body
    async with open_shop(scratch, "unasked", upstream={"include_usage": False}) as opened, visit(opened) as other:
        _, _, direct_body = await direct(other, stream=True)
        _, _, body = await other.call("stream", Completion())
        assert body.replace(b"chatcmpl-2", b"chatcmpl-1") == direct_body
        assert b"stream_options" not in other.upstream.log[1].body
        assert (await other.event())["reason"] == "usage_missing"


# In time -------------------------------------------------------------------------------------------------------------


async def test_events_are_relayed_as_they_come(shop: Shop) -> None:
    gate = Gate()
    shop.upstream.next(Completion(gate=gate, gate_at_event=3))
    async with shop.chat(stream=True) as response:
        events = [await response.content.readuntil(b"\n\n") for _ in range(3)]
        assert b"Say" in events[1]
        assert not shop.upstream.log[0].completed
        gate.open()
        assert (await response.read()).endswith(DONE)


async def test_a_large_reply_is_relayed_as_it_comes(shop: Shop) -> None:
    """Past its buffer of 1 MiB; the usage stands at its end."""
    gate = Gate()
    tail = b'"usage":{"prompt_tokens":10,"completion_tokens":20}}'
    pieces = [b'{"padding":"', *([b"x" * 2**16] * 32), b'",', tail]
    shop.upstream.next(RawStream(pieces, content_type="application/json", gate=gate))
    async with shop.chat() as response:
        first = await response.content.readexactly(2**20 + 1)
        assert first.startswith(b'{"padding":"xxx')
        gate.open()
        assert first + await response.read() == b"".join(pieces)
        assert "x-farebox-cost" not in response.headers
    assert (await shop.event())["charged_nanos"] == EXACT


@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream"])
async def test_a_client_that_does_not_read_holds_the_upstream_back(shop: Shop, content_type: str) -> None:
    """So memory is bounded: no more is taken from the upstream than the buffers of the sockets hold."""
    piece = b"data: " + b"x" * 2**16 + b"\n\n"
    shop.upstream.next(RawStream([piece] * 4_000, content_type=content_type))
    response = await shop.chat(stream=True)
    served = await shop.upstream.received()
    sent = -1
    while sent != served.bytes_sent:
        sent = served.bytes_sent
        await asyncio.sleep(0.2)
    assert 2**20 < sent < 48 * 2**20
    response.close()
    await served.finished()
    assert served.client_left or served.completed


@both_forms
@pytest.mark.parametrize("size", ["small", "large"])
async def test_the_end_comes_only_after_the_settle(scratch: ScratchPostgres, form: str, size: str) -> None:
    """The ledger takes its time: the client has all but the end, and gets that as soon as the ledger answers."""
    name = f"settle_{form}_{size}"
    dsn = await scratch.clone(name)
    gate = Gate()
    completion = Completion(gate=gate, body_bytes_min=2**21 if size == "large" else 0)
    async with (
        ledger_proxy(dsn) as proxy,
        FakeUpstream(completion) as upstream,
        farebox(proxy.dsn, [upstream.base_url]) as running,
    ):
        got = bytearray()
        reading = spawn(_read(running, form, got), name="a client")
        await gate.arrived()
        proxy.pause()
        gate.open()
        await upstream.log[0].finished()
        await until(lambda: bool(running.app.lane._queue) or running.app.gateway.unsettled == 1)
        await asyncio.sleep(0.3)
        assert not reading.done()
        seen = bytes(got)
        proxy.restore()
        headers = await reading
        assert headers["x-farebox-hold"]
        if form == "stream":
            assert seen.count(b"data: ") == 22  # the role, 20 words and the finish
            assert b"[DONE]" not in seen
            assert bytes(got) == seen + DONE
        elif size == "small":
            assert seen == b""
        else:
            assert len(seen) > 2**20
            assert 0 < len(got) - len(seen) <= 16
        assert (await running.wallet())["entry_seq"] == 2
    await scratch.drop(name)


async def _read(running: Farebox, form: str, got: bytearray) -> Mapping[str, str]:
    async with running.chat(**FORMS[form]) as response:
        async for data in response.content.iter_any():
            got += data
        return response.headers


async def test_a_receipt_for_a_stream_that_asks_for_one(shop: Shop) -> None:
    headers = shop.farebox.headers() | {"x-farebox-receipt": "1"}
    url = f"{shop.farebox.base_url}/chat/completions"
    for end, ending in ((End.FINISH, DONE), (End.CLOSE, DONE)):
        shop.upstream.next(Completion(end=end))
        async with shop.farebox.session.post(url, data=BODY[:-1] + b',"stream":true}', headers=headers) as response:
            body = await response.read()
        comment = re.search(rb"\n\n: farebox cost=(\S+) balance=(\S+) billing_source=balance\n\n", body)
        assert comment is not None
        assert body.endswith(ending)
        charged = (await shop.farebox.usage())[0]["charged_nanos"]
        assert comment.group(1) == format_nanos(charged).encode()
    assert b": farebox" not in (await shop.call("stream", Completion()))[2]


async def test_a_stream_over_http_1_0_ends_with_its_connection(shop: Shop) -> None:
    connection = await RawConnection.to(shop.farebox.app.port)
    body = BODY[:-1] + b',"stream":true}'
    await connection.send(post(shop, body).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    reply = await connection.reply()
    assert "transfer-encoding" not in reply.headers
    assert reply.body.startswith(b"data: ")
    assert reply.body.endswith(DONE)
    connection.close()


async def test_a_connection_serves_call_after_call(shop: Shop) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        mine = Farebox(shop.farebox.app, shop.farebox.wallet_id, shop.farebox.key, session)
        for number in range(6):
            async with mine.chat(stream=number % 2 == 0) as response:
                assert response.status == 200
                await response.read()
    assert len(shop.upstream.log) == 6
    assert shop.upstream.log[5].raw_path == PATH
