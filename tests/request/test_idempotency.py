"""A call with an Idempotency-Key is served once and charged once, however often it is sent."""

import asyncio
import os
from collections.abc import Mapping
from typing import Any

import aiohttp
import pytest

from gateway.core.money import format_nanos
from gateway.db import idempotency, wallets
from gateway.request.idempotency import request_key
from gateway.request.vault import Vault
from tests.request.test_handle import at, cancel_this_task
from tests.support.behaviours import (
    BROKEN,
    RATE_LIMITED,
    Behaviour,
    CloseBeforeHeaders,
    Completion,
    End,
    Status,
)
from tests.support.call import Gate
from tests.support.gateway import make_wallet
from tests.support.keyed import Answer, ask, ask_at, change, charged, post, rows
from tests.support.offers import body_of
from tests.support.rawhttp import RawConnection, request
from tests.support.shop import DONE, EXACT, FORMS, Shop, both_forms, client_noticed_gone, settled, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

# What a connection says of itself, not of the reply.
_OF_THE_CONNECTION = ("date", "server", "content-length", "transfer-encoding", "connection", "idempotent-replayed")


def reply_headers(answer: Answer) -> dict[str, str]:
    return {name.lower(): value for name, value in answer.headers.items() if name.lower() not in _OF_THE_CONNECTION}


# Asked again ---------------------------------------------------------------------------------------------------------


@both_forms
async def test_a_finished_call_is_replayed_byte_for_byte_and_charged_once(shop: Shop, form: str) -> None:
    first = await ask(shop.farebox, "again", **FORMS[form])
    assert (first.status, first.is_replayed) == (200, False)
    for _ in range(2):
        again = await ask(shop.farebox, "again", **FORMS[form])
        assert (again.status, again.is_replayed, again.body) == (200, True, first.body)
        assert reply_headers(again) == reply_headers(first)
        assert ("Transfer-Encoding" in again.headers) == ("Transfer-Encoding" in first.headers) == (form == "stream")
    assert first.body.endswith(DONE if form == "stream" else b"}")
    assert len(shop.upstream.log) == 1
    assert await charged(shop.farebox) == [EXACT]
    assert len(await shop.farebox.usage()) == 1
    counts = {name: shop.count("farebox_idempotency_total", outcome=name) for name in ("claimed", "kept", "replayed")}
    assert counts == {"claimed": 1, "kept": 1, "replayed": 2}


async def test_a_stream_that_asked_for_its_receipt_gets_it_again(shop: Shop) -> None:
    gateway, headers = shop.farebox, {"Idempotency-Key": "receipt", "x-farebox-receipt": "1"}
    bodies = []
    for _ in range(2):
        async with gateway.session.post(
            f"{gateway.base_url}/chat/completions", data=body_of(stream=True), headers=gateway.headers() | headers
        ) as response:
            bodies.append(await response.read())
    assert b": farebox cost=" in bodies[0]
    assert bodies[0] == bodies[1]
    assert await charged(gateway) == [EXACT]


async def test_another_body_is_refused_whatever_became_of_the_first(shop: Shop) -> None:
    gate = Gate()
    shop.upstream.next(Completion(gate=gate))
    first = asyncio.create_task(ask(shop.farebox, "one"))
    await gate.arrived()
    for _ in range(2):
        other = await ask(shop.farebox, "one", temperature=1)
        assert (other.status, other.error["code"]) == (422, "idempotency_key_reused")
        gate.open()
        assert (await first).status == 200
    assert await charged(shop.farebox) == [EXACT]


