"""Goal: `kill -9` of a gateway loses no charge of what runs longer than a call. Method: kill it in the middle of a
realtime session and of a response in the background, start another, and compare with what the upstream says.
"""

import aiohttp
import orjson

from gateway.db.pool import Database
from tests.adversity.witness import Books
from tests.support.gateway import MODEL
from tests.support.postgres import ScratchPostgres
from tests.support.processes import GatewayProcess, Gateways, eventually, open_wallet
from tests.support.realtime import EXACT, REALTIME, FakeRealtime, Talk, Turn, price_sessions
from tests.support.responses_shop import EXACT as RESPONSE_EXACT
from tests.support.responses_upstream import FakeResponses

CREDIT_NANOS = 10 * 10**9
SETTINGS = {
    "FAREBOX_HOLD_VALID_SECONDS": "2", "FAREBOX_SWEEP_SECONDS": "0.25", "FAREBOX_BACKGROUND_LOOK_SECONDS": "0.2",
}  # fmt: skip


async def killed(gateway: GatewayProcess) -> None:
    gateway.process.kill()
    await gateway.ended()


async def test_a_session(durable: ScratchPostgres) -> None:
    dsn = await durable.clone("kill_session")
    database = Database(dsn)
    await price_sessions(database)
    await database.close()
    wallet_id, key = await open_wallet(dsn, "10")
    async with (
        FakeRealtime() as upstream,
        Gateways() as gateways,
        Books(dsn, wallet_id, CREDIT_NANOS) as books,
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session,
    ):
        gateway = await gateways.serve(dsn, upstream.base_url, **SETTINGS)
        upstream.turns.extend([Turn(), Turn(stop="delta")])
        async with session.ws_connect(f"{gateway.base_url}/realtime?model={REALTIME}", max_msg_size=0) as socket:
            mine = Talk(socket)
            await mine.respond()
            await mine.send("response.create")
            await mine.until("response.output_audio.delta")
            await killed(gateway)
        assert await books.open_holds() == 1
        await gateways.serve(dsn, upstream.base_url, **SETTINGS)
        await books.resolved()
        events = await books.events()
        assert [event["charged_nanos"] for event in events if event["resolution"] == "settled"] == [EXACT]
        assert [event["reason"] for event in events if event["resolution"] != "settled"] == ["swept"]
        wallet = await books.wallet()
        charged = sum(event["charged_nanos"] for event in events)
        assert (wallet["balance_nanos"], wallet["held_nanos"]) == (CREDIT_NANOS - charged, 0)
        audit = gateways.start("audit", {"FAREBOX_DATABASE_URL": dsn})
        assert await audit.ended() == 0, audit.said
    await durable.drop("kill_session")


async def test_a_response_in_the_background(durable: ScratchPostgres) -> None:
    dsn = await durable.clone("kill_background")
    wallet_id, key = await open_wallet(dsn, "10")
    async with (
        FakeResponses() as upstream,
        Gateways() as gateways,
        Books(dsn, wallet_id, CREDIT_NANOS) as books,
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session,
    ):
        gateway = await gateways.serve(dsn, upstream.base_url, **SETTINGS)
        body = orjson.dumps({"model": MODEL, "input": "Say something.", "background": True})
        headers = {"Content-Type": "application/json"}
        async with session.post(f"{gateway.base_url}/responses", data=body, headers=headers) as response:
            assert response.status == 200
            made = await response.json()
        await killed(gateway)
        upstream.finish()
        gateway = await gateways.serve(dsn, upstream.base_url, **SETTINGS)

        async def is_charged() -> bool:
            balance_nanos: int = (await books.wallet())["balance_nanos"]
            return balance_nanos == CREDIT_NANOS - RESPONSE_EXACT

        await eventually(is_charged)
        async with session.get(f"{gateway.base_url}/responses/{made['id']}") as response:
            assert (await response.json())["status"] == "completed"
        assert await books.open_holds() == 0
        assert sum(event["charged_nanos"] for event in await books.events()) == RESPONSE_EXACT
    await durable.drop("kill_background")
