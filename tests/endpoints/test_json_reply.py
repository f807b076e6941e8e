import pytest

from gateway.core.sse import BOM
from gateway.endpoints.json_reply import parse_reply, usage_in


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"1", b"<html></html>", b'{"a":', b"\xff"])
def test_what_is_no_object_is_none(body: bytes) -> None:
    assert parse_reply(body) is None


def test_an_object_is_read_with_and_without_a_byte_order_mark() -> None:
    assert parse_reply(b'{"a":1}') == parse_reply(BOM + b'{"a":1}') == {"a": 1}


@pytest.mark.parametrize("usage", [None, 1, "", [], [{"input_tokens": 1}]])
def test_only_an_object_is_usage(usage: object) -> None:
    assert usage_in({"usage": usage}) is None
    assert usage_in({"usage": {"input_tokens": 1}}) == {"input_tokens": 1}
    assert usage_in({}) is None
