"""The caller's side of a metered call: reads the body within limits, and writes what the request flow hands over."""

import asyncio
from collections.abc import Mapping

from aiohttp import StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict

from gateway import points
from gateway.clock import monotonic_seconds
from gateway.core.multipart import Form, FormScanner, MalformedForm, boundary_of
from gateway.endpoints.endpoint import Endpoint
from gateway.errors import BodyTooLarge, MalformedRequest, Overloaded, RequestTimedOut, UnsupportedMediaType
from gateway.request.handle import Finish, Gateway, handle
from gateway.web.spool import Spool, Spools
from gateway.web.streamed_reply import StreamedReply
from gateway.web.whole_reply import READ_SECONDS_MAX, WholeReply, is_plain

# Of bodies that are on their way, over all callers.
_GATHERED_BYTES_MAX = 2**29
_gathered_bytes = 0


class Exchange:
    """One request and its reply: what the flow knows as Inbound and as Client."""

    __slots__ = (
        "_body_bytes_max",
        "_body_seconds",
        "_form_only",
        "_request",
        "_response",
        "_spool",
        "_spools",
        "began_at_seconds",
        "headers",
    )

    def __init__(
        self,
        request: web.BaseRequest,
        *,
        body_bytes_max: int,
        body_seconds: float,
        spools: Spools | None = None,
        form_only: bool = False,
    ) -> None:
        """`spools` takes what comes as a form; without it none is taken. `form_only`: nothing else is."""
        self._request = request
        self._spools = spools
        self._spool: Spool | None = None
        self._form_only = form_only
        self._response: web.StreamResponse | None = None
        self._body_bytes_max = body_bytes_max
        self._body_seconds = body_seconds
        self.began_at_seconds = monotonic_seconds()
        self.headers: Mapping[str, str] = request.headers

    @property
    def peer(self) -> str:
        return self._request.remote or ""

    async def read_body(self) -> bytes | Form:
        """Raises UnsupportedMediaType, BodyTooLarge, RequestTimedOut, MalformedRequest, Overloaded."""
        request = self._request
        content_type = self.headers.get("Content-Type", "")
        boundary: bytes | None = None
        bytes_max = self._body_bytes_max
        if content_type != "application/json" or self._form_only:
            boundary = self._check_content_type(content_type)
            if boundary is not None and self._spools is not None:
                bytes_max = self._spools.form_bytes_max
        if self.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnsupportedMediaType("Send the body as it is: a Content-Encoding is not taken.")
        length = request.content_length
        if length is not None and length > bytes_max:
            raise BodyTooLarge(f"The request body is larger than {bytes_max} bytes.")
        try:
            if boundary is None and request.content.is_eof():
                # All of it came with the head: nothing to wait for.
                body = request.content.read_nowait()
                if len(body) > self._body_bytes_max:
                    raise BodyTooLarge(f"The request body is larger than {self._body_bytes_max} bytes.")
                return body
            if self.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
                request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            async with asyncio.timeout(self._body_seconds):
                if boundary is not None:
                    return await self._gather_form(request.content, boundary)
                return await self._gather(request.content)
        except TimeoutError:
            raise RequestTimedOut from None
        except (web.RequestPayloadError, HttpProcessingError, ConnectionError):
            raise MalformedRequest("The request body broke off or is wrongly encoded.") from None

    def _check_content_type(self, content_type: str) -> bytes | None:
        """The boundary of a form, None for JSON. Raises UnsupportedMediaType, MalformedRequest."""
        try:
            boundary = None if self._spools is None else boundary_of(content_type)
        except MalformedForm as error:
            raise _malformed_form(error) from None
        if boundary is None and self._form_only:
            raise UnsupportedMediaType("Send the body as `Content-Type: multipart/form-data`.")
        if boundary is None:
            _check_content_type(content_type)
        return boundary

    async def _gather_form(self, content: StreamReader, boundary: bytes) -> Form:
        """A form, scanned and put aside as it comes."""
        assert self._spools is not None, "a boundary was looked for"
        spool = self._spool = Spool(self._spools)
        scanner = FormScanner(boundary)
        try:
            while not content.at_eof():
                data, _ = await content.readchunk()  # as it was read: several at once would be joined
                scanner.feed(data)
                spool.append(data)
            return Form(scanner.finish(), spool.size_bytes, spool.read)
        except MalformedForm as error:
            raise _malformed_form(error) from None

    def close(self) -> None:
        """Nobody reads the body any more."""
        if self._spool is not None:
            self._spool.close()

    async def _gather(self, content: StreamReader) -> bytes:
        """A body that comes piece by piece. What all callers have sent of theirs so far is bounded: any key can send
        half a body, on as many connections as it likes, and nothing is held for it yet."""
        global _gathered_bytes  # noqa: PLW0603 - one event loop, one count
        pieces: list[bytes] = []
        size = 0
        try:
            while data := await content.readany():
                size += len(data)
                _gathered_bytes += len(data)
                if size > self._body_bytes_max:
                    raise BodyTooLarge(f"The request body is larger than {self._body_bytes_max} bytes.")
                if _gathered_bytes > max(_GATHERED_BYTES_MAX, 2 * self._body_bytes_max):
                    raise Overloaded
                pieces.append(data)
            return b"".join(pieces)
        finally:
            _gathered_bytes -= size

    def gone(self) -> bool:
        """Whether the client has closed its connection."""
        transport = self._request.transport
        return transport is None or transport.is_closing()

    def abort(self) -> None:
        """Drop the connection: the reply cannot be ended well, or nobody reads it."""
        if self._request.transport is not None:
            self._request.transport.abort()

    def break_off(self) -> None:
        """After a failure: a reply that has begun must not look whole, nor leave its reader waiting."""
        if self._response is not None:
            self.abort()

    async def start(self, status: int, headers: CIMultiDict[str]) -> None:
        """Send the head of a stream."""
        if is_plain(self._request, status):
            self._response = StreamedReply(self._request, status, headers)
            return
        self._response = web.StreamResponse(status=status, headers=headers)
        await self._response.prepare(self._request)

    async def write(self, data: bytes) -> None:
        """Send a piece of a stream."""
        assert self._response is not None, "write follows start"
        await self._response.write(data)

    def missed(self, data: bytes) -> None:
        """What it would have been sent, had it stayed."""

    async def finish(self, finish: Finish) -> web.StreamResponse:
        """Send what comes last."""
        if not finish.started:
            if is_plain(self._request, finish.status):
                return WholeReply(self._request, finish.status, finish.headers, finish.body, finish.pieces)
            body = b"".join((*finish.pieces, finish.body))
            return web.Response(status=finish.status, headers=finish.headers, body=body)
        response = self._response
        if response is None:
            # The client left before the head of the stream could be sent.
            return web.Response(status=finish.status)
        if finish.is_broken:
            self.abort()
            return response
        try:
            if isinstance(response, StreamedReply):
                await response.write_eof(finish.body)  # which bounds its wait, where there is one
            else:
                async with asyncio.timeout(READ_SECONDS_MAX):
                    await response.write_eof(finish.body)
        except ConnectionError:
            pass  # it left after its reply was settled; nothing more is owed
        except TimeoutError:
            self.abort()
        return response


