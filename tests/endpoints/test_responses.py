"""A request to the Responses API is bounded from above or refused; golden replies cost what was worked out by hand."""

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.catalogue import Meter
from gateway.endpoints.endpoint import Changes, Endpoint, InvalidRequest, Made, Output
from gateway.endpoints.responses import CompactEndpoint, ResponsesEndpoint
from gateway.endpoints.responses_stream import ResponsesStream
from gateway.errors import Refused
from gateway.request.admit import Offer, admit
from gateway.request.meter import Ending, Seen, meter
from tests.endpoints.golden_responses import GOLDEN_MODEL, GOLDEN_PRICE
from tests.support.gateway import MODEL
from tests.support.offers import ANYONE, hold_of, shelf_of
from tests.support.responses import response_json, stream_events, usage_json

ENDPOINT = ResponsesEndpoint()
SEARCH: dict[str, Any] = {"type": "web_search"}
TOOLS: list[dict[str, Any]] = [
    SEARCH,
    {"type": "file_search"},
    {"type": "code_interpreter", "container": {"type": "auto"}},
]
EVERY_TOOL: dict[str, Any] = {"max_tool_calls": 9, "tools": TOOLS}


def body(**members: Any) -> bytes:
    return orjson.dumps({"model": MODEL, "input": "Say something.", **members})


def offer_of(endpoint: Endpoint = ENDPOINT, **members: Any) -> Offer:
    shelf = shelf_of((GOLDEN_MODEL,), (GOLDEN_PRICE,))
    return admit(ANYONE, endpoint, body(**members), shelf, min_output_tokens=16, hold_slice_tokens=4_096)


def refusal(request: bytes, endpoint: Endpoint = ENDPOINT) -> tuple[str | None, str]:
    with pytest.raises(InvalidRequest) as refused:
        endpoint.read_request(request)
    assert refused.value.message
    return refused.value.param, refused.value.code


def test_they_are_endpoints() -> None:
    endpoints: list[Endpoint] = [ENDPOINT, CompactEndpoint()]
    assert [endpoint.name for endpoint in endpoints] == ["responses", "responses.compact"]


@pytest.mark.parametrize(
    ("members", "read"),
    [
        ({}, (False, None, 1, True, False, None)),
        ({"stream": True, "max_output_tokens": 50}, (True, 50, 1, True, False, None)),
        ({"store": False}, (False, None, 1, False, False, None)),
        ({"store": None, "background": None}, (False, None, 1, True, False, None)),
        ({"background": True, "store": True}, (False, None, 1, True, True, None)),
        ({"previous_response_id": "resp_1"}, (False, None, 1, True, False, "resp_1")),
        ({"max_tool_calls": 3}, (False, None, 1, True, False, None)),
        ({"max_tool_calls": 3, "tools": [SEARCH]}, (False, None, 4, True, False, None)),
    ],
)
def test_what_decides_the_cost(members: dict[str, Any], read: tuple[object, ...]) -> None:
    request = ENDPOINT.read_request(body(**members))
    assert read == (
        request.stream, request.output_tokens_cap, request.passes, request.keeps, request.background, request.follows
    )  # fmt: skip


