"""A door between one gateway and its database, which knows the protocol well enough to fail at the worst moment.

What a client sends is cut into units that the server answers (PostgreSQL's protocol, version 3: a type, a length, a
body). A strike waits for the next unit with operations of a lane, and does one thing to it.
"""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Callable
from enum import StrEnum
from functools import partial

from gateway.tasks import spawn, stop

READ_BYTES_MAX = 2**16
FAR_SECONDS_MAX = 2.0
# Messages after which a client waits: Sync, Flush, Query, a password, Terminate.
ANSWERED = b"SHQpX"
OPERATIONS = b'"op":'
READY = b"Z\x00\x00\x00\x05I"


class Strike(StrEnum):
    """What happens to a statement of a lane."""

    RESET_BEFORE_ANSWER = "reset_before_answer"  # it was sent; whether it took effect is unknown
    RESET_AT_ANSWER = "reset_at_answer"  # it was committed, and nobody hears of it
    SERIALIZATION = "40001"  # it is refused, and nothing was done
    DEADLOCK = "40P01"  # the same
    COMPLETION_UNKNOWN = "40003"  # it was committed, and said to be unknown


class Door:
    """Forwards to the ports that `targets` say, each now. `ports` are where the gateway connects, one for each.

    `cut()` resets all and lets nobody in. `deaf` holds back what the gateway asks, `mute` what the database answers;
    `delay_seconds` is added to each piece either way. `restore()` undoes all of it. `struck` counts by strike.
    """

    def __init__(self, *targets: Callable[[], int]) -> None:
        self.delay_seconds = 0.0
        self.strikes: deque[Strike] = deque()
        self.struck: Counter[str] = Counter()
        self.ports: list[int] = []
        self._targets = targets
        self._hears, self._speaks = asyncio.Event(), asyncio.Event()
        self._is_cut = False
        self._passing: set[_Passing] = set()
        self._servers: list[asyncio.Server] = []
        self.restore()

    def cut(self) -> None:
        self._is_cut = True
        for passing in list(self._passing):
            passing.reset()

    def deafen(self) -> None:
        self._hears.clear()

    def mute(self) -> None:
        self._speaks.clear()

    def restore(self) -> None:
        self._is_cut = False
        self.delay_seconds = 0.0
        self.strikes.clear()
        self._hears.set()
        self._speaks.set()

    async def open(self) -> None:
        for target in self._targets:
            server = await asyncio.start_server(partial(self._enter, target), "127.0.0.1", 0)
            self._servers.append(server)
            self.ports.append(server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        self.restore()
        self.cut()

    async def hear(self) -> None:
        await asyncio.sleep(self.delay_seconds)
        await self._hears.wait()

    async def speak(self) -> None:
        await asyncio.sleep(self.delay_seconds)
        await self._speaks.wait()

    async def _enter(
        self, target: Callable[[], int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        try:
            # A frozen server's backlog takes connections, until it is full.
            async with asyncio.timeout(FAR_SECONDS_MAX):
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target())
        except (OSError, TimeoutError):
            writer.transport.abort()
            return
        passing = _Passing(self, reader, writer, far_reader, far_writer)
        self._passing.add(passing)
        try:
            await passing.run()
        finally:
            self._passing.discard(passing)


class _Passing:
    """One connection through a door."""

    def __init__(
        self,
        door: Door,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        far_reader: asyncio.StreamReader,
        far_writer: asyncio.StreamWriter,
    ) -> None:
        self.door = door
        self.reader, self.writer, self.far_reader, self.far_writer = reader, writer, far_reader, far_writer
        self.struck_by: Strike | None = None
        self.swallowed = b""

    async def run(self) -> None:
        tasks = [spawn(self._ask(), name="asking"), spawn(self._answer(), name="answering")]
        try:
            # Whichever side ends first ends the other.
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.reset()
            for task in tasks:
                await stop(task)

    def reset(self) -> None:
        self.writer.transport.abort()
        # Not aborted: what was sent is to be read.
        with contextlib.suppress(OSError, RuntimeError):
            self.far_writer.close()

    async def _ask(self) -> None:
        units = Units()
        with contextlib.suppress(OSError):
            while data := await self.reader.read(READ_BYTES_MAX):
                for unit in units.feed(data):
                    await self.door.hear()
                    strike = self.door.strikes.popleft() if self.door.strikes and OPERATIONS in unit else None
                    if strike is None:
                        self.far_writer.write(unit)
                        await self.far_writer.drain()
                    elif not await self._strike(strike, unit):
                        return

    async def _strike(self, strike: Strike, unit: bytes) -> bool:
        """Whether the connection goes on."""
        self.door.struck[strike] += 1
        if strike in (Strike.SERIALIZATION, Strike.DEADLOCK):
            self.writer.write(error(strike) + READY)
            return True
        self.struck_by = strike
        self.far_writer.write(unit)
        await self.far_writer.drain()
        return strike is not Strike.RESET_BEFORE_ANSWER

    async def _answer(self) -> None:
        with contextlib.suppress(OSError):
            while data := await self.far_reader.read(READ_BYTES_MAX):
                await self.door.speak()
                if self.struck_by is Strike.RESET_AT_ANSWER:
                    return
                if self.struck_by is Strike.COMPLETION_UNKNOWN:
                    self.swallowed += data
                    if not self.swallowed.endswith(READY):
                        continue
                    data, self.struck_by = error(Strike.COMPLETION_UNKNOWN) + READY, None
                    self.swallowed = b""
                self.writer.write(data)
                await self.writer.drain()


class Units:
    """Cuts a client's bytes where the server must answer."""

    def __init__(self) -> None:
        self._left = b""
        self._unit = b""
        self._is_open = False  # the first message, of the version and the user, has no type

    def feed(self, data: bytes) -> list[bytes]:
        """The units that are whole now."""
        self._left += data
        units: list[bytes] = []
        while True:
            skip = 1 if self._is_open else 0
            if len(self._left) < skip + 4:
                return units
            end = skip + int.from_bytes(self._left[skip : skip + 4], "big")
            if len(self._left) < end:
                return units
            message, self._left = self._left[:end], self._left[end:]
            self._unit += message
            if not self._is_open or message[0] in ANSWERED:
                units.append(self._unit)
                self._unit = b""
            self._is_open = True


def error(state: str) -> bytes:
    """An ErrorResponse with this SQLSTATE."""
    fields = b"".join(f"{kind}{text}\0".encode() for kind, text in (("S", "ERROR"), ("V", "ERROR"), ("C", state)))
    body = fields + b"Mmade by the campaign\0\0"
    return b"E" + (len(body) + 4).to_bytes(4, "big") + body