def _malformed_form(error: MalformedForm) -> MalformedRequest:
    return MalformedRequest(f"The form cannot be read: {error}.", code="invalid_form")


def _check_content_type(content_type: str) -> None:
    """Raises UnsupportedMediaType. In another charset, such as UTF-7, the upstream would read another body."""
    kind, _, parameters = content_type.lower().replace(" ", "").partition(";")
    if kind != "application/json":
        raise UnsupportedMediaType
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name == "charset" and value.strip('"') not in ("utf-8", "utf8", "us-ascii"):
            raise UnsupportedMediaType("Send the body in UTF-8.")


async def serve(
    gateway: Gateway,
    endpoint: Endpoint,
    path: str,
    request: web.BaseRequest,
    *,
    body_bytes_max: int,
    body_seconds: float,
    spools: Spools | None = None,
    form_only: bool = False,
) -> web.StreamResponse:
    """Serve one metered call. Raises Failure."""
    exchange = Exchange(
        request, body_bytes_max=body_bytes_max, body_seconds=body_seconds, spools=spools, form_only=form_only
    )
    return await serve_exchange(gateway, endpoint, path, exchange)


async def serve_exchange(gateway: Gateway, endpoint: Endpoint, path: str, exchange: Exchange) -> web.StreamResponse:
    """The same, for an exchange that was made elsewhere."""
    try:
        finish = await handle(gateway, endpoint, path, exchange, exchange)
    except BaseException:
        exchange.break_off()
        raise
    finally:
        exchange.close()
    response = await exchange.finish(finish)
    if points.armed:
        points.reach("finish.sent")
    return response
