"""A request that is passed on: nothing of it is read, and any reply passes whole."""

import pytest

from gateway.core.catalogue import Meter
from gateway.endpoints.endpoint import Changes, Endpoint, Limits, Output
from gateway.endpoints.passed import PassedEndpoint, PassedReply

ENDPOINT = PassedEndpoint("m")


def test_any_body_is_one_request_of_the_rules_model() -> None:
    endpoint: Endpoint = ENDPOINT
    for body in (b"", b"\x00\xff", b'{"model":"other","n":5}'):
        request = endpoint.read_request(body)
        assert (request.model, request.input_tokens_max, request.output) == ("m", 0, Output.NONE)
        assert endpoint.upstream_body(body, Changes("x", True, 1, "n")) is body


def test_any_reply_is_one_request_whatever_it_says_of_itself() -> None:
    seen = ENDPOINT.read_reply(b'{"usage":{"prompt_tokens":5},"error":{}}')
    assert (seen.usage, seen.failed) == ({Meter.REQUESTS: 1}, False)
    reading = ENDPOINT.read_usage({"prompt_tokens": -5}, Limits(0, 0))
    assert reading is not None
    assert not reading.quantities  # the one is the price's to add
    assert ENDPOINT.reply_reader("", ENDPOINT.read_request(b"")) is None


@pytest.mark.parametrize("is_events", [False, True])
def test_a_reply_passes_and_its_end_waits(is_events: bool) -> None:
    reader = ENDPOINT.reply_reader("text/event-stream; charset=utf-8" if is_events else "audio/x", ENDPOINT._request)
    assert isinstance(reader, PassedReply)
    pieces = [reader.feed(data) for data in (b"a", b"b", b"c")]
    assert pieces == ([b"a", b"b", b"c"] if is_events else [b"", b"a", b"b"])
    assert b"".join([*pieces, reader.finish()]) == b"abc"
    assert reader.usage == {Meter.REQUESTS: 1}
    assert reader.output_tokens_estimate() == 0
    assert ENDPOINT.error_end({"error": {}}) == b'data: {"error":{}}\n\n'
