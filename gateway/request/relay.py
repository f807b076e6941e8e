"""Step 4: carry the call to an upstream and its reply back, byte for byte. The only module that speaks to upstreams.

The shell never decides what anything costs: it reports how the relay ended and what was seen (meter.Seen). Deadlines
are kept by one watch for all calls rather than by timers of each: see gateway/request/watch.py.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from gateway import points
from gateway.clock import monotonic_seconds
from gateway.core.estimate import tokens_from_bytes
from gateway.core.inflate import Inflater, UnknownEncoding
from gateway.core.sse import BOM
from gateway.core.usage_json import LargeReply
from gateway.endpoints.endpoint import StreamReader
from gateway.errors import Failure, UpstreamFailed, UpstreamTimedOut, UpstreamUnreachable, UpstreamUnusable
from gateway.metrics import Metrics
from gateway.request.admit import Offer, Route
from gateway.request.headers import hold_headers, reply_headers, request_headers
from gateway.request.hold import Hold
from gateway.request.limit import limit_of
from gateway.request.meter import Ending, Seen
from gateway.request.upstream import Target, post
from gateway.request.upstream_reply import Reply
from gateway.request.watch import Call

_log = logging.getLogger("farebox.relay")

_ERROR_BODY_BYTES_MAX = 2**20
_TAIL_SECONDS = 1.0


@dataclass(slots=True)
class Relayed:
    """How the relay ended. `rest` is what the client gets once the settle is durable: a whole reply if not `started`.

    `failure` is what to tell a client that has had nothing.
    """

    seen: Seen
    upstream: str | None = None
    status: int = 502
    headers: CIMultiDict[str] = field(default_factory=CIMultiDict)
    rest: bytes = b""
    started: bool = False
    failure: Failure | None = None
    is_whole: bool = False  # all of a model's reply was read, whether or not its client is still there


class Relay:
    """Sends offers upstream over one pool of keep-alive connections."""

    def __init__(self, connector: aiohttp.BaseConnector, metrics: Metrics, *, reply_buffer_bytes_max: int) -> None:
        self._connector = connector
        self._metrics = metrics
        self._reply_buffer_bytes_max = reply_buffer_bytes_max
        self._targets: dict[tuple[str, str], Target] = {}

    def forget(self) -> None:
        """The settings of upstreams may have changed."""
        self._targets.clear()

    async def run(self, path: str, headers: Mapping[str, str], offer: Offer, hold: Hold, call: Call) -> Relayed:
        """Relay one call. Raises nothing that the upstream or the client may cause."""
        response, route, failure = await self._ask(path, headers, offer, hold, call)
        if response is None:
            ending = Ending.REFUSED
            if call.is_late and (call.is_stopped or call.is_client_gone):
                # We gave up on an upstream that may well be working.
                ending = Ending.STOPPED if call.is_stopped else Ending.CLIENT_GONE
            seen = Seen(ending, None, int, route.upstream.missing_usage)
            return Relayed(seen, upstream=route.upstream.name, failure=failure)
        try:
            if points.armed:
                points.reach("relay.first_byte")
            return await self._receive(response, route, offer, hold, call)
        finally:
            response.release()

    async def _ask(
        self, path: str, headers: Mapping[str, str], offer: Offer, hold: Hold, call: Call
    ) -> tuple[Reply | None, Route, Failure | None]:
        """The first upstream's reply that is worth having. Nothing has been sent to the client before this returns."""
        failure: Failure | None = None
        for route in offer.routes:
            is_last = route is offer.routes[-1]
            response, failure, may_go_on = await self._ask_one(path, headers, offer, hold, call, route)
            if response is None:
                if may_go_on and not is_last and not call.is_over:
                    continue
                return None, route, failure
            if (response.status == 429 or response.status >= 500) and not is_last:
                response.close()
                continue
            return response, route, None
        raise AssertionError("an offer has at least one route")

    async def _ask_one(
        self, path: str, headers: Mapping[str, str], offer: Offer, hold: Hold, call: Call, route: Route
    ) -> tuple[Reply | None, Failure | None, bool]:
        """(reply, or None; why; whether another upstream may be asked without risking a second bill)."""
        upstream = route.upstream
        name = upstream.name
        request = offer.request
        body = offer.endpoint.upstream_body(
            offer.body,
            model=route.model if route.model != request.model else None,
            include_usage=request.stream and not request.wants_usage and upstream.include_usage,
            # An upstream that reads one member only would not see a cap in the other, nor stop without one.
            output_tokens_cap=hold.output_tokens_max
            if hold.is_lowered or upstream.cap_member == "max_tokens"
            else None,
            cap_member=upstream.cap_member,
        )
        target = self._target(route, path)
        sent_headers = request_headers(headers, target.authorization, hold)
        self._metrics.upstream_calls.labels(name).inc()
        began = monotonic_seconds()
        call.asked_at_seconds = call.asked_at_seconds or began
        call.await_first_byte(upstream.first_byte_seconds)
        try:
            response = await post(self._connector, target, sent_headers, body)
        except asyncio.CancelledError:
            if not call.took_too_long():
                raise
            return None, self._failed(name, "first_byte_timeout", UpstreamTimedOut()), False
        except aiohttp.ClientConnectorError:
            return None, self._failed(name, "connect", UpstreamUnreachable()), True
        except aiohttp.ConnectionTimeoutError:
            return None, self._failed(name, "connect_timeout", UpstreamUnreachable()), True
        except (aiohttp.ClientError, OSError):
            # The request was written and the connection lost: the upstream may or may not have worked.
            return None, self._failed(name, "reset", UpstreamUnreachable()), True
        finally:
            call.first_byte_by_seconds = 0.0
        self._metrics.upstream_first_byte.labels(name).observe(monotonic_seconds() - began)
        try:
            if points.armed:
                points.reach("relay.connected")
        except BaseException:
            response.close()
            raise
        status = response.status
        if status >= 400:
            self._failed(name, "status_429" if status == 429 else f"status_{status // 100}xx", None)
        elif status >= 300 or status < 200:
            # A redirect would lead the client past the meter, its key in hand.
            response.close()
            return None, self._failed(name, "redirect", UpstreamFailed("The upstream answered with a redirect.")), True
        return response, None, True

    def _failed(self, upstream: str, kind: str, failure: Failure | None) -> Failure | None:
        self._metrics.upstream_errors.labels(upstream, kind).inc()
        return failure

    def _target(self, route: Route, path: str) -> Target:
        key = (route.upstream.name, path)
        target = self._targets.get(key)
        if target is None:
            api_key = route.upstream.api_key
            target = self._targets[key] = Target(
                URL(route.upstream.base_url + path),
                authorization=None if api_key is None else f"Bearer {api_key.get_secret_value()}",
                connect_seconds=route.upstream.connect_seconds,
            )
        return target

    async def _receive(self, response: Reply, route: Route, offer: Offer, hold: Hold, call: Call) -> Relayed:
        """Read the reply: a stream as it comes, anything else whole, unless it is too large for that."""
        headers = reply_headers(response.headers)
        headers.update(hold_headers(hold))
        relayed = Relayed(
            Seen(Ending.REFUSED, None, int, route.upstream.missing_usage, "", route.upstream.price_bp),
            upstream=route.upstream.name,
            status=response.status,
            headers=headers,
        )
        try:
            inflater = Inflater.of(response.headers.get("Content-Encoding"))
        except UnknownEncoding as error:
            headers["Content-Encoding"] = str(error)
            inflater = None
        upstream = route.upstream
        call.begin_reading(response, idle_seconds=upstream.idle_seconds, total_seconds=upstream.total_seconds)
        try:
            if response.status >= 300:
                await self._receive_error(response, inflater, relayed, upstream.api_key)
            else:
                kind = response.headers.get("Content-Type", "").lower()
                reader = offer.endpoint.reply_reader(kind, offer.request)
                if reader is None:
                    await self._receive_body(response, inflater, offer, call, relayed)
                else:
                    await self._receive_stream(response, inflater, reader, offer, hold, call, relayed)
        finally:
            call.end_reading()
        return relayed

    async def _receive_error(
        self, response: Reply, inflater: Inflater | None, relayed: Relayed, api_key: object
    ) -> None:
        """A refusal is the upstream's own, but for our key, should it quote it."""
        body = bytearray()
        try:
            while data := await response.read():
                body += inflater.feed(data) if inflater is not None else data
                if len(body) > _ERROR_BODY_BYTES_MAX:
                    raise aiohttp.ClientPayloadError("the error is too large")
        except (aiohttp.ClientError, OSError, ValueError):
            relayed.failure = self._failed(relayed.upstream or "", "error_broke", UpstreamUnusable())
            return
        secret = getattr(api_key, "get_secret_value", str)()
        relayed.rest = bytes(body).replace(secret.encode(), b"***") if secret else bytes(body)

    async def _receive_body(
        self, response: Reply, inflater: Inflater | None, offer: Offer, call: Call, relayed: Relayed
    ) -> None:
        """A reply that is not a stream. Up to the buffer's size it is read whole, and nothing is sent before the
        settle; a larger one passes as it comes, and only its last bytes wait."""
        chunks: list[bytes] = []
        size = 0
        large: LargeReply | None = None
        ending = Ending.COMPLETED
        try:
            while data := await response.read():
                call.touch()
                data = inflater.feed(data) if inflater is not None else data
                size += len(data)
                if large is not None:
                    await self._pass_on(call, large.feed(data))
                    continue
                chunks.append(data)
                if size > self._reply_buffer_bytes_max:
                    large = LargeReply()
                    call.output_tokens_estimate = large.count_output
                    await self._start(call, relayed)
                    await self._pass_on(call, large.feed(b"".join(chunks)))
                    chunks.clear()
        except (aiohttp.ClientError, OSError, ValueError):
            ending = self._broken(call, relayed)
        if large is not None:
            relayed.rest = large.finish()
            if not large.is_complete and ending is Ending.COMPLETED:
                ending = Ending.BROKE
            seen = relayed.seen._replace(ending=ending, usage=large.usage, count_output=large.count_output)
        else:
            relayed.rest = b"".join(chunks)
            if ending is Ending.COMPLETED:
                reply = offer.endpoint.read_reply(relayed.rest)
                is_none = not relayed.rest.removeprefix(BOM).lstrip().startswith(b"{")
                if reply.failed or (is_none and reply.usage is None and not reply.count_output()):
                    # An error, or no reply of a model at all, such as a proxy's page.
                    ending = Ending.BROKE
                seen = relayed.seen._replace(
                    ending=ending,
                    usage=reply.usage,
                    count_output=reply.count_output,
                    service_tier=reply.service_tier,
                )
                if ending is Ending.BROKE and "Content-Encoding" in relayed.headers:
                    # Whatever it is, we cannot read it, and the client can: estimated from its size.
                    count = lambda: tokens_from_bytes(size)  # noqa: E731
                    seen = relayed.seen._replace(ending=Ending.COMPLETED, count_output=count)
            else:
                # Half a JSON body is no reply: the client is told so, and pays nothing for it.
                relayed.failure, relayed.rest = UpstreamUnusable(), b""
                seen = relayed.seen._replace(ending=ending)
        relayed.is_whole = seen.ending is Ending.COMPLETED
        if call.is_client_gone and ending is Ending.COMPLETED:
            seen = seen._replace(ending=Ending.CLIENT_GONE)
        relayed.seen = seen

    async def _receive_stream(
        self,
        response: Reply,
        inflater: Inflater | None,
        reader: StreamReader,
        offer: Offer,
        hold: Hold,
        call: Call,
        relayed: Relayed,
    ) -> None:
        """Events as they come; the end of them waits for the settle."""
        call.output_tokens_estimate = reader.output_tokens_estimate
        await self._start(call, relayed)
        ending = Ending.COMPLETED
        limit = limit_of(offer, hold)
        is_first = True
        try:
            while data := await response.read():
                call.touch()
                if inflater is not None:
                    data = inflater.feed(data)
                out = reader.feed(data)
                if out:
                    await self._pass_on(call, out)
                    if points.armed and not is_first:
                        points.reach("relay.mid_stream")
                    is_first = False
                if reader.ended:
                    # The end was seen; only late usage could follow. A connection left open must not delay the client.
                    call.end_within(_TAIL_SECONDS)
                elif limit.is_near(len(data)) and await limit.is_passed(reader):
                    ending, relayed.failure = Ending.CUT_OFF, limit.failure()
                    break
        except (aiohttp.ClientError, OSError, ValueError):
            if not reader.ended:
                ending = self._broken(call, relayed)
        rest = reader.finish()
        if ending is Ending.COMPLETED:
            # An end without [DONE] is an end, if anything came: some upstreams send none.
            if reader.failed or not (reader.ended or reader.usage is not None or reader.output_seen):
                ending = Ending.BROKE
            relayed.is_whole = ending is Ending.COMPLETED
            if call.is_client_gone:
                ending = Ending.CLIENT_GONE
        relayed.rest = rest if ending in (Ending.COMPLETED, Ending.BROKE, Ending.CLIENT_GONE) else b""
        relayed.seen = relayed.seen._replace(
            ending=ending,
            usage=reader.usage,
            count_output=reader.output_tokens_estimate,
            service_tier=reader.service_tier,
        )

    def _broken(self, call: Call, relayed: Relayed) -> Ending:
        """Why a read failed: we closed it for a reason, or the upstream broke."""
        if call.is_stopped:
            return Ending.STOPPED
        if call.is_client_gone:
            return Ending.CLIENT_GONE
        kind = "idle_timeout" if call.is_over else "broke"
        relayed.failure = self._failed(relayed.upstream or "", kind, UpstreamUnusable())
        return Ending.BROKE

    async def _start(self, call: Call, relayed: Relayed) -> None:
        relayed.started = True
        if not call.is_client_gone:
            try:
                await call.client.start(relayed.status, relayed.headers)
            except (ConnectionError, aiohttp.ClientError):
                call.client_left()

    async def _pass_on(self, call: Call, data: bytes) -> None:
        """Write to the client; if it is gone, go on reading for the usage until the watch says enough."""
        if data and call.is_client_gone:
            call.client.missed(data)
        elif data:
            call.writing_since_seconds = monotonic_seconds()
            try:
                await call.client.write(data)
            except (ConnectionError, aiohttp.ClientError):
                call.client_left()
            finally:
                call.writing_since_seconds = 0.0
