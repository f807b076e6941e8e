"""Failures and our own replies as HTTP."""

import orjson
import pytest

from gateway.errors import Failure, InsufficientFunds, MethodNotAllowed, Overloaded
from gateway.web.envelope import failure_response, json_response
from tests.support.refusals import UUID7
from tests.test_errors import EXPECTED, LEAVES


@pytest.mark.parametrize("name", [*EXPECTED, "Failure"])
def test_every_failure_is_an_envelope_with_an_id(name: str) -> None:
    failure = (LEAVES | {"Failure": Failure})[name]()
    response = failure_response(failure)
    assert response.status == failure.status
    assert response.headers["Content-Type"] == "application/json"
    assert UUID7.fullmatch(response.headers["x-request-id"])
    assert isinstance(response.body, bytes)
    assert set(orjson.loads(response.body)["error"]) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"] != failure_response(failure).headers["x-request-id"]


def test_a_failure_brings_its_headers_and_details() -> None:
    response = failure_response(MethodNotAllowed(headers={"Allow": "GET", "X-Request-Id": "mine"}))
    assert (response.headers["Allow"], response.headers["x-request-id"]) == ("GET", "mine")
    assert len(response.headers.getall("x-request-id")) == 1
    assert failure_response(Overloaded()).headers["Retry-After"] == "2"
    short = failure_response(InsufficientFunds(details={"required": "1.5"}))
    assert isinstance(short.body, bytes)
    assert orjson.loads(short.body)["error"]["required"] == "1.5"
    assert short.headers["x-should-retry"] == "false"


def test_a_document_of_our_own_is_json_with_an_id() -> None:
    response = json_response({"a": ["\u20ac"]}, status=503)
    assert (response.status, response.body) == (503, '{"a":["\u20ac"]}'.encode())
    assert response.headers["Content-Type"] == "application/json"
    assert UUID7.fullmatch(response.headers["x-request-id"])
