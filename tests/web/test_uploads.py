"""Forms over the wire: the model wherever it stands, bounded memory, failover from the file, nothing left behind."""

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from gateway.core.multipart import FormScanner
from gateway.web.spool import Spools
from tests.support.forms import BOUNDARY, CONTENT_TYPE, File, form_bytes
from tests.support.postgres import ScratchPostgres
from tests.support.rawhttp import exchange, request
from tests.support.shop import Shop, until, visit
from tests.support.sounds import mp3, wav
from tests.support.studio import Studio, open_studio, studio, studio_all_day
from tests.support.studio_reply import Media, json_of

__all__ = ["studio", "studio_all_day"]
pytestmark = pytest.mark.asyncio(loop_scope="module")

PATH = "/audio/transcriptions"
SOUND = File("file", wav(3_000), "speech.wav", "audio/wav")
REPLY = json_of(text="Hi", usage={"type": "duration", "seconds": 3})


def spools(shop: Shop) -> Spools:
    """Where this gateway puts uploads."""
    return shop.farebox.app.spools


@pytest.mark.parametrize("order", [1, -1])
async def test_the_form_arrives_as_it_was_sent(studio: Studio, order: int) -> None:
    forms: list[File | tuple[str, str]] = [("model", "by-time"), ("language", "en"), SOUND]
    items = forms[::order]
    status, headers, body = await studio.post(PATH, items, REPLY)
    assert (status, body) == (200, REPLY.body)
    assert headers["x-farebox-cost"] == "0.000018"
    served = studio.shop.upstream.log[0]
    assert served.body == form_bytes(*items)
    assert served.headers["Content-Type"] == CONTENT_TYPE
    assert served.headers["Content-Length"] == str(len(served.body))
    event = await studio.charged(18_000, "reported")
    assert event["endpoint"] == "audio.transcriptions"
    assert event["usage"] == {"audio_milliseconds": 3_000}


async def test_25_mb_with_the_model_last_in_bounded_memory(studio: Studio) -> None:
    # 65,104 frames of 24 ms: 1,562.496 s.
    body = form_bytes(File("file", mp3(65_104), "long.mp3", "audio/mpeg"), ("model", "by-time"))
    assert len(body) > 25 * 10**6 - 2_000
    before = spools(studio.shop).used_bytes
    data = body

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 100_000):
            yield data[at : at + 100_000]

    studio.shop.upstream.next(json_of(text="Hi"))
    farebox = studio.shop.farebox
    sent = farebox.headers() | {"Content-Type": CONTENT_TYPE}
    async with farebox.session.post(farebox.base_url + PATH, data=pieces(), headers=sent) as reply:
        assert reply.status == 200
        await reply.read()
    assert studio.shop.upstream.log[0].body == body
    await studio.charged(1_562_496 * 6, "estimated", "usage_missing")
    assert spools(studio.shop).used_bytes == before == 0
    assert not [name for name in os.listdir(farebox.directory) if name.startswith("tmp")]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (form_bytes(SOUND), 400, "invalid_request"),
        (form_bytes(("model", "by-time")), 400, "invalid_request"),
        (form_bytes(("model", "by-time"), SOUND._replace(content=b"text")), 400, "not_audio"),
        (form_bytes(("model", "unknown"), SOUND), 404, "model_not_found"),
        (form_bytes(("model", "by-image"), SOUND), 404, "model_not_priced"),
        (form_bytes(("model", "by-time"), SOUND)[:-4], 400, "invalid_form"),
        (b"", 400, "invalid_form"),
        (b"{}", 400, "invalid_form"),
    ],
)
async def test_bad_forms_hold_nothing(studio: Studio, body: bytes, status: int, code: str) -> None:
    shop = studio.shop
    data = request("POST", "/v1" + PATH, f"Content-Type: {CONTENT_TYPE}", body=body, key=shop.farebox.key)
    reply = await exchange(shop.farebox.app.port, data)
    assert (reply.status, code.encode() in reply.body) == (status, True)
    assert spools(shop).used_bytes == 0
    await shop.untouched()


@pytest.mark.parametrize(
    ("content_type", "path", "status"),
    [
        ("application/json", PATH, 415),
        ("text/plain", PATH, 415),
        ("multipart/mixed; boundary=x", PATH, 415),
        ("multipart/form-data", PATH, 400),
        (CONTENT_TYPE, "/chat/completions", 415),
    ],
)
async def test_other_media_types(studio: Studio, content_type: str, path: str, status: int) -> None:
    shop = studio.shop
    body = form_bytes(("model", "by-time"), SOUND)
    data = request("POST", "/v1" + path, f"Content-Type: {content_type}", body=body, key=shop.farebox.key)
    assert (await exchange(shop.farebox.app.port, data)).status == status
    await shop.untouched()


