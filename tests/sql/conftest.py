"""Fixtures for tests of the ledger's SQL."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.ledger_operations import Ledger, open_ledger
from tests.support.postgres import ScratchPostgres


@pytest.fixture(scope="module")
def shared_url(scratch: ScratchPostgres, request: pytest.FixtureRequest) -> Iterator[str]:
    """One database for a module: its tests share no wallet, and a wallet's rows are all that a call can touch."""
    name = request.module.__name__.rpartition(".")[2]
    yield asyncio.run(scratch.clone(name))
    asyncio.run(scratch.drop(name))


@pytest.fixture
async def ledger(shared_url: str) -> AsyncIterator[Ledger]:
    """A connection to the module's ledger; the books must balance after each test."""
    async with open_ledger(shared_url) as opened:
        yield opened
        assert not await opened.broken()
