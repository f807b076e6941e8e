"""A reply whose head and body are known go to the socket in one write.

aiohttp's own Response takes some fifty calls for that (counted: 650 of the 5,050 bytecodes that it spends on a relayed
call), so a metered JSON reply is written here. Whatever is not plain HTTP/1.1 with a body is left to aiohttp.
"""

import asyncio
from collections.abc import Sequence
from email.utils import formatdate
from http import HTTPStatus

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from multidict import CIMultiDict

from gateway.clock import unix_seconds

_JOINED_BYTES_MAX = 65_536  # copying a longer body costs more than a second buffer
_REASONS = {status.value: status.phrase for status in HTTPStatus}
READ_SECONDS_MAX = 60.0
_date = (0, "")


def is_plain(request: web.BaseRequest, status: int) -> bool:
    """Whether a reply to `request` has a body and needs no special framing (RFC 9110, section 6.4.1)."""
    return request.version == (1, 1) and request.method != "HEAD" and status >= 200 and status not in (204, 205, 304)


class WholeReply(web.StreamResponse):
    """Already sent when it is made; to the server it is a response like any other."""

    def __init__(
        self,
        request: web.BaseRequest,
        status: int,
        headers: CIMultiDict[str],
        body: bytes,
        pieces: Sequence[bytes] = (),
    ) -> None:
        """`pieces` go before `body`."""
        super().__init__(status=status)
        self._stays_open = request.keep_alive
        size = sum(map(len, pieces)) + len(body) if pieces else len(body)
        sent = head_bytes(status, headers, f"Content-Length: {size}", stays_open=self._stays_open)
        self._protocol = request.protocol
        transport = request.transport
        if transport is None or transport.is_closing():
            return  # the client left; its reply is settled, and nothing more is owed
        if size <= _JOINED_BYTES_MAX:
            transport.write(b"".join((sent, *pieces, body)) if pieces else sent + body)
        else:
            transport.writelines((sent, *pieces, body))

    @property
    def keep_alive(self) -> bool | None:
        """Whether the connection may be used again."""
        return self._stays_open

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:  # noqa: ARG002 - the base names it
        """Nothing is left to be prepared."""
        return None

    async def write_eof(self, data: bytes = b"") -> None:  # noqa: ARG002 - the base names it
        """Nothing is left to be written; a client that pipelines calls and reads nothing is waited for, within limits.

        Raises ConnectionError for one that left, or that took nothing for too long.
        """
        if self._protocol.writing_paused:
            await taken(self._protocol)


async def taken(protocol: web.RequestHandler) -> None:
    """Wait, within limits, until the client takes what was written. Raises ConnectionError if it does not."""
    try:
        async with asyncio.timeout(READ_SECONDS_MAX):
            await protocol._drain_helper()  # noqa: SLF001 - the wait behind every write of aiohttp's own
    except TimeoutError:
        if protocol.transport is not None:
            protocol.transport.abort()
        raise ConnectionError("the client does not read its reply") from None


def head_bytes(status: int, headers: CIMultiDict[str], framing: str, *, stays_open: bool) -> bytes:
    """The head of a reply as it goes out; `framing` is the header that says how its body ends."""
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, '')}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines.append(f"{framing}\r\nDate: {_http_date()}")
    if not stays_open:
        lines.append("Connection: close")
    head = "\r\n".join(lines)
    # A line break inside a value would let an upstream write headers of its own.
    if head.count("\n") != len(lines):
        raise ValueError("a header value has a line break")
    return (head + "\r\n\r\n").encode("utf-8", "surrogateescape")


def _http_date() -> str:
    """Now, as RFC 9110 writes it; made once a second."""
    global _date  # noqa: PLW0603 - a cache of one entry
    second = int(unix_seconds())
    if _date[0] != second:
        _date = (second, formatdate(second, usegmt=True))
    return _date[1]
