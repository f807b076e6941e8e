"""Step 1. Whose call: cached for a moment, revoked everywhere within a second, and never guessed."""

import asyncio
import hashlib
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from multidict import CIMultiDict

from gateway.clock import monotonic_seconds, new_id
from gateway.db import keys
from gateway.db.pool import LedgerAway
from gateway.errors import TooManyAttempts, Unauthenticated
from gateway.request.authenticate import KEY_CHARS_MAX, Authenticator, presented_key
from gateway.tasks import spawn
from tests.support.gateway import Farebox, farebox, make_wallet
from tests.support.ledger_proxy import ledger_proxy
from tests.support.shop import connected
from tests.support.upstream import FakeUpstream

KEY = "fb-" + "k" * 43
ROW: dict[str, Any] = {"wallet_id": "w", "key_id": "k", "models": None, "expires_at": None}


def bearer(key: str = KEY) -> Mapping[str, str]:
    return CIMultiDict({"Authorization": f"Bearer {key}"})


class Keys:
    """The table of keys, as a lookup that counts, and may take its time."""

    def __init__(self, row: dict[str, Any] | None = ROW) -> None:
        self.row = row
        self.lookups = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, _: bytes) -> dict[str, Any] | None:
        row = self.row
        self.lookups += 1
        await self.gate.wait()
        return row

    def authenticator(self, **settings: Any) -> Authenticator:
        chosen: dict[str, Any] = {"cache_seconds": 60.0, "entries_max": 100, "unknown_per_second_max": 5, **settings}
        authenticator = Authenticator(self, **chosen)
        authenticator.hears = lambda: True
        return authenticator


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({"Authorization": f"Bearer {KEY}"}, KEY),
        ({"authorization": f"bEARER   {KEY} "}, KEY),
        ({"api-key": KEY}, KEY),
        ({"X-Api-Key": KEY}, KEY),
        ({"Authorization": f"Bearer {KEY}", "api-key": "fb-other"}, KEY),
        ({"Authorization": "Bearer fb-" + "x" * (KEY_CHARS_MAX - 3)}, "fb-" + "x" * (KEY_CHARS_MAX - 3)),
        ({}, None),
        ({"Authorization": f"Basic {KEY}", "api-key": KEY}, None),
        ({"Authorization": KEY}, None),
        ({"Authorization": f"Bearer\t{KEY}"}, None),
        ({"Authorization": ""}, None),
        ({"api-key": "sk-other"}, None),
        ({"api-key": "fb-" + "x" * KEY_CHARS_MAX}, None),
        ({"api-key": "fb-\udcff"}, None),
    ],
)
def test_a_key_is_read_from_its_headers(headers: dict[str, str], key: str | None) -> None:
    if key is None:
        with pytest.raises(Unauthenticated):
            presented_key(CIMultiDict(headers))
    else:
        assert presented_key(CIMultiDict(headers)) == key


async def test_a_known_key_is_looked_up_once_for_a_while() -> None:
    known = Keys()
    authenticator = known.authenticator(cache_seconds=0.05)
    first = await authenticator.authenticate(bearer(), "peer")
    assert await authenticator.authenticate(bearer(), "peer") == first
    assert (first.wallet_id, first.models, known.lookups) == ("w", None, 1)
    await asyncio.sleep(0.06)
    await authenticator.authenticate(bearer(), "peer")
    assert known.lookups == 2


async def test_an_unknown_key_is_looked_up_once_for_a_while() -> None:
    nobody = Keys(None)
    authenticator = nobody.authenticator()
    for _ in range(10):
        with pytest.raises(Unauthenticated):
            await authenticator.authenticate(bearer(), "peer")
    assert nobody.lookups == 1


async def test_unheard_revocations_shorten_the_cache() -> None:
    known = Keys()
    authenticator = known.authenticator()
    authenticator.hears = lambda: False
    await authenticator.authenticate(bearer(), "peer")
    _, until = next(iter(authenticator._known.values()))
    assert until - monotonic_seconds() <= 0.5


async def test_guesses_are_limited_by_peer() -> None:
    nobody = Keys(None)
    authenticator = nobody.authenticator(unknown_per_second_max=3)

    async def guess(number: int, peer: str) -> type[Exception]:
        with pytest.raises((Unauthenticated, TooManyAttempts)) as refused:
            await authenticator.authenticate(bearer(f"fb-{number}"), peer)
        return refused.type

    while monotonic_seconds() % 1 > 0.5:
        await asyncio.sleep(0.05)
    answers = [await guess(number, "guesser") for number in range(6)]
    assert answers == [Unauthenticated] * 3 + [TooManyAttempts] * 3
    assert nobody.lookups == 3
    # A guess that is remembered costs nothing, and another peer is another matter.
    assert await guess(0, "guesser") is Unauthenticated
    assert await guess(7, "other") is Unauthenticated
    await asyncio.sleep(1 - monotonic_seconds() % 1 + 0.01)
    assert await guess(8, "guesser") is Unauthenticated


