"""The holds of a session: they are extended, renewed and resolved, each once, also where the ledger says no."""

import asyncpg
import pytest

from gateway.db.keys import hash_key
from gateway.request.admit import Shelf
from tests.support.gateway import make_wallet
from tests.support.realtime import (
    EXACT,
    OUTPUT,
    FakeRealtime,
    Turn,
    fake,
    realtime_all_day,
    shop,
    sound,
    talk,
)
from tests.support.shop import CREDIT_NANOS, Shop, settled, until

__all__ = ["fake", "realtime_all_day", "shop"]
pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_hold_grows_with_what_is_said(shop: Shop, fake: FakeRealtime) -> None:
    """A minute of sound costs 600 tokens more; the first half of it was held already, to spare the asking."""
    async with talk(shop) as mine:
        before = (await shop.farebox.wallet())["held_nanos"]
        for _ in range(6):
            await mine.send("input_audio_buffer.append", audio=sound(10))
        await fake.log[0].until("input_audio_buffer.append", 6)
        after = (await shop.farebox.wallet())["held_nanos"]
        assert before + 300 * 8 <= after <= before + 600 * 8
        assert shop.count("farebox_hold_extensions_total", outcome="extended") >= 1
        await mine.respond()


async def test_funds_that_do_not_cover_what_is_said(shop: Shop, fake: FakeRealtime) -> None:
    wallet_id, key = await make_wallet(shop.farebox.app.database, "0.000075")
    async with talk(shop, key=key) as mine:
        for _ in range(100):
            await mine.send("input_audio_buffer.append", audio=sound(10))
        assert await mine.closed() == 1008
        assert mine.seen[-1]["error"]["code"] == "cut_off"
    await settled(shop.farebox)
    assert len(fake.log[0].received) < 100
    wallet = await shop.farebox.wallet(wallet_id)
    assert (wallet["balance_nanos"], wallet["held_nanos"]) == (75_000, 0)


async def test_a_response_that_nothing_is_left_to_hold_for_ends_the_session(shop: Shop, fake: FakeRealtime) -> None:
    """The upstream began two of itself, on what was sent under one hold. Free funds pay what they cover; no more."""
    wallet_id, key = await make_wallet(shop.farebox.app.database, "0.000075")
    async with talk(shop, key=key) as mine:
        await mine.send("input_audio_buffer.append", audio=sound(1))
        live = fake.log[0]
        await live.until("input_audio_buffer.append")
        await live.respond(Turn(stop="delta"))
        await live.respond(Turn(stop="delta"))
        assert await mine.closed() == 1008
        assert mine.seen[-1]["error"]["code"] == "insufficient_funds"
    await settled(shop.farebox)
    wallet = await shop.farebox.wallet(wallet_id)
    assert 0 <= wallet["balance_nanos"] < 75_000
    assert wallet["held_nanos"] == 0
    reasons = [event["reason"] for event in await shop.farebox.usage(wallet_id)]
    assert reasons == ["cut_off", "cut_off"] or sorted(map(str, reasons)) == ["cut_off", "cut_off"]


async def test_what_runs_is_checkpointed_and_what_waits_is_renewed(shop: Shop, fake: FakeRealtime) -> None:
    fake.turns.append(Turn(stop="delta", audio_seconds=5.0))
    async with talk(shop) as mine:
        await mine.send("response.create")
        key = (await mine.until("response.output_audio.delta"))["response_id"]
        await mine.send("input_audio_buffer.append", audio=sound(1))
        await fake.log[0].until("input_audio_buffer.append")
        (session,) = shop.farebox.app.watch._calls
        items = [*session.responses.spares, session.responses.running[key]]
        assert len(items) == 2
        for item in items:
            item.hold.renew_at_seconds = 0.0
        await until(lambda: all(item.hold.renew_at_seconds for item in items))
        connection = await asyncpg.connect(shop.dsn)
        try:
            found: list[int] = []
            while sorted(found)[-1:] <= [0]:
                rows = await connection.fetch("SELECT checkpoint_nanos FROM holds WHERE state = 'open'")
                found = [row["checkpoint_nanos"] for row in rows]
        finally:
            await connection.close()
        # Five seconds of 20 tokens at 16 nanos, the text, and what was asked.
        assert sorted(found) == [0, 100 * 16 + 2 * 4 + 7]
        await fake.log[0].finish(key, Turn())
        await mine.until("response.done")
    await settled(shop.farebox)
    assert (await shop.farebox.wallet())["balance_nanos"] == CREDIT_NANOS - EXACT


async def test_a_key_that_is_revoked_starts_nothing_more(shop: Shop, fake: FakeRealtime) -> None:
    wallet_id, key = await make_wallet(shop.farebox.app.database, "1")
    async with talk(shop, key=key) as mine:
        await mine.respond()
        connection = await asyncpg.connect(shop.dsn)
        try:
            await connection.execute("UPDATE api_keys SET revoked_at = now() WHERE wallet_id = $1", wallet_id)
        finally:
            await connection.close()
        shop.farebox.app.gateway.authenticator.forget(hash_key(key))
        await mine.send("response.create")
        assert await mine.closed() == 1008
        assert (mine.seen[-1]["status"], mine.seen[-1]["error"]["code"]) == (401, "invalid_api_key")
    await settled(shop.farebox)
    assert len(fake.log[0].done) == 1


async def test_a_model_that_is_on_offer_no_more_is_charged_for_what_still_came(shop: Shop, fake: FakeRealtime) -> None:
    app = shop.farebox.app
    shelf = app.shelf
    async with talk(shop) as mine:
        await mine.respond()
        try:
            app.shelf = Shelf([], [], [], {})
            await fake.log[0].respond(Turn(stop="delta"))
            await fake.log[0].finish("resp_another", Turn())
            assert await mine.closed() == 1008
            assert mine.seen[-1]["error"]["code"] == "model_not_found"
        finally:
            app.shelf = shelf
    await settled(shop.farebox)
    assert "cut_off" in [event["reason"] for event in await shop.farebox.usage()]
    assert shop.count("farebox_crashes_total") == 0


async def test_a_cap_that_was_announced_is_what_is_held(shop: Shop, fake: FakeRealtime) -> None:
    async with talk(shop) as mine:
        await mine.respond()
        await mine.send("session.update", session={"max_output_tokens": 10})
        await mine.until("session.updated")
        await mine.respond()
        fake.turns.append(Turn(stop="created"))
        await mine.send("response.create")
        key = (await mine.until("response.created"))["response"]["id"]
        assert (await shop.farebox.wallet())["held_nanos"] < OUTPUT * 16
        await fake.log[0].finish(key, Turn())
        await mine.until("response.done")
