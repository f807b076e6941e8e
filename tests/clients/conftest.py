"""The gateway that the SDKs call: one for all tests of a module, a wallet and an upstream's log for each of them."""

import pytest_asyncio

from tests.support.gateway import Farebox
from tests.support.shop import Shop, open_all_day, shop
from tests.support.upstream import FakeUpstream

__all__ = ["open_all_day", "shop"]


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(shop: Shop) -> Farebox:
    """The shared gateway, with a wallet of 100.00 and a key of this test's own."""
    return shop.farebox


@pytest_asyncio.fixture(loop_scope="module")
async def upstream(shop: Shop) -> FakeUpstream:
    """Its upstream, with an empty log."""
    return shop.upstream