async def test_a_key_that_was_good_is_looked_up_however_much_others_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a proxy all callers have one address."""
    authenticator = Keys().authenticator(cache_seconds=0.0, unknown_per_second_max=1)
    await authenticator.authenticate(bearer(), "proxy")
    monkeypatch.setitem(authenticator._unknown, "proxy", (int(monotonic_seconds()), 10**9))
    await authenticator.authenticate(bearer(), "proxy")
    with pytest.raises(TooManyAttempts):
        await authenticator.authenticate(bearer("fb-other"), "proxy")


async def test_the_cache_and_the_count_of_guesses_are_bounded() -> None:
    nobody = Keys(None)
    authenticator = nobody.authenticator(entries_max=4, unknown_per_second_max=10**6)
    for number in range(20):
        with pytest.raises(Unauthenticated):
            await authenticator.authenticate(bearer(f"fb-{number}"), f"peer {number}")
    assert len(authenticator._known) == 4
    assert len(authenticator._unknown) <= 4


async def test_a_key_revoked_during_its_look_up_is_not_let_in() -> None:
    """What was read before the revocation is not believed, and not remembered."""
    table = Keys()
    authenticator = table.authenticator()
    table.gate.clear()
    asking = spawn(authenticator.authenticate(bearer(), "peer"), name="a call")
    await asyncio.sleep(0)
    assert table.lookups == 1
    table.row = None
    authenticator.forget(hashlib.sha256(KEY.encode()).digest())
    table.gate.set()
    with pytest.raises(Unauthenticated):
        await asking
    assert table.lookups == 2
    table.row = ROW
    with pytest.raises(Unauthenticated):
        await authenticator.authenticate(bearer(), "peer")


async def test_an_answer_that_was_always_overtaken_is_not_remembered() -> None:
    table = Keys()
    authenticator = table.authenticator()
    lookup = authenticator._lookup

    async def overtaken(digest: bytes) -> Mapping[str, Any] | None:
        row = await lookup(digest)
        authenticator.forget(None)
        return row

    authenticator._lookup = overtaken
    await authenticator.authenticate(bearer(), "peer")
    assert table.lookups == 3
    assert not authenticator._known


async def test_a_database_that_is_away_is_not_a_wrong_key() -> None:
    async def away(_: bytes) -> None:
        raise LedgerAway("gone")

    authenticator = Keys().authenticator()
    authenticator._lookup = away
    with pytest.raises(LedgerAway):
        await authenticator.authenticate(bearer(), "peer")
    assert not authenticator._known
    assert not authenticator._unknown


# With a database -----------------------------------------------------------------------------------------------------


async def status_of(running: Farebox, key: str) -> int:
    async with running.session.get(f"{running.base_url}/models", headers=running.headers(key)) as response:
        return response.status


async def test_a_revoked_key_is_refused_everywhere_within_a_second(
    database_url: str, upstream: FakeUpstream, stack: AsyncExitStack
) -> None:
    """In the process that revokes it and in another one, both of which have it in their cache."""
    one, other = [
        await stack.enter_async_context(farebox(database_url, [upstream.base_url], key_cache_seconds=3_600))
        for _ in range(2)
    ]
    while not (one.app.gateway.authenticator.hears() and other.app.gateway.authenticator.hears()):
        await asyncio.sleep(0.01)
    assert [await status_of(running, one.key) for running in (one, other, one, other)] == [200] * 4
    began = monotonic_seconds()
    assert await keys.revoke(one.app.database, one.key_id)
    for running in (one, other):
        while await status_of(running, one.key) == 200:
            assert monotonic_seconds() - began < 1.0
            await asyncio.sleep(0.01)
        assert await status_of(running, one.key) == 401
    assert monotonic_seconds() - began < 1.0
    assert await status_of(one, other.key) == 200


async def test_a_key_that_expires_is_refused_from_then_on(gateway: Farebox) -> None:
    key, expires = keys.make_key(), datetime.now(UTC) + timedelta(seconds=0.6)
    await keys.create(gateway.app.database, key, new_id(), gateway.wallet_id, name="short", expires_at=expires)
    assert await status_of(gateway, key) == 200
    await asyncio.sleep((expires - datetime.now(UTC)).total_seconds() + 0.02)
    assert await status_of(gateway, key) == 401


async def test_without_a_database_a_call_is_refused_as_503_and_works_again_after(
    database_url: str, upstream: FakeUpstream
) -> None:
    async with (
        ledger_proxy(database_url) as proxy,
        farebox(proxy.dsn, [upstream.base_url], lane_wait_seconds=0.2) as running,
    ):
        await connected(running)
        _, uncached = await make_wallet(running.app.database, "1")
        async with running.chat() as response:
            assert response.status == 200
        proxy.cut()
        for key in (running.key, uncached, KEY):
            async with running.chat(key) as response:
                document = await response.json()
            assert (response.status, document["error"]["code"]) == (503, "ledger_unavailable")
            assert response.headers["retry-after"] == "2"
        proxy.restore()
        async with asyncio.timeout(5):
            for key in (running.key, uncached):
                while (status := await _chat_status(running, key)) == 503:
                    await asyncio.sleep(0.02)
                assert status == 200
        assert await status_of(running, KEY) == 401
        assert len(upstream.log) == 3


async def _chat_status(running: Farebox, key: str) -> int:
    async with running.chat(key) as response:
        return response.status
