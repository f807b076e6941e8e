"""The link between the supervisor and one worker: a pair of sockets, made before the worker and inherited by it.

A message is a JSON object behind its length in four bytes. Nobody else can reach the link, and it ends with either
process: the supervisor hears at once of a worker that died, a worker of a supervisor that did.
"""

import asyncio
import socket
from typing import Any

import orjson

Message = dict[str, Any]

MESSAGE_BYTES_MAX = 64 * 2**20
_LENGTH_BYTES = 4


class Link:
    """One end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> "Link":
        """The link over one end of the pair, which from here on belongs to it."""
        end.setblocking(False)
        return cls(*await asyncio.open_unix_connection(sock=end))

    def send(self, message: Message) -> None:
        """Queue `message`; to a process that has died it goes nowhere."""
        data = orjson.dumps(message)
        self._writer.write(len(data).to_bytes(_LENGTH_BYTES, "big") + data)

    async def receive(self) -> Message | None:
        """The next message; None when the other process has gone."""
        try:
            length = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES), "big")
            if length > MESSAGE_BYTES_MAX:
                return None
            message = orjson.loads(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, OSError):
            return None
        assert isinstance(message, dict), "only messages are sent here"
        return message

    async def close(self) -> None:
        """Send what is queued, and hang up."""
        try:
            self._writer.close()
            await self._writer.wait_closed()
        except OSError:
            pass  # the other end was faster
