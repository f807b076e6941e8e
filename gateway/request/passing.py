"""Requests about what an upstream keeps: free, small, and of any method. Their replies pass as they come."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import aiohttp
from yarl import URL

from gateway.clock import new_id
from gateway.core.inflate import Inflater, UnknownEncoding
from gateway.errors import UpstreamFailed, UpstreamTimedOut, UpstreamUnreachable, UpstreamUnusable
from gateway.metrics import Metrics
from gateway.request.ask import address, kind_of, own_headers
from gateway.request.handle import Finish
from gateway.request.headers import reply_headers, request_headers
from gateway.request.hold import Hold
from gateway.request.upstream import Target, post
from gateway.request.upstream_reply import Reply
from gateway.request.watch import Call
from gateway.settings import UpstreamSettings

# What is read before any of it is passed on.
WHOLE_BYTES_MAX = 4 * 2**20
# What is read of a response that is looked at in the background.
_LOOKED_BYTES_MAX = 64 * 2**20
_LOOK_SECONDS = 30.0


class Passing:
    """Asks over the connections of the relay."""

    def __init__(self, connector: aiohttp.BaseConnector, metrics: Metrics) -> None:
        self._connector = connector
        self._metrics = metrics

    async def read(self, upstream: UpstreamSettings, method: str, path: str) -> tuple[int, bytes] | None:
        """Status and body of the whole reply; None where there is none."""
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                reply = await self._ask(upstream, method, path, {}, b"")
                try:
                    inflater = Inflater.of(reply.headers.get("Content-Encoding"))
                    body = bytearray()
                    while data := await reply.read():
                        body += data if inflater is None else inflater.feed(data)
                        if len(body) > _LOOKED_BYTES_MAX:
                            raise ValueError("the reply is too large")
                    return reply.status, bytes(body)
                finally:
                    reply.release()
        except (aiohttp.ClientError, OSError, ValueError, UnknownEncoding):
            self._metrics.upstream_errors.labels(upstream.name, "look").inc()
            return None

    async def pass_on(
        self,
        upstream: UpstreamSettings,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        call: Call,
        heard: Callable[[bytes], Awaitable[None]] | None = None,
        seen: Callable[[bytes], object] = len,
    ) -> Finish:
        """The upstream's reply, on its way to the client. `heard` is given one that was read whole, before it is sent;
        `seen` the pieces of any other, before each is.

        Raises UpstreamTimedOut, UpstreamUnreachable, UpstreamFailed, UpstreamUnusable.
        """
        call.await_first_byte(upstream.first_byte_seconds)
        try:
            reply = await self._ask(upstream, method, path, headers, body)
        except asyncio.CancelledError:
            if not call.took_too_long():
                raise
            if not (call.is_client_gone or call.is_stopped):
                self._metrics.upstream_errors.labels(upstream.name, "first_byte_timeout").inc()
            raise UpstreamTimedOut from None
        except (aiohttp.ClientError, OSError) as error:
            self._metrics.upstream_errors.labels(upstream.name, kind_of(error)).inc()
            raise UpstreamUnreachable from None
        finally:
            call.first_byte_by_seconds = 0.0
        call.begin_reading(reply, idle_seconds=upstream.idle_seconds, total_seconds=upstream.total_seconds)
        try:
            return await self._receive(upstream, reply, call, heard, seen)
        finally:
            call.end_reading()
            reply.release()

    async def _ask(
        self, upstream: UpstreamSettings, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> Reply:
        """Raises aiohttp.ClientError, OSError."""
        path, _, query = path.partition("?")
        url = address(upstream, path, "")
        if query:
            url = f"{url}{'&' if '?' in url else '?'}{query}"
        authorization, own = own_headers(upstream)
        target = Target(
            URL(url, encoded=True),
            authorization=authorization,
            connect_seconds=upstream.connect_seconds,
            method=method,
        )
        self._metrics.upstream_calls.labels(upstream.name).inc()
        nothing_held = Hold(new_id(), "", "", 0, 0, False, 0.0)
        sent = request_headers(headers, authorization, nothing_held, own)
        return await post(self._connector, target, sent, body)

    async def _receive(
        self,
        upstream: UpstreamSettings,
        reply: Reply,
        call: Call,
        heard: Callable[[bytes], Awaitable[None]] | None,
        seen: Callable[[bytes], object],
    ) -> Finish:
        status = reply.status
        if not (200 <= status < 300 or status >= 400):
            # A redirect would lead the client past us, its key in hand.
            reply.close()
            raise UpstreamFailed("The upstream answered with a redirect.")
        headers = reply_headers(reply.headers)
        headers["x-request-id"] = new_id()
        try:
            inflater = Inflater.of(reply.headers.get("Content-Encoding"))
        except UnknownEncoding as error:
            headers["Content-Encoding"] = str(error)
            inflater, heard, seen = None, None, len
        is_stream = status < 300 and headers.get("Content-Type", "").lower().startswith("text/event-stream")
        pieces: list[bytes] = []
        size, started = 0, False
        try:
            while data := await reply.read():
                call.touch()
                data = data if inflater is None else inflater.feed(data)
                if not started and (is_stream or size + len(data) > WHOLE_BYTES_MAX):
                    started = True
                    await call.client.start(status, headers)
                    data = b"".join((*pieces, data))
                    pieces.clear()
                if started:
                    seen(data)
                    await call.client.write(data)
                else:
                    pieces.append(data)
                    size += len(data)
        except ConnectionError:
            return Finish(status, headers, b"", started=True, is_broken=True)
        except (aiohttp.ClientError, OSError, ValueError):
            self._metrics.upstream_errors.labels(upstream.name, "broke").inc()
            if started or call.is_client_gone:
                return Finish(status, headers, b"", started=True, is_broken=True)
            raise UpstreamUnusable from None
        if started:
            return Finish(status, headers, b"", started=True)
        body = b"".join(pieces)
        if status >= 400 and upstream.api_key is not None:
            body = body.replace(upstream.api_key.get_secret_value().encode(), b"***")
        elif heard is not None:
            await heard(body)
        return Finish(status, headers, body, started=False)
