"""The caller's side of a request that is passed on: any method, any kind of body."""

import asyncio

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from gateway.errors import BodyTooLarge, MalformedRequest, RequestTimedOut, UnsupportedMediaType
from gateway.request.handle import Gateway
from gateway.request.passed import Rule, handle_passed
from gateway.web.metered import Exchange


class AnyExchange(Exchange):
    """An exchange whose body is not looked at, and bounded all the same."""

    async def read_body(self) -> bytes:
        request = self._request
        if self.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnsupportedMediaType("Send the body as it is: a Content-Encoding is not taken.")
        if (request.content_length or 0) > self._body_bytes_max:
            raise BodyTooLarge(f"The request body is larger than {self._body_bytes_max} bytes.")
        if self.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            async with asyncio.timeout(self._body_seconds):
                return await self._gather(request.content)
        except TimeoutError:
            raise RequestTimedOut from None
        except (web.RequestPayloadError, HttpProcessingError, ConnectionError):
            raise MalformedRequest("The request body broke off or is wrongly encoded.") from None


async def serve(
    gateway: Gateway, rule: Rule, target: str, request: web.BaseRequest, *, body_bytes_max: int, body_seconds: float
) -> web.StreamResponse:
    """Serve one request; `target` is its path below the prefix with its query. Raises Failure."""
    exchange = AnyExchange(request, body_bytes_max=body_bytes_max, body_seconds=body_seconds)
    try:
        finish = await handle_passed(gateway, rule, request.method, target, exchange, exchange)
    except BaseException:
        exchange.break_off()
        raise
    return await exchange.finish(finish)
