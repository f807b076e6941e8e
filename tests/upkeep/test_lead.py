"""Who leads runs the services of the database, once each; who does not says nothing of them."""

import asyncio

from gateway import tasks
from gateway.db.pool import LedgerAway
from gateway.metrics import Metrics
from gateway.upkeep.lead import Lead
from tests.support.shop import until


class Counting:
    """A service that counts its rounds."""

    interval_seconds = 0.01

    def __init__(self, name: str, *, fails: bool = False) -> None:
        self.name = name
        self.rounds = 0
        self._fails = fails

    async def run_once(self) -> None:
        self.rounds += 1
        if self._fails:
            raise LedgerAway("always")


async def test_services_run_while_the_process_leads() -> None:
    before, metrics = set(tasks._running), Metrics()
    sound, failing = Counting("sound"), Counting("failing", fails=True)
    lead = Lead((sound, failing), metrics)

    def says(service: Counting) -> bool:
        return (
            metrics.registry.get_sample_value("farebox_upkeep_last_success_seconds", {"service": service.name})
            is not None
        )

    assert (lead.is_taken, sound.rounds) == (False, 0)
    for _ in range(2):
        await lead.take()
        await lead.take()
        assert lead.is_taken
        assert len(tasks._running - before) == 2
        await until(lambda: says(sound) and failing.rounds > 0)
        await lead.leave()
        await lead.leave()
        rounds = sound.rounds, failing.rounds
        await asyncio.sleep(0.05)
        assert (sound.rounds, failing.rounds) == rounds
        assert (lead.is_taken, says(sound), says(failing)) == (False, False, False)
        assert tasks._running <= before
