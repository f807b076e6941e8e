"""A door between a gateway and its database that a test can shut: the ledger is away, or takes its time."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, quote, urlsplit, urlunsplit

from gateway.tasks import spawn, stop

_READ_BYTES_MAX = 2**16


class LedgerProxy:
    """Forwards connections to the database of a DSN. `dsn` goes through it.

    `pause` holds back whatever either side sends, `mute` only what the database answers; `cut` resets every connection
    and refuses new ones; `restore` undoes all of it. `connections` is how many are open through it now.
    """

    def __init__(self, dsn: str) -> None:
        self._parts = urlsplit(dsn)
        self._asking = asyncio.Event()
        self._answering = asyncio.Event()
        self._asking.set()
        self._answering.set()
        self._is_cut = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.connections = 0

    @property
    def dsn(self) -> str:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        account = f"{quote(self._parts.username or '')}:{quote(self._parts.password or '')}"
        place = f"{account}@127.0.0.1:{port}"
        return urlunsplit(("postgresql", place, self._parts.path, "sslmode=disable", ""))

    def pause(self) -> None:
        self._asking.clear()
        self._answering.clear()

    def mute(self) -> None:
        self._answering.clear()

    def cut(self) -> None:
        self._is_cut = True
        for writer in list(self._writers):
            writer.transport.abort()

    def restore(self) -> None:
        self._is_cut = False
        self._asking.set()
        self._answering.set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self.restore()
        self.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        far_reader, far_writer = await self._connect()
        self._writers |= {writer, far_writer}
        self.connections += 1
        pumps = [self._pump(reader, far_writer, self._asking), self._pump(far_reader, writer, self._answering)]
        tasks = [spawn(pump, name="ledger proxy") for pump in pumps]
        try:
            # Whichever side ends first ends the other.
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.connections -= 1
            for end in (writer, far_writer):
                self._writers.discard(end)
                end.transport.abort()
            for task in tasks:
                await stop(task)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        port = self._parts.port or 5432
        if directory := parse_qs(self._parts.query).get("host"):
            return await asyncio.open_unix_connection(f"{directory[0]}/.s.PGSQL.{port}")
        return await asyncio.open_connection(self._parts.hostname, port)

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, running: asyncio.Event) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_READ_BYTES_MAX):
                await running.wait()
                writer.write(data)
                await writer.drain()


@asynccontextmanager
async def ledger_proxy(dsn: str) -> AsyncIterator[LedgerProxy]:
    """A proxy that is open while the context lasts."""
    proxy = LedgerProxy(dsn)
    await proxy.open()
    try:
        yield proxy
    finally:
        await proxy.close()
