"""Fixtures that every test may use: a PostgreSQL, a migrated database of one's own, a gateway, a fake upstream."""

import itertools
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest

from gateway.db.migrate import migrate
from tests.support.gateway import CALLS_AT_ONCE_MAX, Farebox, farebox
from tests.support.ledger_check import check_invariants
from tests.support.postgres import ScratchPostgres
from tests.support.upstream import FakeUpstream

_numbers = itertools.count(1)


async def _prepare(dsn: str) -> None:
    await migrate(dsn, is_durable_required=False)


@pytest.fixture(scope="session")
def scratch() -> Iterator[ScratchPostgres]:
    """A throw-away server whose template is migrated, or the one that FAREBOX_TEST_DATABASE_URL names."""
    with ScratchPostgres(_prepare, server_url=os.environ.get("FAREBOX_TEST_DATABASE_URL")) as server:
        yield server


@pytest.fixture
async def database_url(scratch: ScratchPostgres) -> AsyncIterator[str]:
    """A fresh migrated database; after the test every invariant must hold in it."""
    name = f"test_{next(_numbers)}"
    dsn = await scratch.clone(name)
    try:
        yield dsn
        await check_invariants(dsn)
    finally:
        await scratch.drop(name)


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    """The far side of the wire; its log is the oracle."""
    async with FakeUpstream() as server:
        yield server


@pytest.fixture
async def gateway(database_url: str, upstream: FakeUpstream) -> AsyncIterator[Farebox]:
    """A whole gateway in this process, on real sockets, with one wallet of 100.00 and a key."""
    limit = {"calls_in_flight_max": CALLS_AT_ONCE_MAX}
    async with farebox(database_url, [upstream.base_url], upstream=limit) as running:
        yield running


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """For tests that build more than one of something."""
    async with AsyncExitStack() as exits:
        yield exits
