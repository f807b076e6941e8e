"""A server that answers each request with the next of its pieces, byte for byte, and keeps what it was sent."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from yarl import URL

from gateway.request.upstream import Target
from gateway.request.upstream_reply import Reply

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
BODY = b'{"model":"m"}'


class Script:
    """A server that answers each request with the next of its pieces, and keeps what it was sent."""

    def __init__(self, *replies: bytes) -> None:
        self.replies = list(replies)
        self.requests: list[bytes] = []
        self.connections = 0
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
                self.requests.append(head + await reader.readexactly(length))
                reply = self.replies.pop(0) if self.replies else OK
                writer.write(reply)
                if b"Connection: close" in reply or not reply:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()


@asynccontextmanager
async def scripted(*replies: bytes) -> AsyncIterator[tuple[Script, aiohttp.TCPConnector, Target]]:
    script = Script(*replies)
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0, limit=2**20)
    port = server.sockets[0].getsockname()[1]
    connector = aiohttp.TCPConnector(limit=0)
    target = Target(URL(f"http://127.0.0.1:{port}/v1/chat"), authorization=None, connect_seconds=2.0)
    try:
        yield script, connector, target
    finally:
        await connector.close()
        for writer in script.writers:
            writer.transport.abort()
        server.close()
        await asyncio.sleep(0.01)  # both sides of every connection are closed within the test


async def whole(reply: Reply) -> bytes:
    body = b""
    while data := await reply.read():
        body += data
    reply.release()
    return body
