"""A call is freed when it is over. What a circle of references keeps is only freed by the collector, and while that
looks through tens of thousands of objects every call in flight waits for it, for some 20 ms."""

import gc
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from gateway.request.admit import Offer
from gateway.request.hold import Hold
from gateway.request.watch import Call
from gateway.web.metered import Exchange
from tests.support.behaviours import Behaviour, Completion, End, failure
from tests.support.gateway import make_wallet
from tests.support.shop import FORMS, Shop, settled

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALLS = 5
OURS = (Call, Exchange, Hold, Offer)


@pytest_asyncio.fixture(loop_scope="module")
async def collected() -> AsyncIterator[None]:
    """The collector looks only when it is told to, and keeps what it finds."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def circles() -> list[str]:
    """The kinds of our own objects that only the collector could free."""
    gc.collect()
    return sorted({type(found).__name__ for found in gc.garbage if isinstance(found, OURS)})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "behaviour",
    [Completion(), Completion(end=End.CLOSE, end_after_events=3), failure(400), failure(500)],
    ids=["completed", "broken", "refused", "failed"],
)
@pytest.mark.usefixtures("collected")
async def test_a_call_is_freed_when_it_is_over(shop: Shop, form: str, behaviour: Behaviour) -> None:
    for _ in range(CALLS):
        await shop.call(form, behaviour)
    await settled(shop.farebox)
    assert circles() == []


@pytest.mark.usefixtures("collected")
async def test_so_is_one_that_there_are_no_funds_for(shop: Shop) -> None:
    _, key = await make_wallet(shop.farebox.app.database, "0.00000001")
    for _ in range(CALLS):
        async with shop.farebox.chat(key=key) as response:
            assert response.status == 402
    assert circles() == []


@pytest.mark.usefixtures("collected")
async def test_so_is_one_with_an_idempotency_key(shop: Shop) -> None:
    for number in range(CALLS):
        headers = shop.farebox.headers() | {"Idempotency-Key": f"circle-{number}"}
        body = b'{"model":"test-chat","messages":[{"role":"user","content":"Hi"}]}'
        url = f"{shop.farebox.base_url}/chat/completions"
        async with shop.farebox.session.post(url, data=body, headers=headers) as response:
            await response.read()
    await settled(shop.farebox)
    assert circles() == []