async def test_a_client_that_leaves_while_it_uploads_leaves_nothing(studio: Studio) -> None:
    shop = studio.shop
    _, writer = await asyncio.open_connection("127.0.0.1", shop.farebox.app.port)
    head = f"POST /v1{PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {shop.farebox.key}\r\n"
    body = form_bytes(("model", "by-time"), SOUND._replace(content=mp3(2_000)))
    writer.write(f"{head}Content-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n\r\n".encode())
    writer.write(body[:500_000])
    await until(lambda: spools(shop).used_bytes >= 300_000)
    writer.transport.abort()
    await until(lambda: spools(shop).used_bytes == 0)
    await shop.untouched()


async def test_a_form_asked_again_with_its_key_is_charged_once(studio: Studio) -> None:
    items: list[File | tuple[str, str]] = [("model", "by-time"), SOUND]
    first = await studio.post(PATH, items, REPLY, **{"Idempotency-Key": "once"})
    again = form_bytes(*items).replace(BOUNDARY.encode(), b"another-boundary")
    farebox = studio.shop.farebox
    sent = farebox.headers() | {
        "Content-Type": "multipart/form-data; boundary=another-boundary",
        "Idempotency-Key": "once",
    }
    async with farebox.session.post(farebox.base_url + PATH, data=again, headers=sent) as reply:
        assert (reply.status, await reply.read()) == (200, first[2])
        assert reply.headers["idempotent-replayed"] == "true"
    other = form_bytes(("model", "by-time"), SOUND._replace(content=wav(2_000)))
    async with farebox.session.post(
        farebox.base_url + PATH, data=other, headers=sent | {"Content-Type": CONTENT_TYPE}
    ) as reply:
        assert reply.status == 422
    await studio.charged(18_000, "reported")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chain(scratch: ScratchPostgres) -> AsyncIterator[Shop]:
    """A gateway before a dead upstream and one that knows the model by another name; forms of up to 1 MB."""
    async with open_studio(
        scratch,
        "chain",
        urls=["http://127.0.0.1:1/v1"],
        upstream={"rename": {"by-time": "theirs"}},
        form_bytes_max=10**6,
        form_disk_bytes_max=15 * 10**5,
    ) as shop:
        yield shop


async def test_failover_sends_the_file_again_with_the_model_renamed(chain: Shop) -> None:
    async with visit(chain) as shop:
        sound = SOUND._replace(content=mp3(1_000))
        status, _, _ = await Studio(shop).post(PATH, [sound, ("model", "by-time")], REPLY)
        assert status == 200
        body = shop.upstream.log[0].body
        assert body == form_bytes(sound, ("model", "theirs"))
        scanner = FormScanner(BOUNDARY.encode())
        scanner.feed(body)
        assert [part.name for part in scanner.finish()] == ["file", "model"]
        await Studio(shop).charged(18_000, "reported")


@pytest.mark.parametrize("has_length", [True, False])
async def test_a_form_over_the_limit(chain: Shop, has_length: bool) -> None:
    async with visit(chain) as shop:
        body = form_bytes(("model", "by-time"), SOUND._replace(content=mp3(2_700)))
        headers = [f"Content-Type: {CONTENT_TYPE}"]
        data = request("POST", "/v1" + PATH, *headers, body=body, key=shop.farebox.key)
        if not has_length:
            head, _, _ = data.partition(b"\r\n\r\n")
            head = b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length"))
            data = head + b"\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        assert (await exchange(shop.farebox.app.port, data)).status == 413
        assert spools(shop).used_bytes == 0
        await shop.untouched()


async def test_uploads_together_are_bounded(chain: Shop) -> None:
    async with visit(chain) as shop:
        spools(shop).take(10**6)
        status, _, _ = await Studio(shop).post(PATH, [("model", "by-time"), SOUND._replace(content=mp3(2_000))], REPLY)
        spools(shop).used_bytes -= 10**6
        assert status == 503
        await shop.untouched()
        shop.upstream._script.clear()


async def test_a_refusal_before_the_end_of_the_upload_is_passed_on(studio: Studio) -> None:
    refusal = Media(b'{"error":{"message":"too long"}}', status=413)
    status, _, body = await studio.post(PATH, [("model", "by-time"), SOUND], refusal)
    assert (status, b"too long" in body) == (413, True)
    assert (await studio.shop.event())["resolution"] == "voided"
