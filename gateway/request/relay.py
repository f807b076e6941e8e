"""Step 4: carry the call to an upstream and its reply back, byte for byte. Who is asked: gateway/request/ask.py.

The shell never decides what anything costs: it reports how the relay ended and what was seen (meter.Seen). Deadlines
are kept by one watch for all calls rather than by timers of each: see gateway/request/watch.py.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import aiohttp
from multidict import CIMultiDict

from gateway import points
from gateway.core.estimate import tokens_from_bytes
from gateway.core.inflate import Inflater, UnknownEncoding
from gateway.core.sse import BOM
from gateway.core.usage_json import LargeReply
from gateway.endpoints.endpoint import (
    NOTHING_SEEN,
    Endpoint,
    LargeReader,
    Made,
    MakesResponse,
    ReadsLarge,
    ReplySeen,
    StreamReader,
    WholeReader,
)
from gateway.errors import Failure, UpstreamUnusable
from gateway.metrics import Metrics
from gateway.request.admit import Offer, Route
from gateway.request.ask import Asker
from gateway.request.headers import hold_headers, reply_headers
from gateway.request.hold import Hold
from gateway.request.limit import limit_of
from gateway.request.meter import Ending, Seen
from gateway.request.stream import Stream
from gateway.request.upstream_reply import Reply
from gateway.request.watch import Call
from gateway.settings import UpstreamSettings

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
    pieces: Sequence[bytes] = ()  # of a whole reply, before the rest
    started: bool = False
    failure: Failure | None = None
    is_whole: bool = False  # all of a model's reply was read, whether or not its client is still there
    made: Made | None = None  # what the upstream keeps of it


class Relay:
    """Sends offers upstream over one pool of keep-alive connections."""

    def __init__(self, connector: aiohttp.BaseConnector, metrics: Metrics, *, reply_buffer_bytes_max: int) -> None:
        self._reply_buffer_bytes_max = reply_buffer_bytes_max
        self.asker = Asker(connector, metrics)

    async def run(self, path: str, headers: Mapping[str, str], offer: Offer, hold: Hold, call: Call) -> Relayed:
        """Relay one call. Raises nothing that the upstream or the client may cause."""
        asked = await self.asker.ask(path, headers, offer, hold, call)
        route = asked.route
        if route is None:
            return Relayed(Seen(Ending.REFUSED, None, int), failure=asked.failure)
        if asked.reply is None or asked.standing is None:
            ending = Ending.REFUSED
            if call.is_late and (call.is_stopped or call.is_client_gone):
                # We gave up on an upstream that may well be working.
                ending = Ending.STOPPED if call.is_stopped else Ending.CLIENT_GONE
            seen = Seen(ending, None, int, route.upstream.missing_usage)
            return Relayed(seen, upstream=route.upstream.name, failure=asked.failure)
        try:
            if points.armed:
                points.reach("relay.first_byte")
            return await self._receive(asked.reply, route, offer, hold, call)
        finally:
            asked.reply.release()
            asked.standing.leave()

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
                await self._receive_error(response, inflater, relayed, upstream)
            else:
                kind = response.headers.get("Content-Type", "").lower()
                reader = offer.endpoint.reply_reader(kind, offer.request)
                if reader is None:
                    await self._receive_body(response, inflater, route, offer, call, relayed)
                else:
                    await self._receive_stream(response, inflater, reader, route, offer, hold, call, relayed)
        finally:
            call.end_reading()
        return relayed

    async def _receive_error(
        self, response: Reply, inflater: Inflater | None, relayed: Relayed, upstream: UpstreamSettings
    ) -> None:
        """A refusal is the upstream's own, but for our key, should it quote it."""
        body = bytearray()
        try:
            while data := await response.read():
                body += inflater.feed(data) if inflater is not None else data
                if len(body) > _ERROR_BODY_BYTES_MAX:
                    raise aiohttp.ClientPayloadError("the error is too large")
        except (aiohttp.ClientError, OSError, ValueError):
            relayed.failure = self.asker.failed(upstream, "error_broke", UpstreamUnusable())
            return
        secret = "" if upstream.api_key is None else upstream.api_key.get_secret_value()
        relayed.rest = bytes(body).replace(secret.encode(), b"***") if secret else bytes(body)

    async def _receive_body(
        self, response: Reply, inflater: Inflater | None, route: Route, offer: Offer, call: Call, relayed: Relayed
    ) -> None:
        """A reply that is not a stream. Up to the buffer's size it is read whole, and nothing is sent before the
        settle; a larger one passes as it comes, and only its last bytes wait."""
        chunks: list[bytes] = []
        size = 0
        looker = _looker(offer.endpoint)
        large: LargeReader | None = None
        ending = Ending.COMPLETED
        try:
            while data := await response.read():
                call.touch()
                data = inflater.feed(data) if inflater is not None else data
                size += len(data)
                if large is not None:
                    await call.pass_on(large.feed(data))
                    continue
                if looker is not None:
                    looker.look(data)
                chunks.append(data)
                if size > self._reply_buffer_bytes_max:
                    large = looker or _late_looker(chunks)
                    call.output_tokens_estimate = large.count_output
                    await _start(call, relayed)
                    if isinstance(large, LargeReply) and large.reply_id is not None:
                        await _note(call, relayed, Made(large.reply_id, True), route.upstream)
                    await call.pass_on(large.pass_on(b"".join(chunks)))
                    chunks.clear()
        except (aiohttp.ClientError, OSError, ValueError):
            ending = self._broken(call, relayed, route)
        if large is not None:
            relayed.rest = large.finish()
            if not large.is_complete and ending is Ending.COMPLETED:
                ending = Ending.BROKE
            seen = relayed.seen._replace(ending=ending, usage=large.usage, count_output=large.count_output)
        elif ending is Ending.COMPLETED:
            reply = None if looker is None else looker.seen()
            if reply is not None:
                *relayed.pieces, relayed.rest = chunks
            else:
                relayed.rest = b"".join(chunks)
                is_page = _is_page(response, relayed.rest)
                reply = NOTHING_SEEN if is_page else offer.endpoint.read_reply(relayed.rest)
            await _note(call, relayed, reply.made, route.upstream)
            seen = _seen_whole(reply, relayed)
        else:
            # Half a JSON body is no reply: the client is told so, and pays nothing for it.
            relayed.failure = UpstreamUnusable()
            seen = relayed.seen._replace(ending=ending)
        relayed.is_whole = seen.ending is Ending.COMPLETED
        if call.is_client_gone and ending is Ending.COMPLETED and seen.ending is not Ending.BROKE:
            seen = seen._replace(ending=Ending.CLIENT_GONE)
        relayed.seen = seen

    async def _receive_stream(
        self,
        response: Reply,
        inflater: Inflater | None,
        reader: StreamReader,
        route: Route,
        offer: Offer,
        hold: Hold,
        call: Call,
        relayed: Relayed,
    ) -> None:
        """Events as they come; the end of them waits for the settle."""
        call.output_tokens_estimate = reader.output_tokens_estimate
        await _start(call, relayed)
        ending = Ending.COMPLETED
        limit = limit_of(offer, hold)
        # A look at a protocol by isinstance() takes as long as several events.
        maker = cast(MakesResponse, reader) if hasattr(reader, "made") else None
        note = None if maker is None else lambda: _note(call, relayed, maker.made, route.upstream)
        stream = Stream(call, reader, limit, note)
        try:
            while data := await response.read():
                call.touch()
                if inflater is not None:
                    data = inflater.feed(data)
                if not await stream.take(data):
                    ending, relayed.failure = Ending.CUT_OFF, limit.failure()
                    break
                if reader.ended:
                    # The end was seen; only late usage could follow. A connection left open must not delay the client.
                    call.end_within(_TAIL_SECONDS)
        except (aiohttp.ClientError, OSError, ValueError):
            if not reader.ended:
                ending = self._broken(call, relayed, route)
        rest = reader.finish()
        if note is not None:
            await note()
        _end_stream(ending, rest, stream, reader, call, relayed)

    def _broken(self, call: Call, relayed: Relayed, route: Route) -> Ending:
        """Why a read failed: we closed it for a reason, or the upstream broke."""
        if call.is_stopped:
            return Ending.STOPPED
        if call.is_client_gone:
            return Ending.CLIENT_GONE
        kind = "idle_timeout" if call.is_over else "broke"
        relayed.failure = self.asker.failed(route.upstream, kind, UpstreamUnusable())
        return Ending.BROKE


