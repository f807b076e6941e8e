"""Step 2: what is asked for, and what can it cost at most? Pure: it reads the catalogue as it stands."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from gateway.core.catalogue import ONE_BP, Meter, Model, Price
from gateway.core.ceiling import Bounds, CapTooLarge, Ceiling, ceiling
from gateway.core.multipart import Form
from gateway.core.pricing import (
    STANDARD,
    CostOutOfRange,
    Terms,
    Unpriced,
    is_tier_priced,
    priced_alternatives,
    without_alternatives,
)
from gateway.endpoints.endpoint import CallRequest, Endpoint, InvalidRequest, Output, ReadsForms
from gateway.errors import MalformedRequest, ModelNotFound
from gateway.request.authenticate import Principal
from gateway.settings import UpstreamSettings


class Route(NamedTuple):
    """One upstream that serves the model, and the name by which it knows it."""

    upstream: UpstreamSettings
    model: str


class Offer(NamedTuple):
    """Endpoint, model, price and ceiling: what the call would cost at most, and where it would go."""

    endpoint: Endpoint
    request: CallRequest
    body: bytes | Form
    model: Model
    price: Price
    ceiling: Ceiling
    routes: tuple[Route, ...]
    method: str = "POST"
    is_recounted: bool = False


class Shelf:
    """The models on offer: priced, bounded, and served by an upstream. Replaced whole when prices change."""

    def __init__(
        self,
        models: Sequence[Model],
        prices: Sequence[Price],
        upstreams: Sequence[UpstreamSettings],
        aliases: Mapping[str, str],
    ) -> None:
        self._aliases = aliases
        in_order = sorted(upstreams, key=lambda upstream: upstream.order)
        by_model = {price.model: price for price in prices}
        self._models: dict[str, tuple[Model, Price, tuple[Route, ...]]] = {}
        for model in models:
            routes = tuple(
                Route(upstream, upstream.rename.get(model.name, model.name))
                for upstream in in_order
                if any(fnmatchcase(model.name, pattern) for pattern in upstream.models)
            )
            price = by_model.get(model.name)
            if price is not None and routes:
                self._models[model.name] = (model, price, routes)

    def find(self, name: str) -> tuple[Model, Price, tuple[Route, ...]] | None:
        """The model of this name or alias, its price and its routes; None if it is not on offer."""
        return self._models.get(name) or self._models.get(self._aliases.get(name, name))

    @property
    def count(self) -> int:
        """How many models are on offer."""
        return len(self._models)

    def names(self, principal: Principal) -> list[tuple[str, Model]]:
        """What this key may use: (name or alias, model), by name."""
        names = {name: model for name, (model, _, _) in self._models.items()}
        names |= {alias: names[name] for alias, name in self._aliases.items() if name in names}
        return [(name, names[name]) for name in sorted(names) if is_allowed(principal, name, names[name])]


def is_allowed(principal: Principal, name: str, model: Model) -> bool:
    """Whether this key may use the model, by the name asked for or its own."""
    return principal.models is None or name in principal.models or model.name in principal.models


def admit(
    principal: Principal,
    endpoint: Endpoint,
    body: bytes | Form,
    shelf: Shelf,
    *,
    min_output_tokens: int,
    hold_slice_tokens: int,
    stored_context: str = "ceiling",
    auto_service_tier: str = "default",
) -> Offer:
    """Raises MalformedRequest, ModelNotFound.

    `stored_context`: what is stored upstream is held at the model's context ("ceiling"), or refused ("refuse").
    `auto_service_tier`: in which tier the upstream may serve a call that names none.
    """
    try:
        request = endpoint.read_request(body) if isinstance(body, bytes) else _read_form(endpoint, body)
    except InvalidRequest as error:
        raise MalformedRequest(error.message, code=error.code, param=error.param) from None
    found = find(principal, shelf, request.model)
    return priced(
        endpoint,
        request,
        body,
        found,
        min_output_tokens=min_output_tokens,
        hold_slice_tokens=hold_slice_tokens,
        stored_context=stored_context,
        auto_service_tier=auto_service_tier,
    )


def find(principal: Principal, shelf: Shelf, name: str) -> tuple[Model, Price, tuple[Route, ...]]:
    """The model of this name or alias that this key may use. Raises ModelNotFound."""
    found = shelf.find(name)
    if found is None or not is_allowed(principal, name, found[0]):
        raise ModelNotFound(param="model")
    return found


def priced(
    endpoint: Endpoint,
    request: CallRequest,
    body: bytes | Form,
    found: tuple[Model, Price, tuple[Route, ...]],
    *,
    min_output_tokens: int,
    hold_slice_tokens: int,
    stored_context: str = "ceiling",
    auto_service_tier: str = "default",
) -> Offer:
    """The offer for a request that was read. Raises MalformedRequest, ModelNotFound."""
    model, price, routes = found
    if request.for_model is not None:
        request = request.for_model(request, model.name)
    if request.stored is not None and stored_context == "refuse":
        message = "What is stored upstream is not taken here: nobody here knows its size."
        raise MalformedRequest(message, code="not_metered", param=request.stored)
    if not is_tier_priced(price, request.service_tier):
        message = "This model has no price for this tier of service."
        raise MalformedRequest(message, code="service_tier_not_priced", param="service_tier")
    if request.service_tier in ("", "auto") and price.multipliers.get(auto_service_tier, 0) > ONE_BP:
        # The reply's own word for it is what counts in the end; until then, and without it, the dearer.
        request = request._replace(service_tier=auto_service_tier)
    try:
        bounds = _ceiling(
            request,
            model,
            price,
            max(route.upstream.price_bp for route in routes),
            min_output_tokens=min_output_tokens,
            slice_tokens=_slice_tokens(request, model, hold_slice_tokens),
        )
    except CapTooLarge as error:
        message = f"The output cap is too large: this model produces {error}."
        raise MalformedRequest(message, code="output_cap_too_large", param="max_completion_tokens") from None
    except (Unpriced, CostOutOfRange):
        message = "The model has no price for this kind of call."
        raise ModelNotFound(message, code="model_not_priced", param="model") from None
    return Offer(endpoint, request, body, model, price, bounds, routes)


def _read_form(endpoint: Endpoint, form: Form) -> CallRequest:
    assert isinstance(endpoint, ReadsForms), "forms are taken for these endpoints only"
    return endpoint.read_form(form)


def with_input_bound(offer: Offer, input_tokens_max: int, *, min_output_tokens: int, hold_slice_tokens: int) -> Offer:
    """The same call, its input bounded by so many tokens, which are no more than before."""
    request = offer.request._replace(input_tokens_max=input_tokens_max)
    bounds = _ceiling(
        request,
        offer.model,
        offer.price,
        max(route.upstream.price_bp for route in offer.routes),
        min_output_tokens=min_output_tokens,
        slice_tokens=_slice_tokens(request, offer.model, hold_slice_tokens),
    )
    return offer._replace(request=request, ceiling=bounds, is_recounted=True)


def _slice_tokens(request: CallRequest, model: Model, hold_slice_tokens: int) -> int | None:
    """Only what is shown can be counted as it passes, and only while it passes."""
    grows = request.stream and not request.background and request.output is Output.CAPPED and not model.hidden_reasoning
    return hold_slice_tokens if grows else None


def _ceiling(
    request: CallRequest,
    model: Model,
    price: Price,
    upstream_bp: int,
    *,
    min_output_tokens: int,
    slice_tokens: int | None,
) -> Ceiling:
    """Raises CapTooLarge, Unpriced, CostOutOfRange."""
    extra = request.extra_max
    if request.output is Output.MODEL:
        extra = {**extra, Meter.OUTPUT: model.output_tokens_max * request.choices}
    cap = request.output_tokens_cap if request.output is Output.CAPPED else 0
    terms = Terms(request.service_tier, upstream_bp) if request.service_tier or upstream_bp != ONE_BP else STANDARD
    bounds = Bounds(request.input_tokens_max, cap, request.choices, extra, request.outputs, request.passes)
    if not request.alternatives:
        return ceiling(
            price, model, bounds, min_output_tokens=min_output_tokens, slice_tokens=slice_tokens, terms=terms
        )
    found = [
        ceiling(
            price,
            model,
            bounds._replace(extra=without_alternatives(extra, meters, request.alternatives)),
            min_output_tokens=min_output_tokens,
            slice_tokens=slice_tokens,
            terms=terms,
        )
        for meters in priced_alternatives(price, request.alternatives)
    ]
    return max(found, key=lambda one: one.nanos)
