"""Step 2. What is asked for, who may ask for it, where it goes and what it can cost at most."""

import math
from dataclasses import replace
from typing import Any

import pytest

from gateway.core.catalogue import Meter, Model, Tier
from gateway.core.ceiling import Slice
from gateway.endpoints.chat import ChatEndpoint
from gateway.errors import MalformedRequest, ModelNotFound
from gateway.request.admit import Shelf, admit
from gateway.request.authenticate import Principal
from tests.support.gateway import CONTEXT, MODEL, OUTPUT, RATES
from tests.support.offers import ANYONE, WORKING_MODEL, body_of, offer_of, price_of, shelf_of, upstream_of

# The body of `offer_of()` is 78 bytes; the template of a chat is bounded by 256 tokens.
INPUT_MAX = 78 + 256


def test_a_ceiling_is_the_body_and_the_cap_at_their_prices() -> None:
    offer = offer_of(max_tokens=100)
    assert offer.ceiling.input_tokens_max == 78 + len(',"max_tokens":100') + 256
    assert offer.ceiling.nanos == offer.ceiling.minimum_nanos == offer.ceiling.input_tokens_max + 4 * 100
    assert offer_of(max_tokens=100, n=3).ceiling.nanos == offer.ceiling.input_tokens_max + len(',"n":3') + 12 * 100


def test_without_a_cap_the_model_is_the_ceiling_and_may_be_lowered() -> None:
    offer = offer_of()
    assert offer.ceiling.nanos == INPUT_MAX + 4 * OUTPUT
    assert offer.ceiling.minimum_nanos == INPUT_MAX + 4 * 16
    assert offer.ceiling.output_tokens_max == OUTPUT


def test_a_model_that_says_little_has_a_small_minimum() -> None:
    shelf = shelf_of([replace(WORKING_MODEL, output_tokens_max=5)])
    offer = offer_of(shelf)
    assert offer.ceiling.nanos == offer.ceiling.minimum_nanos == INPUT_MAX + 4 * 5


@pytest.mark.parametrize(
    ("members", "hidden_reasoning", "is_sliced"),
    [
        ({"stream": True}, False, True),
        ({"stream": True, "n": 2, "max_tokens": None}, False, True),
        ({"stream": True}, True, False),
        ({"stream": True, "max_tokens": 9_000}, False, False),
        ({"stream": True, "max_completion_tokens": 9_000}, False, False),
        ({"stream": False}, False, False),
        ({}, False, False),
    ],
)
def test_only_a_stream_whose_output_can_be_counted_is_held_by_slices(
    members: dict[str, Any], hidden_reasoning: bool, is_sliced: bool
) -> None:
    offer = offer_of(shelf_of([replace(WORKING_MODEL, hidden_reasoning=hidden_reasoning)]), **members)
    choices = members.get("n", 1)
    portion = Slice(4_096, 16, offer.ceiling.input_tokens_max + 4 * 4_096 * choices)
    assert offer.ceiling.slice == (portion if is_sliced else None)
    if not is_sliced:
        assert offer.ceiling.first_nanos == offer.ceiling.nanos


def test_a_prompt_is_bounded_by_the_context() -> None:
    shelf = shelf_of([replace(WORKING_MODEL, context_tokens_max=100)])
    assert offer_of(shelf).ceiling.input_tokens_max == 100


def test_the_dearest_tier_within_reach_counts() -> None:
    tier = Tier(300, {Meter.INPUT: 7_000, Meter.OUTPUT: 9_000})
    shelf = shelf_of(prices=[price_of(tiers=(tier,))])
    assert offer_of(shelf, max_tokens=1).ceiling.nanos == 7 * (INPUT_MAX + len(',"max_tokens":1')) + 9


@pytest.mark.parametrize("cap", [OUTPUT + 1, 2**31 - 1])
def test_a_cap_above_the_models_own_is_refused(cap: int) -> None:
    assert offer_of(max_tokens=OUTPUT).ceiling.output_tokens_max == OUTPUT
    with pytest.raises(MalformedRequest) as refused:
        offer_of(max_tokens=cap)
    assert refused.value.code == "output_cap_too_large"
    assert str(OUTPUT) in refused.value.message


def test_what_cannot_be_read_is_refused_with_its_member() -> None:
    with pytest.raises(MalformedRequest) as refused:
        offer_of(n=0)
    assert (refused.value.code, refused.value.param) == ("invalid_request", "n")


@pytest.mark.parametrize(
    "shelf",
    [
        shelf_of([]),
        shelf_of(prices=[]),
        shelf_of(prices=[price_of("another")]),
        shelf_of(upstreams=[upstream_of(models=("gpt-*", "free-*"))]),
    ],
    ids=["no model", "no price", "another's price", "no upstream"],
)
def test_a_model_without_price_or_upstream_is_not_on_offer(shelf: Shelf) -> None:
    assert shelf.count == 0
    with pytest.raises(ModelNotFound):
        offer_of(shelf)


