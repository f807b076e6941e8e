"""Keys past their time are deleted, batch by batch, and no others."""

import pytest

from gateway.clock import new_id
from gateway.db import idempotency
from gateway.db.idempotency import Key
from gateway.upkeep import forget_keys
from gateway.upkeep.forget_keys import ForgetKeys
from tests.support.keyed import ask, change, rows
from tests.support.shop import Shop

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_run_deletes_what_is_due(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forget_keys, "BATCH", 2)
    monkeypatch.setattr(forget_keys, "_BATCHES_MAX", 3)
    gateway = shop.farebox
    service = ForgetKeys(gateway.app.database)
    assert (await ask(gateway, "kept")).status == 200
    for number in range(8):
        key = Key(gateway.wallet_id, bytes([number]) * 32, b"b" * 32)
        assert await idempotency.claim(gateway.app.database, key, new_id(), keep_seconds=60)
    assert await service.run_once() == 0
    await change(
        gateway, "UPDATE idempotency_keys SET expires_at = now() WHERE wallet_id = $1 AND status <> 'finished'"
    )
    assert [await service.run_once() for _ in range(3)] == [6, 2, 0]
    assert [row["status"] for row in await rows(gateway)] == ["finished"]
    assert (await ask(gateway, "kept")).is_replayed