@both_forms
async def test_while_the_first_runs_the_others_are_told_to_wait(shop: Shop, form: str) -> None:
    gate = Gate()
    shop.upstream.next(Completion(gate=gate, gate_at_event=3 if form == "stream" else None))
    first = asyncio.create_task(ask(shop.farebox, "busy", **FORMS[form]))
    await gate.arrived()
    others = await asyncio.gather(*(ask(shop.farebox, "busy", **FORMS[form]) for _ in range(10)))
    assert all(other.is_still_running and other.headers["retry-after"] == "1" for other in others)
    gate.open()
    whole = await first
    again = await ask(shop.farebox, "busy", **FORMS[form])
    assert (again.is_replayed, again.body) == (True, whole.body)
    assert len(shop.upstream.log) == 1
    assert await charged(shop.farebox) == [EXACT]


async def test_a_key_belongs_to_its_wallet(shop: Shop) -> None:
    gateway = shop.farebox
    _, other_wallets_key = await make_wallet(gateway.app.database, "1")
    first = await ask(gateway, "shared")
    async with post(gateway.session, gateway.base_url, other_wallets_key, "shared") as response:
        assert response.status == 200
        assert "idempotent-replayed" not in response.headers
    assert len(shop.upstream.log) == 2
    # What was paid for may be had again, even by a wallet that is suspended; a key that is unknown gets nothing.
    await wallets.set_status(gateway.app.database, gateway.wallet_id, "suspended")
    assert (await ask(gateway, "shared")).body == first.body
    assert (await ask(gateway, "new")).error["code"] == "wallet_suspended"
    async with post(gateway.session, gateway.base_url, "fb-unknown", "shared") as response:
        assert response.status == 401


async def test_the_key_stays_here_and_the_upstreams_word_does_not_count(shop: Shop) -> None:
    shop.upstream.next(Completion(headers={"idempotent-replayed": "true"}))
    assert not (await ask(shop.farebox, "mine")).is_replayed
    assert "idempotency-key" not in shop.upstream.log[0].headers


@pytest.mark.parametrize("line", ["", "x" * 256, "caf\u00e9", "a\tb", "a\r\nIdempotency-Key: a"])
async def test_a_bad_key_is_refused(shop: Shop, line: str) -> None:
    raw = await RawConnection.to(shop.farebox.app.port)
    head = [f"Authorization: Bearer {shop.farebox.key}", "Content-Type: application/json", f"Idempotency-Key: {line}"]
    await raw.send(request("POST", "/v1/chat/completions", *head, body=body_of()))
    reply = await raw.reply()
    raw.writer.close()
    assert reply.status == 400
    assert b'"invalid_idempotency_key"' in reply.body
    await shop.untouched()


async def test_the_longest_key_is_taken(shop: Shop) -> None:
    assert (await ask(shop.farebox, " ~" + "x" * 253)).status == 200


async def test_a_key_is_of_its_path_and_body() -> None:
    def digest(value: str = "k", path: str = "/p", body: bytes = b"{}") -> tuple[bytes, bytes]:
        key = request_key("w", path, {"Idempotency-Key": value}, body)
        return key.key_hash, key.body_hash

    variants = [digest(), digest(value="l"), digest(path="/q"), digest(body=b"{ }"), digest(path="/p\0{", body=b"}")]
    assert len({body_hash for _, body_hash in variants}) == len(variants)
    assert len({key_hash for key_hash, _ in variants}) == 2


# What was not charged may be asked anew ------------------------------------------------------------------------------

UNCHARGED: Mapping[str, tuple[Behaviour, dict[str, Any]]] = {
    "broken": (BROKEN, {}),
    "rate limited": (RATE_LIMITED, {}),
    "closed": (CloseBeforeHeaders(), {}),
    "half a body": (Completion(end=End.CLOSE), {}),
    "a page": (Status(200, b"<html>", "text/html"), {}),
    "stream without output": (Completion(end=End.CLOSE, end_after_events=1), {"stream": True}),
    "stream with an error only": (Completion(end=End.ERROR_DONE, end_after_events=0), {"stream": True}),
}


