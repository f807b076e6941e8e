"""A session over real sockets: what each response costs, and what becomes of its hold however it ends."""

import asyncio
import contextlib
from typing import Any

import orjson
import pytest

from tests.support.gateway import make_wallet
from tests.support.realtime import (
    EXACT,
    OUTPUT,
    REALTIME,
    FakeRealtime,
    Live,
    Turn,
    cost_of,
    fake,
    realtime_all_day,
    shop,
    sound,
    talk,
    usage_of,
)
from tests.support.shop import CREDIT_NANOS, Shop, settled, until

__all__ = ["fake", "realtime_all_day", "shop"]
pytestmark = pytest.mark.asyncio(loop_scope="module")

# The bytes of `{"type":"response.create"}` in quarters; six bytes of text, and half a second of 20 tokens of sound.
ASKED, SAID = 7, 4 * 2 + 16 * 10


async def events_of(shop: Shop) -> list[dict[str, Any]]:
    """The resolved charges, oldest first, without holds for responses that never came."""
    await settled(shop.farebox)
    return [event for event in reversed(await shop.farebox.usage()) if event["reason"] != "session_ended"]


async def test_each_response_is_charged_once_and_before_the_client_has_its_end(shop: Shop, fake: FakeRealtime) -> None:
    async with talk(shop) as mine:
        for count in (1, 2, 3):
            await mine.respond()
            assert [event["charged_nanos"] for event in await shop.farebox.usage()] == [EXACT] * count
    await settled(shop.farebox)
    wallet = await shop.farebox.wallet()
    assert (wallet["balance_nanos"], wallet["held_nanos"]) == (CREDIT_NANOS - 3 * EXACT, 0)
    assert shop.count("farebox_calls_total", endpoint="realtime", model=REALTIME, outcome="completed", basis="reported")


async def test_a_session_without_a_response_costs_nothing(shop: Shop) -> None:
    async with talk(shop) as mine:
        await mine.send("input_audio_buffer.append", audio=sound(3))
        assert (await shop.farebox.wallet())["held_nanos"] > 0
    await settled(shop.farebox)
    wallet = await shop.farebox.wallet()
    assert (wallet["balance_nanos"], wallet["held_nanos"]) == (CREDIT_NANOS, 0)
    assert [event["resolution"] for event in await shop.farebox.usage()] == ["voided"]


OUTCOMES = {
    "usage": (Turn(), EXACT, "reported", None),
    "cancelled, with usage": (Turn(status="cancelled"), EXACT, "reported", None),
    "incomplete": (Turn(status="incomplete"), EXACT, "reported", None),
    "no usage": (Turn(usage=None), ASKED + SAID, "estimated", "usage_missing"),
    "usage of nothing": (Turn(usage={"total_tokens": 0}), ASKED + SAID, "estimated", "usage_missing"),
    "negative": (Turn(usage=usage_of(text_in=-1)), ASKED + SAID, "estimated", "usage_invalid"),
    "above the model": (Turn(usage=usage_of(text_out=OUTPUT)), ASKED + SAID, "estimated", "usage_invalid"),
    "failed in silence": (Turn(None, "failed", text=(), audio_seconds=0.0), 0, "none", "upstream_refused"),
    "failed after some": (Turn(usage=None, status="failed"), ASKED + SAID, "estimated", "upstream_broke"),
    "cancelled in silence": (Turn(None, "cancelled", text=(), audio_seconds=0.0), 0, "none", "upstream_refused"),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTCOMES)
async def test_how_a_response_ends(shop: Shop, fake: FakeRealtime, name: str) -> None:
    turn, charge, basis, reason = OUTCOMES[name]
    fake.turns.append(turn)
    async with talk(shop) as mine:
        done = await mine.respond()
        assert done["usage"] == turn.usage
    (event,) = await events_of(shop)
    assert (event["charged_nanos"], event["basis"], event["reason"]) == (charge, basis, reason)
    assert event["endpoint"] == "realtime"


@pytest.mark.parametrize(("stop", "charge", "basis"), [("delta", ASKED + SAID, "estimated"), ("created", 0, "none")])
@pytest.mark.parametrize("is_clean", [True, False])
async def test_an_upstream_that_breaks(
    shop: Shop, fake: FakeRealtime, stop: str, charge: int, basis: str, is_clean: bool
) -> None:
    fake.turns.append(Turn(stop=stop))
    async with talk(shop) as mine:
        await mine.send("response.create")
        await mine.until("response.created" if stop == "created" else "response.output_audio.delta")
        live = fake.log[0]
        if is_clean:
            await live.socket.close(code=4000, message=b"enough")
        elif live.request.transport is not None:
            live.request.transport.abort()
        assert await mine.closed() == (4000 if is_clean else 1011)
        assert is_clean or mine.seen[-1]["error"]["code"] == "upstream_broke"
    (event,) = await events_of(shop)
    assert (event["charged_nanos"], event["basis"], event["reason"]) == (charge, basis, "upstream_broke")


