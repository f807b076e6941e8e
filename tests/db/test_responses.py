"""Whose responses are whose, as the database keeps it: by wallet, once, and for as long as somebody must look."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from gateway.clock import new_id
from gateway.db import responses as store
from gateway.db.pool import Database, LedgerAway
from gateway.db.responses import Owner
from tests.support.postgres import ScratchPostgres

WALLET, OTHER = new_id(), new_id()


def owner(wallet_id: str = WALLET, response_id: str = "resp_1", unsettled: dict[str, int] | None = None) -> Owner:
    return Owner(wallet_id, response_id, "up0", new_id(), unsettled)


@pytest.fixture
async def dsn(scratch: ScratchPostgres) -> AsyncIterator[str]:
    yield await scratch.clone("responses")
    await scratch.drop("responses")


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    opened = Database(dsn)
    yield opened
    await opened.close()


async def own(database: Database, *owners: Owner, look_seconds: float = 0.0) -> int:
    return len(await store.own(database, [owner._replace(look_seconds=look_seconds) for owner in owners]))


async def test_a_response_is_its_wallets(database: Database) -> None:
    mine, theirs = owner(), owner(OTHER, "resp_2")
    assert await store.own(database, [mine, theirs]) == {(WALLET, "resp_1"), (OTHER, "resp_2")}
    found = await store.owner(database, WALLET, "resp_1")
    assert found is not None
    assert found[:5] == mine[:5]
    assert await store.owner(database, WALLET, "resp_2") is None
    assert await store.owner(database, OTHER, "resp_1") is None


async def test_an_id_that_is_seen_again_is_another_response_unless_it_is_unsettled(database: Database) -> None:
    first, second, third = owner(unsettled={"x": 1}), owner(), owner()
    assert await own(database, first) == 1
    assert await own(database, second) == 0
    assert await own(database, first) == 1, "asked again, for its answer was lost"
    assert await store.settled(database, WALLET, "resp_1", second.hold_id) is False, "another call's"
    assert await store.settled(database, WALLET, "resp_1", first.hold_id)
    assert await own(database, third) == 1
    found = await store.owner(database, WALLET, "resp_1")
    assert found is not None
    assert (found.hold_id, found.unsettled) == (third.hold_id, None)


async def test_what_is_due_is_given_to_one_at_a_time(database: Database) -> None:
    owners = [owner(response_id=f"resp_{number}", unsettled={"n": number}) for number in range(20)]
    await own(database, *owners, owner(response_id="done"))
    await own(database, owner(OTHER, unsettled={"n": 20}), look_seconds=60)
    taken = await asyncio.gather(*(store.due(database, 8, lease_seconds=60) for _ in range(4)))
    ids = [one.response_id for part in taken for one in part]
    assert len(ids) == len(set(ids))
    rest = await store.due(database, 100, lease_seconds=60)
    assert len(ids) + len(rest) == 20
    assert await store.due(database, 100, lease_seconds=60) == []
    assert await store.unsettled(database) == 21
    assert await store.look_later(database, owners[3], 0)
    (again,) = await store.due(database, 100, lease_seconds=60)
    assert (again.response_id, again.unsettled, again.is_resolved) == ("resp_3", {"n": 3}, False)
    assert not await store.look_later(database, owner(response_id="done"), 0)


async def test_what_is_unsettled_is_not_forgotten(database: Database, dsn: str) -> None:
    await own(database, owner(response_id="old"), owner(response_id="works", unsettled={}))
    connection = await asyncpg.connect(dsn)
    await connection.execute("UPDATE response_owners SET created_at = now() - interval '31 days'")
    await connection.close()
    await own(database, owner(response_id="new"))
    assert await store.owner(database, WALLET, "old") is None
    assert [await store.forget(database, 10) for _ in range(2)] == [1, 0]
    assert await store.owner(database, WALLET, "new") is not None
    assert await store.unsettled(database) == 1


async def test_nothing_is_known_while_the_ledger_is_away() -> None:
    nowhere = Database("postgresql://nobody@127.0.0.1:1/nothing")
    with pytest.raises(LedgerAway):
        await own(nowhere, owner())
    await nowhere.close()


async def test_the_most_that_was_relayed_of_an_unsettled_one_is_kept(database: Database) -> None:
    mine = owner(unsettled={"input": 7})
    await own(database, mine)
    for count in (5, 9, 3):
        assert await store.relayed(database, mine, count)
    found = await store.owner(database, WALLET, "resp_1")
    assert found is not None
    assert found.unsettled == {"input": 7, "relayed": 9}
    await store.settled(database, WALLET, "resp_1", mine.hold_id)
    assert not await store.relayed(database, mine, 99)
