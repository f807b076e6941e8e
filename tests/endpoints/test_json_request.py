"""What every JSON request has in common: deciding members once, each of its type, and changes that leave the rest."""

from typing import Any

import orjson
import pytest

from gateway.endpoints.endpoint import InvalidRequest
from gateway.endpoints.json_request import (
    MEMBERS_MAX,
    Names,
    cap_members,
    changed_body,
    read_flag,
    read_model,
    read_object,
    read_whole,
    refuse_present,
)

NAMES = Names({"model", "size"}, {"Seed"})


def refused(call: Any, *arguments: Any, **named: Any) -> tuple[str | None, str]:
    with pytest.raises(InvalidRequest) as caught:
        call(*arguments, **named)
    return caught.value.param, caught.value.code


@pytest.mark.parametrize(
    ("body", "refusal"),
    [
        (b'{"size":1,"size":1}', ("size", "duplicate_member")),
        (b'{"Size":1}', ("size", "duplicate_member")),
        (b'{"size":1,"\\u0073ize":2}', ("size", "duplicate_member")),
        (orjson.dumps({str(number): 0 for number in range(MEMBERS_MAX + 1)}), (None, "invalid_request")),
        (b"[]", (None, "invalid_request")),
        (b"{", (None, "invalid_json")),
    ],
)
def test_a_deciding_member_is_there_once(body: bytes, refusal: tuple[str | None, str]) -> None:
    assert refused(read_object, body, NAMES) == refusal


def test_other_members_may_be_spelled_as_they_like() -> None:
    assert read_object(b'{"Seed":1,"x":{"size":2,"SIZE":3},"size":4}', NAMES)["size"] == 4


@pytest.mark.parametrize("value", [0, -1, 8, 1.0, True, "3", [3]])
def test_a_whole_number_is_within_its_limits(value: object) -> None:
    assert refused(read_whole, {"n": value}, "n", 7) == ("n", "invalid_request")
    assert read_whole({"n": 0}, "n", 7, minimum=0) == 0
    assert read_whole({"n": 7}, "n", 7) == 7
    assert read_whole({"n": None}, "n", 7) is None


def test_a_model_may_have_a_default() -> None:
    assert read_model({}, "standard") == read_model({"model": None}, "standard") == "standard"
    assert read_model({"model": "m"}, "standard") == "m"
    for request in ({}, {"model": ""}, {"model": 1}):
        assert refused(read_model, request) == ("model", "invalid_request")
    assert refused(read_model, {"model": ""}, "standard") == ("model", "invalid_request")


def test_a_flag_is_true_or_false() -> None:
    assert [read_flag(request, "f") for request in ({}, {"f": None}, {"f": False}, {"f": True})] == [False] * 3 + [True]
    assert refused(read_flag, {"f": 1}, "f") == ("f", "invalid_request")


def test_what_has_no_meter_is_refused_unless_null() -> None:
    refuse_present({"a": None, "c": 1}, frozenset({"a", "b"}))
    assert refused(refuse_present, {"b": 0}, frozenset({"a", "b"})) == ("b", "not_metered")


def test_a_body_is_changed_only_where_it_must_be() -> None:
    body = b'{ "model":"m", "cap" : 5}'
    assert changed_body(body, model="m") is body
    changed = changed_body(
        body, model="n", members=lambda before: cap_members(before, frozenset({"cap"}), "cap", "cap", 3)
    )
    assert changed == b'{ "model":"n", "cap" : 3}'
    assert refused(changed_body, b"[]", model="n") == (None, "invalid_json")
