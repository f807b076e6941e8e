"""Which models a session may name, and what transcriptions cost."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.support.postgres import ScratchPostgres
from tests.support.realtime import (
    EXACT,
    REALTIME,
    TEXT_ONLY,
    TRANSCRIBE,
    WHISPER,
    FakeRealtime,
    Live,
    Talk,
    Turn,
    fake,
    open_realtime_shop,
    realtime_all_day,
    shop,
    sound,
    talk,
)
from tests.support.shop import Shop, settled, visit

__all__ = ["fake", "realtime_all_day", "shop"]
pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKENS = {"type": "tokens", "total_tokens": 25, "input_tokens": 20, "output_tokens": 5,
          "input_token_details": {"text_tokens": 0, "audio_tokens": 20}}  # fmt: skip
# Two seconds are 20 tokens of sound, or 2,000 milliseconds; "Hello." counts as two tokens.
COMPLETED = {
    "by tokens": (TRANSCRIBE, TOKENS, 20 * 6 + 5 * 10, "reported", None),
    "by duration": (WHISPER, {"type": "duration", "seconds": 1.5}, 150, "reported", None),
    "tokens, not told": (TRANSCRIBE, None, 20 * 6 + 2 * 10, "estimated", "usage_missing"),
    "duration, not told": (WHISPER, None, 200, "estimated", "usage_missing"),
    "longer than was sent": (WHISPER, {"type": "duration", "seconds": 9_999}, 200, "estimated", "usage_invalid"),
    "negative": (WHISPER, {"type": "duration", "seconds": -1}, 200, "estimated", "usage_invalid"),
}


def transcribing(model: object) -> dict[str, Any]:
    return {"type": "realtime", "audio": {"input": {"transcription": {"model": model}}}}


async def say(mine: Talk, live: Live, item: str) -> None:
    """Two seconds, heard and committed."""
    before = len(live.received)
    await mine.send("input_audio_buffer.append", audio=sound(2))
    await live.until("input_audio_buffer.append", 1 + sum("audio" in event for event in live.received[:before]))
    await live.emit("input_audio_buffer.committed", item_id=item)
    await mine.until("input_audio_buffer.committed")


async def transcribed(live: Live, item: str, usage: object) -> None:
    kind = "conversation.item.input_audio_transcription.completed"
    await live.emit(kind, item_id=item, transcript="Hello.", usage=usage)


async def events_of(shop: Shop) -> list[tuple[Any, ...]]:
    await settled(shop.farebox)
    rows = [event for event in await shop.farebox.usage() if event["reason"] != "session_ended"]
    return [(row["endpoint"], row["charged_nanos"], row["basis"], row["reason"]) for row in rows]


@pytest.mark.parametrize("name", COMPLETED)
async def test_a_transcription_is_charged_at_the_price_of_its_own_model(
    shop: Shop, fake: FakeRealtime, name: str
) -> None:
    model, usage, charge, basis, reason = COMPLETED[name]
    async with talk(shop) as mine:
        await mine.send("session.update", session=transcribing(model))
        await mine.until("session.updated")
        live = fake.log[0]
        await say(mine, live, "item")
        assert await shop.farebox.open_holds() == 2
        for _ in range(2):  # a second time says nothing new
            await transcribed(live, "item", usage)
            await mine.until("conversation.item.input_audio_transcription.completed")
    assert await events_of(shop) == [("realtime.transcription", charge, basis, reason)]


async def test_a_transcription_that_failed_costs_nothing_and_one_that_is_lost_what_was_said(
    shop: Shop, fake: FakeRealtime
) -> None:
    async with talk(shop) as mine:
        await mine.send("session.update", session=transcribing(WHISPER))
        await mine.until("session.updated")
        await say(mine, fake.log[0], "first")
        await fake.log[0].emit("conversation.item.input_audio_transcription.failed", item_id="first")
        await mine.until("conversation.item.input_audio_transcription.failed")
        await say(mine, fake.log[0], "second")
    found = await events_of(shop)
    assert found[1] == ("realtime.transcription", 0, "none", "upstream_refused")
    # What was carried over from the first is part of what may have been said.
    assert found[0] == ("realtime.transcription", 400, "estimated", "client_gone")


@pytest.mark.parametrize(
    ("session", "code"),
    [
        (transcribing("no-such-model"), "model_not_found"),
        (transcribing(TEXT_ONLY), "model_not_priced"),
        ({"model": TEXT_ONLY}, "not_metered"),
        ({"model": "no-such-model"}, "not_metered"),
    ],
)
async def test_what_has_no_price_is_not_sent(
    shop: Shop, fake: FakeRealtime, session: dict[str, Any], code: str
) -> None:
    async with talk(shop) as mine:
        await mine.send("session.update", session=session)
        assert (await mine.until("error"))["error"]["code"] == code
        await mine.send("session.update", session={"model": REALTIME})
        await mine.until("session.updated")
        await mine.respond()
    assert [event["session"] for event in fake.log[0].received if "session" in event] == [{"model": REALTIME}]
    assert await events_of(shop) == [("realtime", EXACT, "reported", None)]


async def test_an_upstream_that_transcribes_of_itself_with_what_has_no_price(shop: Shop, fake: FakeRealtime) -> None:
    fake.greeting = transcribing("unknown-transcriber")
    async with talk(shop, greeted=False) as mine:
        assert await mine.closed() == 1008
        assert mine.seen[-1]["error"]["code"] == "not_metered"
    fake.greeting = transcribing(WHISPER)
    async with talk(shop) as mine:
        await say(mine, fake.log[1], "item")
        await transcribed(fake.log[1], "item", {"seconds": 1})
        await mine.until("conversation.item.input_audio_transcription.completed")
    assert await events_of(shop) == [("realtime.transcription", 100, "reported", None)]


async def test_a_response_holds_no_more_than_its_own_cap(shop: Shop, fake: FakeRealtime) -> None:
    """Unless there was sound, which the upstream may answer of itself, with the session's cap."""
    async with talk(shop) as mine:
        await mine.respond()
        (session,) = shop.farebox.app.watch._calls
        for sends, expected in ((False, 100), (True, 4_096)):
            if sends:
                await mine.send("input_audio_buffer.append", audio=sound(1))
            fake.turns.append(Turn(stop="created"))
            await mine.send("response.create", response={"max_output_tokens": 100})
            key = (await mine.until("response.created"))["response"]["id"]
            assert session.responses.running[key].need.output_tokens == expected
            await fake.log[0].finish(key, Turn())
            await mine.until("response.done")