@pytest.mark.parametrize("name", UNCHARGED)
async def test_a_call_that_failed_uncharged_is_begun_anew(shop: Shop, name: str) -> None:
    behaviour, members = UNCHARGED[name]
    shop.upstream.next(behaviour)
    await ask(shop.farebox, "failed", **members)
    assert await rows(shop.farebox) == []
    again = await ask(shop.farebox, "failed", **members)
    assert (again.status, again.is_replayed, len(shop.upstream.log)) == (200, False, 2)
    assert await charged(shop.farebox) == [EXACT]
    assert shop.count("farebox_idempotency_total", outcome="released") == 1


async def test_a_call_that_was_refused_is_begun_anew(shop: Shop) -> None:
    gateway = shop.farebox
    await wallets.set_status(gateway.app.database, gateway.wallet_id, "suspended")
    assert (await ask(gateway, "refused")).status == 403
    # Refused before it is known what it may cost: no claim at all.
    assert (await ask(gateway, "refused", model="none")).status == 404
    assert await rows(gateway) == []
    await wallets.set_status(gateway.app.database, gateway.wallet_id, "active")
    assert (await ask(gateway, "refused", temperature=0)).status == 200
    assert await charged(gateway) == [EXACT]


# What was charged and not kept is said to be lost --------------------------------------------------------------------

CHARGED: Mapping[str, tuple[Behaviour, dict[str, Any]]] = {
    "breaks": (Completion(end=End.CLOSE, end_after_events=6), {"stream": True}),
    "large body": (Completion(body_bytes_min=2**20), {}),
    "large stream": (Completion(line_bytes_min=2**20), {"stream": True}),
}


@pytest.mark.parametrize("name", CHARGED)
async def test_a_reply_that_is_not_kept_is_never_charged_again(shop: Shop, name: str) -> None:
    behaviour, members = CHARGED[name]
    shop.upstream.next(behaviour)
    first = await ask(shop.farebox, "lost", **members)
    (once,) = await charged(shop.farebox)
    for _ in range(2):
        again = await ask(shop.farebox, "lost", **members)
        assert (again.status, again.error["code"]) == (409, "idempotent_reply_lost")
        assert again.error["charged"] == format_nanos(once)
        assert again.headers["x-farebox-hold"] == again.error["hold"] == first.headers["x-farebox-hold"]
        assert again.headers["x-should-retry"] == "false"
    assert await charged(shop.farebox) == [once]
    assert len(shop.upstream.log) == 1
    assert shop.count("farebox_idempotency_total", outcome="not_kept") == 1
    assert shop.farebox.app.idempotency._collected_bytes == 0


@both_forms
async def test_a_client_that_left_gets_all_of_it_when_it_asks_again(shop: Shop, form: str) -> None:
    gate = Gate()
    shop.upstream.next(Completion(gate=gate, gate_at_event=4 if form == "stream" else None))
    leaver = asyncio.create_task(ask(shop.farebox, "left", **FORMS[form]))
    await gate.arrived()
    leaver.cancel()
    await client_noticed_gone(shop.farebox)
    gate.open()
    await settled(shop.farebox)
    await until(lambda: not shop.farebox.app.idempotency.unfinished)
    again = await ask(shop.farebox, "left", **FORMS[form])
    assert again.is_replayed
    unkeyed = await ask(shop.farebox, None, **FORMS[form])
    # Another call of the same text, but for its number and times.
    assert len(again.body) == len(unkeyed.body)
    assert again.body.endswith(DONE if form == "stream" else b"}")
    assert len(shop.upstream.log) == 2
    assert await charged(shop.farebox) == [EXACT, EXACT]


# Cancelled, late, or tampered with ------------------------------------------------------------------------------------

# Where the task of a call is cancelled -> what a retry is told at once.
CANCELLED = {
    "idempotency.claimed": "runs",
    "hold.placed": "runs",
    "relay.first_byte": "runs",
    "relay.mid_stream": "idempotent_reply_lost",
    "settle.durable": "replayed",  # it is kept by a task that nobody cancels
    "idempotency.stored": "replayed",
}


