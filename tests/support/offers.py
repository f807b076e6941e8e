"""Offers and holds without a database, for the pure steps."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from gateway.core.catalogue import Model, Price, Rates, Tier
from gateway.endpoints.chat import ChatEndpoint
from gateway.request.admit import Offer, Shelf, admit
from gateway.request.authenticate import Principal
from gateway.request.hold import Hold
from gateway.settings import UpstreamSettings
from tests.support.gateway import CONTEXT, MODEL, OUTPUT, RATES

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
ANYONE = Principal(wallet_id="wallet", key_id="key", models=None)
WORKING_MODEL = Model(MODEL, CONTEXT, OUTPUT)


def price_of(model: str = MODEL, rates: Rates = RATES, tiers: tuple[Tier, ...] = ()) -> Price:
    return Price(1, model, BEGINNING, "test", rates, tiers)


def upstream_of(name: str = "up0", **settings: Any) -> UpstreamSettings:
    return UpstreamSettings(name=name, base_url="http://127.0.0.1:1/v1", **settings)


def shelf_of(
    models: Sequence[Model] = (WORKING_MODEL,),
    prices: Sequence[Price] | None = None,
    upstreams: Sequence[UpstreamSettings] | None = None,
    aliases: Mapping[str, str] | None = None,
) -> Shelf:
    chosen = [price_of(model.name) for model in models] if prices is None else prices
    return Shelf(models, chosen, upstreams or [upstream_of()], aliases or {})


def body_of(**members: object) -> bytes:
    return orjson.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Say something."}], **members})


def offer_of(shelf: Shelf | None = None, principal: Principal = ANYONE, **members: object) -> Offer:
    """What a chat request with these members is offered."""
    return admit(
        principal,
        ChatEndpoint(),
        body_of(**members),
        shelf or shelf_of(),
        min_output_tokens=16,
        hold_slice_tokens=4_096,
    )


def hold_of(offer: Offer, granted_nanos: int | None = None) -> Hold:
    """An open hold of the whole ceiling."""
    granted = offer.ceiling.nanos if granted_nanos is None else granted_nanos
    return Hold("hold", "wallet", "key", granted, offer.ceiling.output_tokens_max, False, 1e9)