@pytest_asyncio.fixture(loop_scope="module")
async def renaming(scratch: ScratchPostgres) -> AsyncIterator[tuple[Shop, FakeRealtime]]:
    names = {REALTIME: "up-realtime", WHISPER: "up-whisper"}
    async with (
        open_realtime_shop(scratch, "renaming", upstream={"rename": names}) as (shop, fake),
        visit(shop) as mine,
    ):
        yield mine, fake


async def test_the_upstream_sees_its_own_names(renaming: tuple[Shop, FakeRealtime]) -> None:
    shop, fake = renaming
    fake.greeting = {"type": "realtime", "model": "up-realtime"}
    async with talk(shop) as mine:
        await mine.send("session.update", session={"model": REALTIME, **transcribing(WHISPER)})
        await mine.until("session.updated")
        await say(mine, fake.log[0], "item")
        await transcribed(fake.log[0], "item", {"seconds": 1})
        await mine.respond()
    assert fake.log[0].request.query_string == "model=up-realtime"
    session = fake.log[0].received[0]["session"]
    assert (session["model"], session["audio"]["input"]["transcription"]["model"]) == ("up-realtime", "up-whisper")
    assert sorted(await events_of(shop)) == [
        ("realtime", EXACT, "reported", None),
        ("realtime.transcription", 100, "reported", None),
    ]
