"""Sessions that end anywhere: either side leaves after any frame, well or badly, and responses stop where they like.

Whatever was drawn, each response that the client saw the end of is charged once and exactly, nothing is charged twice,
and nothing stays held. FAREBOX_REALTIME_SEEDS draws more.
"""

import asyncio
import contextlib
import os
import random

import pytest

from tests.support.realtime import EXACT, FakeRealtime, Live, Talk, Turn, fake, realtime_all_day, shop, sound, talk
from tests.support.shop import CREDIT_NANOS, Shop, settled, until

__all__ = ["fake", "realtime_all_day", "shop"]
pytestmark = pytest.mark.asyncio(loop_scope="module")

SEEDS = int(os.environ.get("FAREBOX_REALTIME_SEEDS", "8"))


def turn_of(dice: random.Random) -> Turn:
    stop = dice.choice(["created", "delta", "done", "done", "done", "done"])
    return Turn(stop=stop, refuse=dice.random() < 0.15, audio_seconds=dice.choice([0.0, 0.5]))


async def play(dice: random.Random, mine: Talk, live: Live) -> None:
    """Some frames of the client, and some that the upstream sends of itself; then one of them leaves."""
    for _ in range(dice.randrange(12)):
        match dice.choice(["create", "create", "say", "answer", "cancel", "pause"]):
            case "create":
                await mine.send("response.create")
            case "say":
                await mine.send("input_audio_buffer.append", audio=sound(0.3))
            case "answer":
                await live.respond(turn_of(dice))
            case "cancel":
                await mine.send("response.cancel")
            case "pause":
                await asyncio.sleep(dice.choice([0, 0.001, 0.01]))
    connection = mine.socket._response.connection
    assert connection is not None
    assert connection.transport is not None
    match dice.choice(["close", "drop", "upstream closes", "upstream drops", "stop"]):
        case "close":
            await mine.socket.close()
        case "drop":
            connection.transport.abort()
        case "upstream closes":
            await live.socket.close(code=dice.choice([1000, 1001, 4000]))
        case "upstream drops" if live.request.transport is not None:
            live.request.transport.abort()


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_a_session_that_ends_anywhere(shop: Shop, fake: FakeRealtime, seed: int) -> None:
    dice = random.Random(seed)
    fake.turns.extend(turn_of(dice) for _ in range(12))
    async with talk(shop) as mine:
        with contextlib.suppress(ConnectionError):
            await play(dice, mine, fake.log[0])
        shop.farebox.app.watch.stop_all()
        with contextlib.suppress(TimeoutError, AssertionError):
            await mine.closed()
    await until(lambda: not shop.farebox.app.watch._calls)
    await settled(shop.farebox)
    events = await shop.farebox.usage()
    reported = [event["charged_nanos"] for event in events if event["basis"] == "reported"]
    saw = [event for event in mine.seen if event["type"] == "response.done"]
    assert set(reported) <= {EXACT}
    assert len(saw) <= len(reported) <= len(fake.log[0].done)
    wallet = await shop.farebox.wallet()
    assert wallet["balance_nanos"] == CREDIT_NANOS - sum(event["charged_nanos"] for event in events)
    assert wallet["held_nanos"] == 0
    assert await shop.farebox.open_holds() == 0
    assert shop.count("farebox_crashes_total") == 0
