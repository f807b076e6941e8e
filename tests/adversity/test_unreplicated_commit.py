"""Goal: promise 2, what was acknowledged survives. Method: cancel a commit's wait for the standby, which PostgreSQL
answers with a warning and as if all were well, and see that the lane takes no such answer."""

import asyncio

import asyncpg
import orjson

from gateway.clock import new_id
from gateway.db.lanes import Lane, Operation, Outcome
from gateway.db.migrate import migrate
from gateway.db.pool import connect
from gateway.tasks import spawn
from tests.adversity.test_ledger_races import Observer
from tests.support.cluster import Cluster
from tests.support.ledger_operations import hold, open_ledger
from tests.support.processes import eventually

LANE = {"batch_operations_max": 512, "queue_operations_max": 100, "statement_seconds": 20.0, "wait_seconds": 20.0}
WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name = 'farebox'"


async def test_an_answer_that_the_standby_may_not_have_is_no_answer() -> None:
    cluster = await asyncio.to_thread(Cluster().__enter__)
    try:
        await migrate(cluster.dsn)
        async with open_ledger(cluster.dsn) as ledger:
            wallet_id, hold_id, observer = await ledger.wallet(10), new_id(), Observer()
            lane = Lane(lambda: connect(cluster.dsn), observer, **LANE)  # type: ignore[arg-type]
            running = spawn(lane.run(), name="a lane")
            await asyncio.to_thread(cluster.standby.kill)
            asked = lane.submit(Operation(wallet_id, hold_id, orjson.dumps(hold(hold_id, 10))))
            await eventually(lambda: _cancel(ledger.connection))
            await eventually(lambda: observer.failures == ["unknown"])
            # Before it asks again, the lane looks whether any commit gets as far as the standby: none does.
            for _ in range(3):
                await eventually(lambda: _cancel(ledger.connection))
            assert observer.failures == ["unknown"]
            assert not asked.done()
            await asyncio.to_thread(cluster.standby.start)
            assert (await asked).outcome is Outcome.HELD
            assert await ledger.funds(wallet_id) == (10, 10)
            lane.close()
            await running
    finally:
        await asyncio.to_thread(cluster.__exit__, None, None, None)


async def _cancel(connection: asyncpg.Connection) -> bool:
    """Cancel whatever waits for the standby; whether there was anything."""
    waiting = await connection.fetch(WAITING)
    for row in waiting:
        await connection.fetchval("SELECT pg_cancel_backend($1)", row["pid"])
    return bool(waiting)
