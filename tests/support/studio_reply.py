"""What a fake upstream answers where sound or images are asked for, on any path."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from tests.support.call import Call, Gate


@dataclass(frozen=True, slots=True)
class Media:
    """A reply in pieces, each its own read; `gate` stands before the last of them. `end`: finish, close or stall."""

    body: bytes | list[bytes]
    content_type: str = "application/json"
    status: int = 200
    gate: Gate | None = None
    end: str = "finish"
    has_length: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)

    async def reply(self, call: Call) -> None:
        pieces = [self.body] if isinstance(self.body, bytes) else self.body
        length = sum(map(len, pieces)) if self.has_length else None
        await call.start(self.content_type, status=self.status, headers=self.headers, length_bytes=length)
        for number, piece in enumerate(pieces, 1):
            if self.gate is not None and number == len(pieces):
                await self.gate.passed()
            await call.send(piece, events=1, last=number == len(pieces) and self.end == "finish")
            await asyncio.sleep(0.002)
        if self.end == "close":
            await call.close()
        elif self.end == "stall":
            await call.stall()
        await call.finish()


def json_of(**members: object) -> Media:
    """A JSON reply."""
    return Media(orjson.dumps(members))


def events_of(*events: Mapping[str, object], named: bool = False, **how: Any) -> Media:
    """A stream of events, each its own read."""
    pieces = [
        (b"event: %b\n" % str(event.get("type")).encode() if named else b"") + b"data: %b\n\n" % orjson.dumps(event)
        for event in events
    ]
    return Media(pieces, "text/event-stream", **how)
