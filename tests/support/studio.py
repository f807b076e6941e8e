"""Replies of the endpoints for sound and images, and a shop that prices them.

Prices are such that a test can work out a charge in its head, in nanos; see `PRICES`.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio

from gateway.core.catalogue import Meter, Model, Price, Rates
from gateway.db import prices
from gateway.db.pool import Database
from gateway.endpoints.endpoint import Endpoint
from gateway.request.admit import Offer, admit
from gateway.request.hold import Hold
from gateway.request.meter import Charge, Ending, Seen, meter
from tests.support.forms import CONTENT_TYPE, File, form_bytes, form_of
from tests.support.offers import ANYONE, BEGINNING, hold_of, shelf_of
from tests.support.postgres import ScratchPostgres
from tests.support.shop import Shop, open_shop, visit
from tests.support.studio_reply import Media

NANO = 1_000  # picos
_BY_IMAGE_TOKENS: dict[str, int] = {Meter.INPUT: 5 * NANO, Meter.IMAGE_INPUT: 8 * NANO, Meter.IMAGE_OUTPUT: 30 * NANO}
PRICES: Mapping[str, Rates] = {
    # 6 nanos a millisecond.
    "by-time": {Meter.AUDIO_MILLISECONDS: 6 * NANO},
    # 6 nanos a token of sound, 2 of text, 10 of the transcript.
    "by-tokens": {Meter.AUDIO_INPUT: 6 * NANO, Meter.INPUT: 2 * NANO, Meter.OUTPUT: 10 * NANO},
    # 15 nanos a character.
    "by-character": {Meter.CHARACTERS: 15 * NANO},
    # 7 nanos a request, whatever is in it.
    "by-request": {Meter.REQUESTS: 7 * NANO},
    # 1 nano a token of text, 12 of sound.
    "by-sound": {Meter.INPUT: NANO, Meter.AUDIO_OUTPUT: 12 * NANO},
    # By quality and size; 170 where there is no such rate.
    "by-image": {"images/low/1024x1024": 10 * NANO, "images/high/1024x1024": 160 * NANO, Meter.IMAGES: 170 * NANO},
    # 5 nanos a token of text, 8 of an image that is read, 30 of one that is made; the second writes for 10.
    "gpt-image-1": _BY_IMAGE_TOKENS,
    "gpt-image-2": {**_BY_IMAGE_TOKENS, Meter.OUTPUT: 10 * NANO},
    "other-image": _BY_IMAGE_TOKENS,
}
CONTEXT, OUTPUT = 1_000_000, 2_000
MODELS = [Model(name, CONTEXT, OUTPUT) for name in PRICES]


def offer_for(endpoint: Endpoint, body: "bytes | list[File | tuple[str, str]]", rates: Rates | None = None) -> Offer:
    """What a request is offered, of a model by its name in PRICES."""
    prices_ = [Price(1, name, BEGINNING, "test", rates or found) for name, found in PRICES.items()]
    sent = body if isinstance(body, bytes) else form_of(*body)
    return admit(ANYONE, endpoint, sent, shelf_of(MODELS, prices_), min_output_tokens=16, hold_slice_tokens=4_096)


def charge_of(offer: Offer, body: bytes, hold: Hold | None = None) -> Charge:
    """What a whole reply is charged."""
    seen = offer.endpoint.read_reply(body)
    ending = Ending.BROKE if seen.failed else Ending.COMPLETED
    return meter(offer, hold or hold_of(offer), Seen(ending, seen.usage, seen.count_output))


def charge_of_stream(offer: Offer, content_type: str, *pieces: bytes, ending: Ending = Ending.COMPLETED) -> Charge:
    """What a reply that is passed on as it comes is charged."""
    reader = offer.endpoint.reply_reader(content_type, offer.request)
    assert reader is not None
    out = b"".join(reader.feed(piece) for piece in pieces) + reader.finish()
    assert out == b"".join(pieces)
    return meter(offer, hold_of(offer), Seen(ending, reader.usage, reader.output_tokens_estimate))


@dataclass(slots=True)
class Studio:
    """A shop for sound and images."""

    shop: Shop

    async def post(
        self, path: str, body: "bytes | list[File | tuple[str, str]]", behaviour: Media, **headers: str
    ) -> tuple[int, Mapping[str, str], bytes]:
        """One whole exchange: status, headers and body."""
        self.shop.upstream.next(behaviour)
        data, content_type = (
            (body, "application/json") if isinstance(body, bytes) else (form_bytes(*body), CONTENT_TYPE)
        )
        sent = self.shop.farebox.headers() | {"Content-Type": content_type} | headers
        async with self.shop.farebox.session.post(self.shop.farebox.base_url + path, data=data, headers=sent) as reply:
            return reply.status, reply.headers, await reply.read()

    async def charged(self, nanos: int, basis: str, reason: str | None = None) -> dict[str, Any]:
        """The one call of this test was resolved so."""
        event = await self.shop.event()
        assert (event["cost_nanos"], event["charged_nanos"], event["shortfall_nanos"]) == (nanos, nanos, 0)
        assert (event["basis"], event["reason"]) == (basis, reason)
        wallet = await self.shop.farebox.wallet()
        assert (wallet["balance_nanos"], wallet["held_nanos"]) == (100 * 10**9 - nanos, 0)
        return event


async def price_media(database: Database) -> None:
    """The models of PRICES, and their prices."""
    await prices.save_models(database, MODELS)
    now = datetime.now(UTC)
    versions = [prices.PriceVersion(name, now, rates, (), "test") for name, rates in PRICES.items()]
    await prices.add_prices(database, versions)


@asynccontextmanager
async def open_studio(scratch: ScratchPostgres, name: str, **settings: Any) -> AsyncIterator[Shop]:
    """A gateway with those models on offer."""
    async with open_shop(scratch, name, **settings) as shop:
        await price_media(shop.farebox.app.database)
        await shop.farebox.app.catalogue.run_once()
        yield shop


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def studio_all_day(scratch: ScratchPostgres, request: pytest.FixtureRequest) -> AsyncIterator[Shop]:
    """The gateway itself; a test asks for `studio`."""
    async with open_studio(scratch, request.node.path.stem) as shop:
        yield shop


@pytest_asyncio.fixture(loop_scope="module")
async def studio(studio_all_day: Shop) -> AsyncIterator[Studio]:
    """The shared gateway with a wallet, a log and counters for this test alone."""
    async with visit(studio_all_day) as mine:
        yield Studio(mine)
