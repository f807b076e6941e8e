"""A stream on its way: every read goes through its reader to the client, and no further than its limit."""

from collections.abc import Awaitable, Callable
from functools import partial

from gateway import points
from gateway.endpoints.endpoint import StreamReader
from gateway.request.limit import Limit
from gateway.request.watch import Call


class Stream:
    """Passes on what is read; `count_output` estimates the output tokens of that. `note` is called before."""

    __slots__ = ("_call", "_is_first", "_kept_bytes", "_limit", "_note", "_reader", "count_output")

    def __init__(
        self, call: Call, reader: StreamReader, limit: Limit, note: Callable[[], Awaitable[None]] | None
    ) -> None:
        self._call = call
        self._reader = reader
        self._limit = limit
        self._note = note
        self._is_first = True
        self._kept_bytes = 0  # what the reader was fed and has not given out
        self.count_output = reader.output_tokens_estimate

    async def take(self, data: bytes) -> bool:
        """Pass on what a read brought; whether all of it could be."""
        if not self._limit.is_near(len(data)):
            out = self._reader.feed(data)
            if out is not data:
                self._kept_bytes += len(data) - len(out)
            await self._pass_on(out)
            return True
        return await self._take_parts(data)

    async def _take_parts(self, data: bytes) -> bool:
        """A read that may go past the limit, and may bring the end with it: each part is looked at before it is passed
        on. The one that goes past is not passed on, and not charged."""
        reader, limit = self._reader, self._limit
        ready = bytearray()
        start = 0
        while start < len(data):
            passed_on = reader.output_tokens_estimate()
            part = data[start : limit.part_end(data, start)]
            start += len(part)
            out = reader.feed(part)
            self._kept_bytes += len(part) - len(out)
            if limit.is_reached(reader, len(part), self._kept_bytes) and not reader.ended:
                await self._pass_on(bytes(ready))
                ready.clear()
                if not await limit.is_granted():
                    self.count_output = partial(int, passed_on)
                    return False
            ready += out
        await self._pass_on(bytes(ready))
        return True

    async def _pass_on(self, data: bytes) -> None:
        if self._note is not None:
            await self._note()
        if not data:
            return
        await self._call.pass_on(data)
        if points.armed and not self._is_first:
            points.reach("relay.mid_stream")
        self._is_first = False
