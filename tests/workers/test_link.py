"""The link carries messages of any size both ways, in order, and ends when the other process does."""

import asyncio
import socket

import pytest

from gateway.workers import link as module
from gateway.workers.link import Link, Message


async def two_ends() -> tuple[Link, Link]:
    one, other = socket.socketpair()
    return await Link.over(one), await Link.over(other)


async def test_messages_arrive_whole_and_in_order() -> None:
    one, other = await two_ends()
    messages: list[Message] = [{"n": n, "text": "ü" * n} for n in (0, 1, 70_000, 3, 2_000_000)]
    for message in messages:
        one.send(message)
    assert [await other.receive() for _ in messages] == messages
    other.send({"back": [1, None, 0.5]})
    assert await one.receive() == {"back": [1, None, 0.5]}
    await asyncio.gather(one.close(), other.close())


@pytest.mark.parametrize("last", [b"", b"\x00\x00", b'\x00\x00\x00\x09{"half":'])
async def test_it_ends_with_the_other_process(last: bytes) -> None:
    ours, theirs = socket.socketpair()
    link = await Link.over(ours)
    theirs.sendall(b"\x00\x00\x00\x02{}" + last)
    theirs.close()
    assert await link.receive() == {}
    assert await link.receive() is None
    for _ in range(3):
        link.send({"to": "nobody"})
    await link.close()


async def test_a_message_that_is_too_long_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MESSAGE_BYTES_MAX", 100)
    one, other = await two_ends()
    one.send({"long": "x" * 100})
    assert await other.receive() is None
    await asyncio.gather(one.close(), other.close())
