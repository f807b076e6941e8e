"""HTTP/1.1 by hand, for what no well-behaved client would send. Requests are bytes; replies are taken apart."""

import asyncio
from dataclasses import dataclass

from multidict import CIMultiDict

from tests.support.call import WAIT_SECONDS_MAX


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply. `body` is dechunked."""

    status: int
    headers: CIMultiDict[str]
    body: bytes


class RawConnection:
    """A connection to a loopback port."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, port: int) -> "RawConnection":
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self, *, has_body: bool = True) -> Reply:
        """The next reply; to a HEAD it has no body. Raises IncompleteReadError where the connection ends before it."""
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            head = await self.reader.readuntil(b"\r\n\r\n")
            status_line, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
            status = int(status_line.split(" ")[1])
            headers = CIMultiDict([(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)])
            if not has_body or status in (100, 204, 304):
                body = b""
            elif headers.get("Transfer-Encoding") == "chunked":
                body = await self._chunked()
            elif "Content-Length" in headers:
                body = await self.reader.readexactly(int(headers["Content-Length"]))
            else:
                body = await self.reader.read()
            return Reply(status, headers, body)

    async def ended(self) -> bytes:
        """Whatever comes until the other side ends the connection. Raises TimeoutError where it does not."""
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""

    def close(self) -> None:
        self.writer.transport.abort()

    async def _chunked(self) -> bytes:
        body = b""
        while size := int((await self.reader.readline()).split(b";")[0], 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readline()
        return body


async def exchange(port: int, request: bytes) -> Reply:
    """One reply to these bytes, on a connection of its own."""
    connection = await RawConnection.to(port)
    try:
        await connection.send(request)
        return await connection.reply(has_body=not request.startswith(b"HEAD "))
    finally:
        connection.close()


def request(
    method: str,
    target: str,
    *headers: str,
    body: bytes | None = None,
    key: str | None = None,
    version: str = "HTTP/1.1",
) -> bytes:
    """The bytes of a request; with `body` also its length and type, unless `headers` (lines) say otherwise."""
    lines = [f"{method} {target} {version}", "Host: 127.0.0.1"]
    names = {line.partition(":")[0].lower() for line in headers}
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    if body is not None and not names & {"content-length", "transfer-encoding"}:
        lines.append(f"Content-Length: {len(body)}")
    if body is not None and "content-type" not in names:
        lines.append("Content-Type: application/json")
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1") + (body or b"")