async def _start(call: Call, relayed: Relayed) -> None:
    relayed.started = True
    await call.start(relayed.status, relayed.headers)


def _end_stream(
    ending: Ending, rest: bytes, stream: Stream, reader: StreamReader, call: Call, relayed: Relayed
) -> None:
    """How a stream ended, with all that its reader saw."""
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
        count_output=stream.count_output,
        service_tier=reader.service_tier,
    )


def _is_page(response: Reply, body: bytes) -> bool:
    """Whether this is a page for people, as a proxy between us and the upstream sends. What is JSON all the same, or
    only looks like a page, is a reply."""
    kind = response.headers.get("Content-Type", "").lower()
    return kind.startswith("text/html") and not body.removeprefix(BOM).lstrip().startswith(b"{")


def _looker(endpoint: Endpoint) -> WholeReader | None:
    """What looks through replies as they come, at an endpoint whose replies are mostly large."""
    # A look at a protocol by isinstance() takes as long as several events.
    return cast(ReadsLarge, endpoint).large_reply() if hasattr(endpoint, "large_reply") else None


def _late_looker(chunks: Sequence[bytes]) -> LargeReply:
    """What looks through a reply that turned out to be large: it has seen these."""
    looker = LargeReply()
    for data in chunks:
        looker.look(data)
    return looker


def _seen_whole(reply: ReplySeen, relayed: Relayed) -> Seen:
    """What was seen of a reply that was read to its end."""
    is_none = not reply.usage and not relayed.pieces and not relayed.rest.removeprefix(BOM).lstrip().startswith(b"{")
    is_broken = reply.failed or (is_none and reply.usage is None and not reply.count_output())
    if is_broken and "Content-Encoding" in relayed.headers:
        # Whatever it is, we cannot read it, and the client can: estimated from its size.
        size = len(relayed.rest)
        return relayed.seen._replace(ending=Ending.COMPLETED, count_output=lambda: tokens_from_bytes(size))
    return Seen(
        # An error, or no reply of a model at all, such as a proxy's page, is none that was completed.
        Ending.BROKE if is_broken else Ending.COMPLETED,
        reply.usage,
        reply.count_output,
        relayed.seen.missing_usage,
        reply.service_tier,
        relayed.seen.upstream_bp,
    )


async def _note(call: Call, relayed: Relayed, made: Made | None, upstream: UpstreamSettings) -> None:
    """Say what the upstream keeps, once, before the client is told."""
    is_new = relayed.made is None
    relayed.made = made
    if made is not None and is_new and call.note is not None:
        await call.note(made, upstream)
