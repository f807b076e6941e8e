"""`farebox serve --workers N` as processes, before one upstream, with a wallet for each test."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import aiohttp

from tests.adversity.witness import Books, Sighting, chat, chats, many_connections
from tests.support.behaviours import Completion
from tests.support.call import Served
from tests.support.postgres import ScratchPostgres
from tests.support.processes import GatewayProcess, Gateways, eventually, open_wallet
from tests.support.upstream import FakeUpstream

CREDIT_NANOS = 10**9
CALLS = "farebox_calls_total"
CHARGED = "farebox_charged_nanos_total"
# Clients that wait for their replies leave the machine some time for the gateway.
PACED = Completion(output_tokens=20, pause_seconds=0.01)


@dataclass(slots=True)
class Crew:
    """A supervisor with its workers before one upstream, and the wallet of one test."""

    dsn: str
    gateways: Gateways
    gateway: GatewayProcess
    upstream: FakeUpstream
    config: Path
    count: int
    key: str = ""
    books: Books = field(init=False)
    seen: list[Sighting] = field(default_factory=list)

    async def chats(self, session: aiohttp.ClientSession, count: int, **members: object) -> list[Sighting]:
        seen = await chats(session, [self.gateway.base_url], self.key, count, **members)
        self.seen += seen
        return seen

    async def streams(self, session: aiohttp.ClientSession, count: int) -> "list[asyncio.Task[Sighting]]":
        """Streams of which something has been relayed."""
        calls = [asyncio.create_task(chat(session, self.gateway.base_url, self.key, stream=True)) for _ in range(count)]
        await self.upstream.received(len(self.upstream.log) + count)
        for served in self.upstream.log[-count:]:
            await served.sent_events(5)
        return calls

    @asynccontextmanager
    async def load(self, clients: int) -> AsyncIterator[list[Sighting]]:
        """Clients that call again and again while the context lasts, each on a connection that it keeps."""
        done = asyncio.Event()
        seen: list[Sighting] = []

        async def client(number: int) -> None:
            async with many_connections() as session:
                while not done.is_set():
                    seen.append(await chat(session, self.gateway.base_url, self.key, stream=bool(number % 2)))

        running = [asyncio.create_task(client(number)) for number in range(clients)]
        try:
            yield seen
        finally:
            done.set()
            await asyncio.gather(*running)
            self.seen += seen

    async def state(self, state: str) -> float:
        _, text = await self.gateway.get("/metrics")
        found = re.search(rf'^farebox_workers{{state="{state}"}} (\S+)$', text, re.MULTILINE)
        assert found
        return float(found[1])

    async def all_serve(self) -> None:
        """Wait until every worker does. Raises TimeoutError."""

        async def all_are_ready() -> bool:
            if self.count == 1:
                return (await self.gateway.get("/readyz"))[0] == 200
            return await self.state("ready") == self.count

        await eventually(all_are_ready)

    async def check(self, *logs: list[Served]) -> None:
        await self.books.resolved()
        await self.books.check(chain(*logs) if logs else self.upstream.log, self.seen)


def configuration(upstream: FakeUpstream, *lines: str) -> str:
    section = f'[[upstream]]\nname = "up0"\nbase_url = "{upstream.base_url}"\napi_key = "sk-test"\n'
    return "\n".join([*lines, section])


@asynccontextmanager
async def crew_of(durable: ScratchPostgres, name: str, *, count: int = 2, **settings: str) -> AsyncIterator[Crew]:
    dsn = await durable.clone(name)
    async with FakeUpstream() as upstream, Gateways() as gateways:
        quick = {"WORKERS": str(count), "STOP_SECONDS": "2", "HOLD_VALID_SECONDS": "2", "SWEEP_SECONDS": "0.25"}
        environment = {f"FAREBOX_{name}": value for name, value in (quick | settings).items()}
        config = gateways.directory / "farebox.toml"
        environment |= {"FAREBOX_CONFIG": str(config), "FAREBOX_DATABASE_URL": dsn}
        config.write_text(configuration(upstream))
        crew = Crew(dsn, gateways, gateways.start("serve", environment), upstream, config, count)
        await crew.gateway.announced()
        await crew.all_serve()
        yield crew
    await durable.drop(name)


@asynccontextmanager
async def with_a_wallet(crew: Crew) -> AsyncIterator[Crew]:
    """The crew, with a wallet of 1 and nothing seen yet."""
    wallet_id, crew.key = await open_wallet(crew.dsn, "1")
    crew.seen.clear()
    crew.upstream.log.clear()
    crew.upstream.default = PACED
    async with Books(crew.dsn, wallet_id, CREDIT_NANOS) as crew.books:
        yield crew


def alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
