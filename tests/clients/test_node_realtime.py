"""The official Node SDK holds a realtime session. It knows no WebSocket without TLS: what ends it stands before us."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.node import NodeClient, node
from tests.support.realtime import EXACT, REALTIME, FakeRealtime, Turn, fake, realtime_all_day, shop
from tests.support.shop import CREDIT_NANOS, Shop, settled
from tests.support.tls import tls_before

__all__ = ["fake", "node", "realtime_all_day", "shop"]
pytestmark = pytest.mark.asyncio(loop_scope="module")


async def play(node: NodeClient, shop: Shop, directory: Path, scenario: str) -> Any:
    port = int(shop.farebox.base_url.split(":")[2].split("/")[0])
    async with tls_before(port, directory) as (origin, certificate):
        more = {"MODEL": REALTIME, "NODE_EXTRA_CA_CERTS": str(certificate)}
        seen = await node.play(scenario, base_url=f"{origin}/v1", key=shop.farebox.key, **more)
    return seen[scenario]


async def test_a_conversation(shop: Shop, fake: FakeRealtime, node: NodeClient, tmp_path: Path) -> None:
    fake.turns.append(Turn(text=("Good ", "day.")))
    seen = await play(node, shop, tmp_path, "realtime")
    assert seen["said"] == "Good day."
    assert seen["usage"]["total_tokens"] == 160
    await settled(shop.farebox)
    assert (await shop.farebox.wallet())["balance_nanos"] == CREDIT_NANOS - EXACT


async def test_a_refused_session(shop: Shop, fake: FakeRealtime, node: NodeClient, tmp_path: Path) -> None:
    seen = await play(node, shop, tmp_path, "realtime_refused")
    assert "401" in seen["message"]
    assert not fake.log
