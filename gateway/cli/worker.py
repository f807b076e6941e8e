"""A worker of `farebox serve --workers N`: a gateway on sockets that its supervisor holds. Not for people to start.

python -m gateway.cli.worker DESCRIPTOR

The descriptor is this end of the link. Settings, the database and the sockets come over it; when it ends, the
supervisor has died, and the worker drains: nobody would restart it, stop it, or show its metrics.
"""

import asyncio
import logging
import signal
import socket
import sys

from gateway.app import App, running
from gateway.cli.context import EXIT_USAGE, away, fail
from gateway.cli.serve import run_loop, spare_the_collector
from gateway.db.journal import JournalUnwritable
from gateway.db.pool import LedgerAway
from gateway.logs import configure
from gateway.request.vault import SecretUnusable
from gateway.settings import InvalidSettings, check
from gateway.tasks import spawn, stop
from gateway.web.checks import checks
from gateway.workers.link import Link, Message
from gateway.workers.totals import snapshot

_log = logging.getLogger("farebox.workers")
_IDLE_POLL_SECONDS = 0.25


def main() -> None:
    """The entry point."""
    # The supervisor blocks these while it starts a worker; from here on it alone says when to stop.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        run_loop(_work(socket.socket(fileno=int(sys.argv[1]))))
    except (JournalUnwritable, SecretUnusable, InvalidSettings) as error:
        fail(str(error), EXIT_USAGE)
    except LedgerAway as error:
        code, line = away(error)
        fail(line, code)


async def _work(end: socket.socket) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    link = await Link.over(end)
    orders = await link.receive()
    if orders is None:
        return
    settings = check(orders["settings"])
    configure(settings.log_level, worker=orders["worker"])
    sockets = [socket.socket(fileno=descriptor) for descriptor in orders["sockets"]]
    async with running(settings, orders["dsn"], upstreams=settings.upstream, sockets=sockets) as app:
        spare_the_collector()
        worker = _Worker(app, link, stopped)
        obeying = spawn(worker.obey(), name="obey")
        link.send({"ready": True})
        _log.info("the worker serves")
        await stopped.wait()
        worker.is_stopping = True
    await stop(obeying)
    link.send({"snapshot": snapshot(app.metrics.registry)})
    await link.close()


class _Worker:
    """Does what the supervisor says."""

    def __init__(self, app: App, link: Link, stopped: asyncio.Event) -> None:
        self._app = app
        self._link = link
        self._stopped = stopped
        self.is_stopping = False

    async def obey(self) -> None:
        """Until the supervisor is gone."""
        while (message := await self._link.receive()) is not None:
            if "ask" in message:
                spawn(self._answer(message), name="answer")
            elif "lead" in message:
                await (self._app.lead.take() if message["lead"] and not self.is_stopping else self._app.lead.leave())
            elif "retire" in message:
                self._app.api.retire()
                spawn(self._retire(), name="retire")
            elif "hurry" in message:
                self._app.watch.stop_all()
        # Whoever starts a new supervisor needs the port.
        self._app.api.close_door()
        self._stopped.set()

    async def _answer(self, message: Message) -> None:
        if message["ask"] == "snapshot":
            self._app.refresh()
            self._link.send({"number": message["number"], "snapshot": snapshot(self._app.metrics.registry)})
            return
        if self.is_stopping:
            # Its database may be closed by now.
            found = [("not_stopping", False, "stopping", True)]
        else:
            found = [(c.name, c.passes, c.detail, c.gates_ready) for c in await checks(self._app)]
        self._link.send({"number": message["number"], "answer": found})

    async def _retire(self) -> None:
        """End when the last client has gone: idle ones are let go after keep_alive_seconds, others with their reply."""
        while self._app.is_in_use:  # noqa: ASYNC110 - once in a process
            await asyncio.sleep(_IDLE_POLL_SECONDS)
        self._stopped.set()


if __name__ == "__main__":
    main()
