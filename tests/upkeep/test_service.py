"""The loop of every service: it goes on, whatever a round does, and says how it went."""

import asyncio
import logging
import time
from collections.abc import Callable

import pytest

from gateway.db.pool import LedgerAway
from gateway.metrics import Metrics
from gateway.tasks import spawn, stop
from gateway.upkeep.service import run_forever
from tests.support.shop import until


def crash() -> object:
    raise RuntimeError("on purpose")


def away() -> object:
    raise LedgerAway("away")


class Scripted:
    """A service that does the next of its steps in each round."""

    name = "scripted"
    interval_seconds = 0.001

    def __init__(self, *steps: Callable[[], object]) -> None:
        self.steps = list(steps)

    async def run_once(self) -> object:
        if not self.steps:
            await asyncio.Event().wait()
        return self.steps.pop(0)()


async def rounds(caplog: pytest.LogCaptureFixture, *steps: Callable[[], object]) -> Metrics:
    metrics, service = Metrics(), Scripted(*steps)
    with caplog.at_level(logging.INFO, "farebox.upkeep"):
        task = spawn(run_forever(service, metrics), name="service")
        await until(lambda: not service.steps)
        await asyncio.sleep(0.01)
        assert not task.done()
        await stop(task)
    return metrics


async def test_a_round_that_fails_is_counted_and_the_next_one_runs(caplog: pytest.LogCaptureFixture) -> None:
    metrics = await rounds(caplog, crash, away, lambda: None, lambda: 7)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("ERROR", "upkeep failed"),
        ("WARNING", "the ledger is away"),
        ("INFO", "upkeep"),
    ]
    assert caplog.records[2].__dict__["fields"] == {"service": "scripted", "result": "7"}
    assert metrics.registry.get_sample_value("farebox_crashes_total") == 1
    succeeded = metrics.registry.get_sample_value("farebox_upkeep_last_success_seconds", {"service": "scripted"})
    assert succeeded is not None
    assert abs(time.time() - succeeded) < 10


@pytest.mark.parametrize("step", [crash, away])
async def test_only_a_success_counts_as_one(caplog: pytest.LogCaptureFixture, step: Callable[[], object]) -> None:
    metrics = await rounds(caplog, step)
    labels = {"service": "scripted"}
    assert metrics.registry.get_sample_value("farebox_upkeep_last_success_seconds", labels) is None