@pytest.mark.parametrize("name", CANCELLED)
async def test_a_call_that_is_cancelled_anywhere_is_charged_once(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with monkeypatch.context() as patched:
        at(patched, name, cancel_this_task)
        shop.upstream.next(Completion(pause_seconds=0.002))
        await ask(shop.farebox, "cancelled", stream=True)
        await settled(shop.farebox)
        await until(lambda: not shop.farebox.app.idempotency.unfinished)
    # Not over the same connection: the server closes that of a cancelled call, maybe just when it is used again.
    async with aiohttp.ClientSession() as another:
        again = await ask_at(another, shop.farebox.base_url, shop.farebox.key, "cancelled", stream=True)
    assert (again.error["code"] if again.error else "replayed" if again.is_replayed else "runs") == CANCELLED[name]
    assert len(await charged(shop.farebox)) == 1


async def test_a_key_past_its_time_is_a_new_key(shop: Shop) -> None:
    await ask(shop.farebox, "old")
    await change(shop.farebox, "UPDATE idempotency_keys SET expires_at = now() WHERE wallet_id = $1")
    again = await ask(shop.farebox, "old", temperature=1)
    assert (again.status, again.is_replayed) == (200, False)
    assert await charged(shop.farebox) == [EXACT, EXACT]


async def test_a_call_that_still_runs_keeps_its_key_past_its_time(shop: Shop) -> None:
    gate = Gate()
    shop.upstream.next(Completion(gate=gate))
    first = asyncio.create_task(ask(shop.farebox, "long"))
    await gate.arrived()
    await change(shop.farebox, "UPDATE idempotency_keys SET expires_at = now() WHERE wallet_id = $1")
    assert (await ask(shop.farebox, "long")).is_still_running
    assert await idempotency.forget(shop.farebox.app.database, 10) == 0
    gate.open()
    await first
    assert (await ask(shop.farebox, "long")).is_replayed


async def test_nothing_can_be_read_in_the_table(shop: Shop) -> None:
    first = await ask(shop.farebox, "a-secret-key", user="a secret user")
    (row,) = await rows(shop.farebox)
    assert row["status"] == "finished"
    stored = b"".join(value if isinstance(value, bytes) else str(value).encode() for value in row.values())
    for secret in (b"a-secret-key", b"Say something", b"secret user", first.body[:20], b"application/json", b"choices"):
        assert secret not in stored


TAMPERED = {
    "a bit": "UPDATE idempotency_keys SET reply = set_byte(reply, 60, get_byte(reply, 60) # 1) WHERE wallet_id = $1",
    "the salt": "UPDATE idempotency_keys SET reply = set_byte(reply, 9, get_byte(reply, 9) # 1) WHERE wallet_id = $1",
    "cut": "UPDATE idempotency_keys SET reply = substr(reply, 1, 20) WHERE wallet_id = $1",
    "empty": "UPDATE idempotency_keys SET reply = '' WHERE wallet_id = $1",
    "another's": "UPDATE idempotency_keys AS k SET reply = o.reply FROM idempotency_keys AS o "
    "WHERE k.wallet_id = $1 AND o.wallet_id = $1 AND o.key_hash <> k.key_hash",
}


@pytest.mark.parametrize("name", [*TAMPERED, "secret"])
async def test_a_reply_that_was_tampered_with_is_lost_and_never_garbage(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    await ask(shop.farebox, "one")
    await ask(shop.farebox, "two")
    if name == "secret":
        monkeypatch.setattr(shop.farebox.app.idempotency, "_vault", Vault(os.urandom(32)))
    else:
        await change(shop.farebox, TAMPERED[name])
    again = await ask(shop.farebox, "one")
    assert (again.status, again.error["code"]) == (409, "idempotent_reply_lost")
    assert shop.count("farebox_idempotency_total", outcome="unreadable") == 1
    assert await charged(shop.farebox) == [EXACT, EXACT]