async def test_a_client_that_leaves_is_charged_what_the_upstream_still_says(shop: Shop, fake: FakeRealtime) -> None:
    fake.turns.append(Turn(stop="delta"))
    async with talk(shop) as mine:
        await mine.send("response.create")
        key = (await mine.until("response.output_audio.delta"))["response_id"]
    await fake.log[0].finish(key, Turn())
    (event,) = await events_of(shop)
    assert (event["charged_nanos"], event["basis"]) == (EXACT, "reported")
    await fake.log[0].finished()


async def test_a_client_that_leaves_is_charged_what_was_relayed_if_the_upstream_says_nothing_in_time(
    shop: Shop, fake: FakeRealtime
) -> None:
    fake.turns.append(Turn(stop="delta"))
    async with talk(shop) as mine:
        await mine.send("response.create")
        await mine.until("response.output_audio.delta")
        mine.socket._response.connection.transport.abort()  # type: ignore[union-attr]
    (event,) = await events_of(shop)
    assert (event["charged_nanos"], event["basis"], event["reason"]) == (ASKED + SAID, "estimated", "client_gone")
    await fake.log[0].finished()


async def test_a_response_that_nobody_asked_for(shop: Shop, fake: FakeRealtime) -> None:
    """Voice detection: what the client says is sent, and the upstream answers when it likes; also twice, at once."""
    async with talk(shop) as mine:
        await mine.send("input_audio_buffer.append", audio=sound(2))
        live = fake.log[0]
        await live.until("input_audio_buffer.append")
        first = await live.respond(Turn(stop="created"))
        second = await live.respond(Turn(stop="created"))
        await mine.until("response.created")
        await mine.until("response.created")
        assert await shop.farebox.open_holds() == 2
        for key in (second, first, first):
            await live.finish(key, Turn())
            await mine.until("response.done")
        await live.finish("resp_never_created", Turn())
        await mine.until("response.done")
    assert [event["charged_nanos"] for event in await events_of(shop)] == [EXACT] * 3


async def test_a_refused_response_gives_its_hold_to_the_next(shop: Shop, fake: FakeRealtime) -> None:
    fake.turns.append(Turn(refuse=True))
    fake.turns.append(Turn(refuse=True))
    async with talk(shop) as mine:
        await mine.send("response.create")
        assert (await mine.until("error"))["error"]["event_id"] is None
        await mine.send("response.create", event_id="mine")
        assert (await mine.until("error"))["error"]["event_id"] == "mine"
        await mine.respond()
    assert [event["charged_nanos"] for event in await events_of(shop)] == [EXACT]
    sent = [event.get("event_id") for event in fake.log[0].received]
    assert str(sent[0]).startswith("event_farebox_")
    # Ours too, for the client may give other frames the same.
    assert str(sent[1]).startswith("event_farebox_")
    assert str(sent[1]).endswith(":mine")


async def test_where_the_funds_end_what_runs_is_finished_and_the_session_ends(shop: Shop, fake: FakeRealtime) -> None:
    # 4,096 tokens out at 16 nanos, and room for what is said: one response is covered, and a second, but no third.
    wallet_id, key = await make_wallet(shop.farebox.app.database, "0.000081")
    big = usage_of(audio_out=200)
    cost = cost_of(audio_out=200)
    fake.turns.extend([Turn(usage=big), Turn(usage=big)])
    async with talk(shop, key=key) as mine:
        await mine.respond()
        await mine.respond()
        for _ in range(20):
            await mine.send("response.create")
        assert await mine.closed() == 1008
        error = mine.seen[-1]
        assert (error["type"], error["status"]) == ("error", 402)
        assert error["error"]["code"] in ("insufficient_funds", "cut_off")
    await settled(shop.farebox)
    wallet = await shop.farebox.wallet(wallet_id)
    served = [turn for _, turn in fake.log[0].done]
    assert wallet["balance_nanos"] == 81_000 - sum(cost if turn == big else EXACT for turn in served) >= 0
    assert wallet["held_nanos"] == 0


async def test_two_sessions_of_a_small_wallet_never_overdraw_it(shop: Shop, fake: FakeRealtime) -> None:
    wallet_id, key = await make_wallet(shop.farebox.app.database, "0.00017")
    async with talk(shop, key=key) as one, talk(shop, key=key) as two:
        for mine in (one, two) * 150:
            with contextlib.suppress(ConnectionError):
                await mine.send("response.create")
        assert {await one.closed(), await two.closed()} <= {1008}
    await settled(shop.farebox)
    wallet = await shop.farebox.wallet(wallet_id)
    served = sum(len(live.done) for live in fake.log)
    assert wallet["balance_nanos"] == 170_000 - served * EXACT >= 0
    assert served > 10
    assert all(event["shortfall_nanos"] == 0 for event in await shop.farebox.usage(wallet_id))