@pytest.mark.parametrize(
    ("request_body", "refused"),
    [
        (b"", (None, "invalid_json")),
        (b"[]", (None, "invalid_request")),
        (body(model=None), ("model", "invalid_request")),
        (body(input=7), ("input", "invalid_request")),
        (body(input=["text"]), ("input[0]", "invalid_request")),
        (body(instructions=7), ("instructions", "invalid_request")),
        (body(text="json"), ("text", "invalid_request")),
        (body(tools={}), ("tools", "invalid_request")),
        (body(tools=[{"name": "f"}]), ("tools[0]", "invalid_request")),
        (body(service_tier=1), ("service_tier", "invalid_request")),
        (body(previous_response_id=""), ("previous_response_id", "invalid_request")),
        (body(previous_response_id=["resp_1"]), ("previous_response_id", "invalid_request")),
        (body(background=True, store=False), ("store", "invalid_request")),
        *[(body(**{name: "true"}), (name, "invalid_request")) for name in ("stream", "background", "store")],
        *[
            (body(**{name: value}), (name, "invalid_request"))
            for name in ("max_output_tokens", "max_tool_calls")
            for value in (0, -1, 1.5, "5", True, 2**31)
        ],
        (body().replace(b"{", b'{"model":"x",', 1), ("model", "duplicate_member")),
        (body(Background=True), ("background", "duplicate_member")),
        (body().replace(b"{", b'{"st\\u006fre":false,"store":true,', 1), ("store", "duplicate_member")),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(request_body: bytes, refused: tuple[str | None, str]) -> None:
    assert refusal(request_body) == refused


IMAGE = {"type": "input_image", "image_url": "data:image/png;base64," + "QUJD" * 10_000}


@pytest.mark.parametrize(
    ("members", "stored", "unowned"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", None),
        ({"conversation": "conv_1"}, "conversation", "conversation"),
        ({"conversation": {"id": "conv_1"}}, "conversation", "conversation"),
        ({"prompt": {"id": "pmpt_1"}, "tools": []}, "prompt", None),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input", "input"),
        ({"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}, "input", None),
        *[
            ({"input": [{"role": "user", "content": [{"type": "input_file", member: "x"}]}]}, "input", None)
            for member in ("file_id", "file_url", "file_data")
        ],
    ],
)
def test_what_only_the_upstream_has_is_bounded_by_the_context(
    members: dict[str, Any], stored: str, unowned: str | None
) -> None:
    offer = offer_of(max_output_tokens=16, **members)
    assert (offer.request.stored, offer.request.unowned) == (stored, unowned)
    assert offer.ceiling.input_tokens_max == GOLDEN_MODEL.context_tokens_max
    # 400,000 tokens at 2,500 nanos or, as plain input is not all that it may be, at 1,562.5; and 16 at 15,000.
    assert offer.ceiling.nanos == 400_000 * 2_500 + 16 * 15_000


def test_what_works_in_the_background_holds_its_whole_ceiling() -> None:
    """A stream's hold grows as it runs; nobody would be there to let this one grow."""
    growing, whole = offer_of(stream=True).ceiling, offer_of(stream=True, background=True).ceiling
    assert growing.slice is not None
    assert whole.slice is None
    assert whole.first_nanos == whole.nanos > growing.first_nanos


def test_hosted_tools_are_held_for_each_call() -> None:
    offer = offer_of(max_output_tokens=16, **EVERY_TOOL)
    fees = 9 * (10_000_000 + 2_500_000 + 30_000_000)
    assert offer.ceiling.nanos == 10 * 400_000 * 2_500 + 16 * 15_000 + fees
    assert offer.request.extra_max == {Meter.WEB_SEARCHES: 9, Meter.FILE_SEARCHES: 9, "containers/1g": 9}


def test_a_cap_is_set_under_its_only_name() -> None:
    wanted = Changes(include_usage=True, output_tokens_cap=7, cap_member="max_tokens")
    assert ENDPOINT.upstream_body(b'{"model":"m"}', wanted) == b'{"max_output_tokens":7,"model":"m"}'
    assert ENDPOINT.upstream_body(b'{"max_output_tokens":9}', wanted) == b'{"max_output_tokens":7}'
    same = b'{ "model" : "m"}'
    assert ENDPOINT.upstream_body(same, Changes(include_usage=True)) is same


def test_compacting_holds_all_that_the_model_may_write() -> None:
    offer = offer_of(CompactEndpoint(), max_output_tokens=16)
    assert (offer.request.output, offer.request.keeps) == (Output.MODEL, False)
    assert offer.ceiling.nanos > 128_000 * 10_000
    assert isinstance(offer.body, bytes)
    sent = CompactEndpoint().upstream_body(offer.body, Changes(include_usage=True, output_tokens_cap=7))
    assert sent is offer.body
    for member in ("stream", "background"):
        assert refusal(body(**{member: True}), CompactEndpoint())[0] == member


def test_the_end_of_a_broken_stream_is_what_sdks_raise() -> None:
    end = ENDPOINT.error_end({"error": {"message": "No.", "code": "cut_off"}})
    assert end.startswith(b"event: error\ndata: ")
    assert orjson.loads(end.removeprefix(b"event: error\ndata: "))["error"]["code"] == "cut_off"
    assert end.endswith(b"\n\n")


# Replies -------------------------------------------------------------------------------------------------------------


def charged(offer: Offer, reply: dict[str, Any], form: str) -> int:
    """What `meter` makes of a reply, whole or as a stream."""
    if form == "json":
        seen = ENDPOINT.read_reply(orjson.dumps(reply))
        usage, tier, count = seen.usage, seen.service_tier, seen.count_output
    else:
        reader = ENDPOINT.reply_reader("text/event-stream", offer.request)
        assert reader is not None
        # Some upstreams leave the items out of the last event.
        last = {**reply, "output": []} if form == "bare" else reply
        relayed = b"".join(map(reader.feed, stream_events(last, items=reply["output"])))
        assert reader.ended
        assert b'"usage":{' not in relayed
        assert reader.finish()
        usage, tier, count = reader.usage, reader.service_tier, reader.output_tokens_estimate
    charge = meter(offer, hold_of(offer), Seen(Ending.COMPLETED, usage, count, service_tier=tier))
    assert charge.basis == "reported", charge
    return charge.cost_nanos


@pytest.mark.parametrize("text", [b"<html>", b'{"usage":{"input_tokens":1},"x":NaN}', b"event: x\ndata: {}\n\n"])
def test_a_reply_that_is_no_json(text: bytes) -> None:
    seen = ENDPOINT.read_reply(text)
    assert (seen.usage is not None) == (b"NaN" in text)


# Whatever is asked and used ------------------------------------------------------------------------------------------

requests = st.fixed_dictionaries(
    {"input": st.one_of(st.text(max_size=200), st.just([{"role": "user", "content": [IMAGE]}]))},
    optional={
        "stream": st.booleans(),
        "max_output_tokens": st.integers(1, 128_000),
        "max_tool_calls": st.just(7),
        "instructions": st.text(max_size=50),
        "previous_response_id": st.just("resp_1"),
        "service_tier": st.sampled_from(["auto", "default", "flex", "priority", "fast"]),
        "prompt_cache_options": st.sampled_from([{"ttl": "12h"}, {"ttl": "30m"}]),
        "tools": st.lists(st.sampled_from([*TOOLS, {"type": "function", "name": "f"}]), max_size=3),
    },
)


@settings(max_examples=80, deadline=None)
@given(members=requests, data=st.data())
def test_no_truthful_usage_costs_more_than_the_ceiling(members: dict[str, Any], data: st.DataObject) -> None:
    try:
        offer = offer_of(**members)
    except Refused:
        return
    draw, request = data.draw, offer.request
    tokens_in = draw(st.integers(0, min(request.input_tokens_max or 10**9, 400_000 * request.passes)))
    if request.extra_max.get(Meter.CACHE_WRITE_12H):
        tokens_in = min(tokens_in, request.extra_max[Meter.CACHE_WRITE_12H])
    written = draw(st.integers(0, tokens_in))
    long = draw(st.integers(0, written)) if Meter.CACHE_WRITE_12H in request.extra_max else 0
    usage = {
        **usage_json(tokens_in, draw(st.integers(0, offer.ceiling.output_tokens_max))),
        "input_tokens_details": {
            "cached_tokens": draw(st.integers(0, tokens_in - written)),
            "cache_write_tokens": written,
            "cache_write_tokens_details": {"ttl_12h_tokens": long},
        },
    }
    searches = draw(st.integers(0, request.extra_max.get(Meter.WEB_SEARCHES, 0)))
    tier = request.service_tier or "default"
    reply = response_json(usage=usage, service_tier=tier, tool_usage={"web_search": {"num_requests": searches}})
    if tokens_in or usage["output_tokens"]:
        assert charged(offer, reply, "json") <= offer.ceiling.nanos


@pytest.mark.parametrize("status", [[], {}, 5, True])
def test_a_status_that_is_none_says_that_it_goes_on(status: object) -> None:
    seen = ENDPOINT.read_reply(orjson.dumps({"id": "resp_1", "status": status}))
    assert seen.made == Made("resp_1", is_ended=False)
    stream = ResponsesStream()
    stream.feed(b"data: " + orjson.dumps({"type": status, "response": {"id": "resp_1"}}) + b"\n\n")
    assert not stream.ended
