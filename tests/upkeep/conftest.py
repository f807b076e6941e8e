"""A gateway whose own sweep and audit run once at its start and then stay out of the way of a test's."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.support.postgres import ScratchPostgres
from tests.support.shop import Shop, open_shop, shop

__all__ = ["open_all_day", "shop"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def open_all_day(scratch: ScratchPostgres, request: pytest.FixtureRequest) -> AsyncIterator[Shop]:
    """The gateway itself; a test asks for `shop`."""
    async with open_shop(scratch, request.node.path.stem, sweep_seconds=86_400, invariants_seconds=86_400) as opened:
        yield opened