async def test_a_stopping_gateway_says_so(shop: Shop, fake: FakeRealtime) -> None:
    fake.turns.append(Turn(stop="delta"))
    async with talk(shop) as mine:
        await mine.send("response.create")
        await mine.until("response.output_audio.delta")
        shop.farebox.app.watch.stop_all()
        assert await mine.closed() == 1012
        assert mine.seen[-1]["error"]["code"] == "stopping"
    (event,) = await events_of(shop)
    assert (event["charged_nanos"], event["reason"]) == (ASKED + SAID, "gateway_stopped")


@pytest.mark.parametrize("which", ["_moved_at_seconds", "_ends_at_seconds"])
async def test_a_session_has_limits(shop: Shop, fake: FakeRealtime, which: str) -> None:
    async with talk(shop) as mine:
        await mine.respond()
        (session,) = shop.farebox.app.watch._calls
        setattr(session, which, -1e9)
        assert await mine.closed() == 1000
        assert mine.seen[-1]["error"]["code"] == "session_ended"


async def test_a_long_response_says_what_it_has_cost_so_far(shop: Shop, fake: FakeRealtime) -> None:
    fake.turns.append(Turn(stop="delta"))
    async with talk(shop) as mine:
        await mine.send("response.create")
        key = (await mine.until("response.output_audio.delta"))["response_id"]
        (session,) = shop.farebox.app.watch._calls
        hold = session.responses.running[key].hold
        hold.renew_at_seconds = 0.0
        await until(lambda: hold.renew_at_seconds > 0)
        await mine.send("response.cancel")
        await fake.log[0].until("response.cancel")
        await fake.log[0].finish(key, Turn(status="cancelled"))
        await mine.until("response.done")
    assert [event["charged_nanos"] for event in await events_of(shop)] == [EXACT]


async def test_frames_pass_as_they_came(shop: Shop, fake: FakeRealtime) -> None:
    frames = [
        b'{ "type": "input_audio_buffer.append", "audio":"AAAA" , "event_id": "\xc3\xa9"}',
        orjson.dumps({"type": "conversation.item.create", "item": {"role": "user"}}),
        b'{"type":"input_audio_buffer.clear", "unknown":[1.50,1e3]}',
    ]
    async with talk(shop) as mine:
        for frame in frames:
            await mine.socket.send_str(frame.decode())
        live = fake.log[0]
        await live.until("input_audio_buffer.clear")
        assert live.raw == frames
        await live.socket.send_str("{not json")
        await live.socket.send_bytes(b"\x00\x01")
        assert (await mine.socket.receive()).data == "{not json"
        assert (await mine.socket.receive()).data == b"\x00\x01"


async def test_an_error_about_another_frame_of_the_same_id_frees_no_hold(shop: Shop, fake: FakeRealtime) -> None:
    """Its client gives a frame that is refused, and a response, one id: five responses need five holds."""
    asked: list[str] = []

    async def take(live: Live, data: str) -> None:
        event = orjson.loads(data)
        if event["type"] == "conversation.item.delete":
            await live.emit("error", error={"code": "item_not_found", "message": "No.", "event_id": event["event_id"]})
        elif event["type"] == "response.create":
            asked.append(event["event_id"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake, "_take", take)
        async with talk(shop) as mine:
            for _ in range(5):
                await mine.send("conversation.item.delete", event_id="x", item_id="none")
                await mine.send("response.create", event_id="x")
                assert (await mine.until("error"))["error"]["event_id"] == "x"
            async with asyncio.timeout(5):
                while len(asked) < 5:
                    await asyncio.sleep(0.01)
            assert await shop.farebox.open_holds() >= 5
            live = fake.log[-1]
            for number in range(5):
                await live.emit("response.created", response={"id": f"r{number}", "status": "in_progress"})
            for number in range(5):
                await live.finish(f"r{number}", Turn())
                await mine.until("response.done")
    assert [event["charged_nanos"] for event in await events_of(shop)] == [EXACT] * 5


@pytest.mark.parametrize(
    "data",
    [
        '{"type":"conversation.item.delete","item_id":"a\\u0041","x":%s}',
        '{"type":"response.cancel","x":{"model":1,"item":{"model":2}},"y":%s}',
        '{"type":"response.create","event_id":5,"response":{"metadata":%s}}',
    ],
)
async def test_a_frame_that_is_nested_too_deeply_is_refused_and_the_session_goes_on(shop: Shop, data: str) -> None:
    async with talk(shop) as mine:
        await mine.socket.send_str(data % ("[" * 300 + "]" * 300))
        assert (await mine.until("error"))["error"]["code"] == "invalid_json"
        await mine.respond()
    assert shop.count("farebox_crashes_total") == 0
