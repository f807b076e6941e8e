"""The WebSocket itself: what is no session, and frames that no session can have."""

from collections.abc import AsyncIterator

import orjson
import pytest
import pytest_asyncio

from tests.support.postgres import ScratchPostgres
from tests.support.rawhttp import exchange, request
from tests.support.realtime import EXACT, REALTIME, FakeRealtime, open_realtime_shop, talk
from tests.support.refusals import check_envelope
from tests.support.shop import Shop, settled, visit

pytestmark = pytest.mark.asyncio(loop_scope="module")
FRAME_BYTES_MAX = 65_536
UPGRADE = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def narrow_all_day(scratch: ScratchPostgres) -> AsyncIterator[tuple[Shop, FakeRealtime]]:
    async with open_realtime_shop(scratch, "narrow", session_frame_bytes_max=FRAME_BYTES_MAX) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def shop(narrow_all_day: tuple[Shop, FakeRealtime]) -> AsyncIterator[Shop]:
    narrow_all_day[1].forget()
    async with visit(narrow_all_day[0]) as mine:
        yield mine


@pytest.mark.parametrize(
    ("method", "path", "lines", "status", "code", "param"),
    [
        ("POST", "/v1/realtime?model=x", (), 405, "method_not_allowed", None),
        ("GET", f"/v1/realtime?model={REALTIME}", (), 426, "upgrade_required", None),
        ("GET", f"/v1/realtime?model={REALTIME}", UPGRADE, 426, "upgrade_required", None),
        ("GET", f"/v1/realtime?model={REALTIME}", (*UPGRADE[:2], "Sec-WebSocket-Version: 99", KEY), 426,
         "upgrade_required", None),
        ("GET", "/v1/realtime", (*UPGRADE, KEY), 400, "invalid_request", "model"),
        ("GET", "/v1/realtime?model=a&model=b", (*UPGRADE, KEY), 400, "invalid_request", "model"),
        ("GET", "/v1/realtime?call_id=c", (*UPGRADE, KEY), 400, "not_metered", "call_id"),
        ("GET", "/v1/realtime?model=a&intent=transcription", (*UPGRADE, KEY), 400, "not_metered", "intent"),
        ("GET", "/v1/realtime/translations?model=x", (*UPGRADE, KEY), 403, "not_metered", None),
        ("POST", "/v1/realtime/calls", (), 403, "not_metered", None),
        ("POST", "/v1/realtime/client_secrets", (), 403, "not_metered", None),
        ("POST", "/v1/realtime/sessions", (), 403, "not_metered", None),
        ("POST", "/v1/realtime/transcription_sessions", (), 403, "not_metered", None),
        ("GET", "/v1/realtime/", (*UPGRADE, KEY), 404, "unknown_path", None),
    ],
)  # fmt: skip
async def test_what_is_no_session(
    shop: Shop, method: str, path: str, lines: tuple[str, ...], status: int, code: str, param: str | None
) -> None:
    reply = await exchange(shop.farebox.app.port, request(method, path, *lines, key=shop.farebox.key))
    check_envelope(reply, status, code, param)
    if status in (403, 404) and param is None:
        assert path.partition("?")[0] in orjson.loads(reply.body)["error"]["message"]
    await shop.untouched()


async def test_frames_that_no_session_can_have(shop: Shop, narrow_all_day: tuple[Shop, FakeRealtime]) -> None:
    """Each is answered by an error event, is not sent upstream, and costs nothing; the session goes on."""
    async with talk(shop) as mine:
        for data, code in (("{", "invalid_json"), ("[]", "invalid_json"), ('{"type":"x"}', "not_metered")):
            await mine.socket.send_str(data)
            error = await mine.until("error")
            assert (error["error"]["code"], set(error)) == (code, {"type", "event_id", "error"})
        await mine.socket.send_bytes(b'{"type":"response.create"}')
        assert (await mine.until("error"))["error"]["code"] == "invalid_frame"
        await mine.send("response.create", event_id="mine", response={"max_output_tokens": -1})
        error = (await mine.until("error"))["error"]
        assert (error["event_id"], error["param"], error["type"]) == (
            "mine",
            "response.max_output_tokens",
            "invalid_request_error",
        )
        await mine.respond()
    assert [event["type"] for event in narrow_all_day[1].log[0].received] == ["response.create"]
    await settled(shop.farebox)
    assert [event["charged_nanos"] for event in await shop.farebox.usage()] == [EXACT]


@pytest.mark.parametrize("side", ["client", "upstream"])
async def test_a_frame_that_is_too_large(shop: Shop, narrow_all_day: tuple[Shop, FakeRealtime], side: str) -> None:
    large = '{"type":"input_audio_buffer.append","audio":"' + "A" * FRAME_BYTES_MAX + '"}'
    async with talk(shop) as mine:
        await mine.respond()
        if side == "client":
            await mine.socket.send_str(large)
            assert await mine.closed() == 1009
        else:
            await narrow_all_day[1].log[0].socket.send_str(large)
            assert await mine.closed() == 1011
    await settled(shop.farebox)
    assert [event["charged_nanos"] for event in await shop.farebox.usage()] == [EXACT]


async def test_what_comes_after_the_close_is_not_read(shop: Shop, narrow_all_day: tuple[Shop, FakeRealtime]) -> None:
    async with talk(shop) as mine:
        await mine.respond()
        writer = mine.socket._writer
        close = b"\x88\x82\x00\x00\x00\x00\x03\xe8"
        text = b"\x81\x9a\x00\x00\x00\x00" + b'{"type":"response.create"}'
        writer.transport.write(close + text + text)
        await mine.socket.receive()
    await narrow_all_day[1].log[0].finished()
    await settled(shop.farebox)
    assert len(narrow_all_day[1].log[0].received) == 1