def test_a_meter_without_a_rate_is_not_priced() -> None:
    """Nothing is free because nobody said what it costs; a rate of 0 is a rate."""
    shelf = shelf_of(prices=[price_of(rates={Meter.INPUT: 1_000})])
    with pytest.raises(ModelNotFound) as refused:
        offer_of(shelf)
    assert refused.value.code == "model_not_priced"
    free = shelf_of(prices=[price_of(rates={Meter.INPUT: 0, Meter.OUTPUT: 0})])
    assert offer_of(free).ceiling.nanos == 0


def test_a_price_that_the_ledger_cannot_hold_is_refused() -> None:
    shelf = shelf_of([Model(MODEL, 10**12, 10**12)], [price_of(rates={Meter.INPUT: 10**12, Meter.OUTPUT: 10**12})])
    with pytest.raises(ModelNotFound):
        offer_of(shelf)


@pytest.mark.parametrize(
    ("allowed", "asked", "works"),
    [
        (None, MODEL, True),
        (None, "best", True),
        ({MODEL}, MODEL, True),
        ({MODEL}, "best", True),
        ({"best"}, "best", True),
        ({"best"}, MODEL, False),
        ({"other"}, MODEL, False),
        (set(), MODEL, False),
    ],
)
def test_a_key_may_use_what_it_names(allowed: set[str] | None, asked: str, works: bool) -> None:
    shelf = shelf_of(aliases={"best": MODEL})
    principal = Principal("wallet", "key", None if allowed is None else frozenset(allowed))
    names = [name for name, _ in shelf.names(principal)]
    assert (asked in names) == works
    if works:
        assert offer_of(shelf, principal, model=asked).model == WORKING_MODEL
    else:
        with pytest.raises(ModelNotFound) as refused:
            offer_of(shelf, principal, model=asked)
        assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


def test_a_models_own_name_wins_over_an_alias() -> None:
    other = replace(WORKING_MODEL, name="other")
    shelf = shelf_of([WORKING_MODEL, other], aliases={"other": MODEL, "nothing": "unknown"})
    assert offer_of(shelf, model="other").model == other
    assert [name for name, _ in shelf.names(ANYONE)] == ["other", MODEL]
    assert shelf.find("nothing") is None


def test_upstreams_are_tried_in_their_order_under_their_names() -> None:
    shelf = shelf_of(
        upstreams=[
            upstream_of("first", models=("gpt-*",)),
            upstream_of("second", models=("*-model",), rename={MODEL: "vendor/test"}),
            upstream_of("third", models=("test-model",)),
        ]
    )
    offer = offer_of(shelf)
    assert [(route.upstream.name, route.model) for route in offer.routes] == [
        ("second", "vendor/test"),
        ("third", MODEL),
    ]
    assert offer.price == price_of(rates=RATES)


def test_the_body_goes_along_as_it_came() -> None:
    body = body_of(max_tokens=5)
    offer = admit(ANYONE, ChatEndpoint(), body, shelf_of(), min_output_tokens=16, hold_slice_tokens=4_096)
    assert offer.body is body


FILE = [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}]


def test_what_is_stored_upstream_is_held_at_the_context_or_refused() -> None:
    body = body_of(messages=FILE, max_tokens=1)
    limits: dict[str, Any] = {"min_output_tokens": 16, "hold_slice_tokens": 4_096}
    offer = admit(ANYONE, ChatEndpoint(), body, shelf_of(), **limits)
    assert offer.ceiling.nanos == CONTEXT + offer.ceiling.input_tokens_max + 4
    with pytest.raises(MalformedRequest) as refused:
        admit(ANYONE, ChatEndpoint(), body, shelf_of(), stored_context="refuse", **limits)
    assert (refused.value.code, refused.value.param) == ("not_metered", "messages[0].content[0]")
    admit(ANYONE, ChatEndpoint(), body_of(), shelf_of(), stored_context="refuse", **limits)


@pytest.mark.parametrize(
    ("asked", "auto", "share"),
    [
        (None, "default", 1.0),
        (None, "priority", 2.0),
        ("auto", "priority", 2.0),
        ("default", "priority", 1.0),
        ("flex", "priority", 0.5),
        # The reply may still name the default: the dearer is held.
        ("auto", "flex", 1.0),
        (None, "ultrafast", 1.0),
    ],
)
def test_a_tier_of_service_multiplies_the_ceiling(asked: str | None, auto: str, share: float) -> None:
    price = replace(price_of(), multipliers={"priority": 20_000, "flex": 5_000})
    body = body_of(service_tier=asked, max_tokens=10)
    offer = admit(
        ANYONE,
        ChatEndpoint(),
        body,
        shelf_of(prices=[price]),
        min_output_tokens=16,
        hold_slice_tokens=4_096,
        auto_service_tier=auto,
    )
    assert offer.ceiling.nanos == math.ceil(share * (len(body) + 256 + 40))


@pytest.mark.parametrize("tier", ["priority", "AUTO", "fast"])
def test_a_tier_of_service_without_a_price_is_refused(tier: str) -> None:
    with pytest.raises(MalformedRequest) as refused:
        offer_of(service_tier=tier)
    assert (refused.value.code, refused.value.param) == ("service_tier_not_priced", "service_tier")
