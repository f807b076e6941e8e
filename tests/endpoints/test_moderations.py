"""Moderations: one request each, and a price for it, or no call."""

from typing import Any

import orjson
import pytest

from gateway.core.catalogue import Meter, Rates
from gateway.endpoints.endpoint import Changes, Endpoint, InvalidRequest
from gateway.endpoints.moderations import DEFAULT_MODEL, ModerationsEndpoint
from gateway.errors import ModelNotFound
from gateway.request.admit import Offer, admit
from gateway.request.meter import Ending, Seen, meter
from tests.support.offers import ANYONE, WORKING_MODEL, hold_of, price_of, shelf_of

ENDPOINT: Endpoint = ModerationsEndpoint()
FLAGGED = b'{"id":"modr-1","model":"m","results":[{"flagged":false}]}'


def body(**members: Any) -> bytes:
    return orjson.dumps({"input": "Say something."} | members)


def offer(rates: Rates) -> Offer:
    shelf = shelf_of(prices=[price_of(WORKING_MODEL.name, rates)])
    request = body(model=WORKING_MODEL.name)
    return admit(ANYONE, ENDPOINT, request, shelf, min_output_tokens=16, hold_slice_tokens=4_096)


def test_the_model_has_a_default() -> None:
    assert ENDPOINT.read_request(body()).model == DEFAULT_MODEL
    assert ENDPOINT.read_request(body(model="m", input=[{"type": "text", "text": "x"}])).model == "m"


@pytest.mark.parametrize(
    ("members", "param"),
    [({"input": None}, "input"), ({"input": []}, "input"), ({"input": 5}, "input"), ({"model": 5}, "model")],
)
def test_what_is_malformed_is_refused(members: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ENDPOINT.read_request(body(**members))
    assert caught.value.param == param


@pytest.mark.parametrize(("picos", "nanos"), [(0, 0), (2_000_000, 2_000)])
def test_a_request_is_the_whole_charge(picos: int, nanos: int) -> None:
    offered = offer({Meter.REQUESTS: picos})
    seen = ENDPOINT.read_reply(FLAGGED)
    charge = meter(offered, hold_of(offered), Seen(Ending.COMPLETED, seen.usage, seen.count_output))
    assert (charge.basis, charge.cost_nanos, charge.usage) == ("reported", nanos, {"requests": 1})
    assert offered.ceiling.nanos == nanos


def test_a_model_priced_by_tokens_only_is_refused() -> None:
    with pytest.raises(ModelNotFound) as refused:
        offer({Meter.INPUT: 1_000, Meter.OUTPUT: 4_000})
    assert refused.value.code == "model_not_priced"


def test_the_body_names_another_model_only_where_it_must() -> None:
    before = body()
    assert ENDPOINT.upstream_body(before, Changes()) is before
    assert orjson.loads(ENDPOINT.upstream_body(before, Changes("n")))["model"] == "n"


@pytest.mark.parametrize("reply", [b"", b"<html>", b"[]", b"{}", b'{"results":5}'])
def test_a_reply_without_results_is_none(reply: bytes) -> None:
    seen = ENDPOINT.read_reply(reply)
    assert (seen.usage, seen.count_output()) == (None, 0)
    assert ENDPOINT.read_reply(b'{"error":{"message":"m"}}').failed
