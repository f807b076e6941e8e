"""One loop for every background service: wait, run once, say how it went."""

import asyncio
import logging
from typing import Protocol

from gateway.clock import unix_seconds
from gateway.db.pool import LedgerAway
from gateway.metrics import Metrics

_log = logging.getLogger("farebox.upkeep")


class Service(Protocol):
    """Work that is done again and again. `run_once` is bounded, idempotent, and safe beside other processes."""

    name: str
    interval_seconds: float

    async def run_once(self) -> object:
        """Do what there is to do now; the result is for tests and logs. Raises LedgerAway."""


async def run_forever(service: Service, metrics: Metrics) -> None:
    """Run `service` until cancelled. A failure is logged and counted, and the next round tries again."""
    while True:
        try:
            result = await service.run_once()
            metrics.upkeep_seconds.labels(service.name).set(unix_seconds())
            if result:
                _log.info("upkeep", extra={"fields": {"service": service.name, "result": repr(result)}})
        except LedgerAway:
            _log.warning("the ledger is away", extra={"fields": {"service": service.name}})
        except Exception as error:
            metrics.crashes.inc()
            _log.exception("upkeep failed", exc_info=error, extra={"fields": {"service": service.name}})
        await asyncio.sleep(service.interval_seconds)
