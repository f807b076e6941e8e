"""What a reply says of itself: golden replies cost what was worked out by hand."""

from typing import Any

import orjson
import pytest

from gateway.core.usage import InvalidUsage, Limits
from gateway.endpoints.endpoint import Made
from tests.endpoints.golden_responses import GOLDEN, Golden
from tests.endpoints.test_responses import ENDPOINT, EVERY_TOOL, charged, offer_of
from tests.support.responses import RESPONSE_ID, message_item, response_json, usage_json


@pytest.mark.parametrize("form", ["json", "stream", "bare"])
@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden.name)
def test_golden_replies_cost_what_was_worked_out_by_hand(golden: Golden, form: str) -> None:
    offer = offer_of(**EVERY_TOOL, **golden.request)
    assert charged(offer, response_json(usage=golden.usage, **golden.response), form) == golden.charge
    assert golden.charge <= offer.ceiling.nanos


@pytest.mark.parametrize(
    "members",
    [
        {"tool_usage": {"web_search": {"num_requests": -1}}},
        {"tool_usage": {"web_search": {"num_requests": "2"}}},
        {"tool_usage": {"web_search": {"num_requests": 2**60}}},
        {"tool_usage": {"image_gen": {"total_tokens": 5}}},
    ],
)
def test_fees_that_cannot_be_true_are_no_usage(members: dict[str, Any]) -> None:
    seen = ENDPOINT.read_reply(orjson.dumps(response_json(usage=usage_json(1, 1), **members)))
    assert seen.usage is not None
    with pytest.raises(InvalidUsage):
        ENDPOINT.read_usage(seen.usage, Limits(100, 100))


@pytest.mark.parametrize(
    ("reply", "made", "failed", "tokens"),
    [
        (response_json(output=[message_item("Say something.")]), Made(RESPONSE_ID, True), False, 4),
        (response_json(status="queued"), Made(RESPONSE_ID, False), False, 0),
        (response_json(status="in_progress"), Made(RESPONSE_ID, False), False, 0),
        (response_json(status="cancelled"), Made(RESPONSE_ID, True), False, 0),
        (response_json(status="failed", error={"code": "x"}), Made(RESPONSE_ID, True), True, 0),
        ({"error": {"message": "No."}}, None, True, 0),
        ({"id": "x" * 257}, None, False, 0),
        ([], None, False, 0),
    ],
)
def test_what_a_reply_says_of_itself(reply: object, made: Made | None, failed: bool, tokens: int) -> None:
    seen = ENDPOINT.read_reply(orjson.dumps(reply))
    assert (seen.usage, seen.made, seen.failed, seen.count_output()) == (None, made, failed, tokens)
