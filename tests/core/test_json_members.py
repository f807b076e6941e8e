"""Members are found and set exactly where a full parse would find them, and nothing else moves."""

from collections.abc import Mapping
from itertools import pairwise
from time import perf_counter

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.json_members import (
    NAME_BYTES_MAX,
    MalformedJson,
    MemberScanner,
    duplicate_member,
    member_values,
    parse,
    with_members,
)

NAMES = frozenset({"a", "model", "usage"})
# Texts with everything that could be taken for structure.
TEXT = st.text(st.sampled_from('abc{}[],:"\\ \n\té🙂'), max_size=8)
NAME = st.one_of(st.sampled_from(("a", "model", "usage", "stream_options")), TEXT)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(-1e300, 1e300), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=20,
)  # fmt: skip
SPACE = st.text(st.sampled_from(" \t\r\n"), max_size=3).map(str.encode)


@st.composite
def spelled(draw: st.DrawFn) -> tuple[dict[str, object], bytes]:
    """An object, and its JSON with white space and escapes wherever they may be."""
    members = draw(st.dictionaries(NAME, JSON, max_size=6))
    parts = []
    for name, value in members.items():
        name_bytes = orjson.dumps(name)
        if draw(st.booleans()) and name.isascii() and name.isalpha():
            name_bytes = b'"%b"' % b"".join(b"\\u%04x" % ord(letter) for letter in name)
        value_bytes = orjson.dumps(value, option=orjson.OPT_INDENT_2 if draw(st.booleans()) else None)
        parts.append(b"%b%b%b:%b%b%b" % (draw(SPACE), name_bytes, draw(SPACE), draw(SPACE), value_bytes, draw(SPACE)))
    return members, draw(SPACE) + b"{" + (b",".join(parts) or draw(SPACE)) + b"}" + draw(SPACE)


@settings(max_examples=150, deadline=None)
@given(spelled=spelled(), values=st.dictionaries(st.sampled_from(("model", "new", "stream_options", "é")), JSON))
def test_with_members_changes_what_a_parse_would_change(
    spelled: tuple[dict[str, object], bytes], values: dict[str, object]
) -> None:
    members, body = spelled
    changed = with_members(body, values)
    assert orjson.loads(changed) == orjson.loads(body) | values
    assert with_members(changed, values) == changed
    # Every other byte is where it was: with the members set back, the body is back.
    before = {name: orjson.Fragment(raw) for name, raw in member_values(body, frozenset(values)).items()}
    if values.keys() <= members.keys():
        assert with_members(changed, before) == body


@settings(max_examples=150, deadline=None)
@given(spelled=spelled(), cuts=st.lists(st.floats(0, 1, allow_nan=False), max_size=20))
def test_scanner_finds_what_a_parse_finds_at_any_split(
    spelled: tuple[dict[str, object], bytes], cuts: list[float]
) -> None:
    _, body = spelled
    offsets = [0, *sorted(int(at * len(body)) for at in cuts), len(body)]
    wanted = {name: value for name, value in orjson.loads(body).items() if name in NAMES}
    by_cuts = [body[start:end] for start, end in pairwise(offsets)]
    for reads in (by_cuts, [body], [body[at : at + 1] for at in range(len(body))]):
        scanner = scanned(reads)
        assert (scanner.complete, scanner.malformed) == (True, False)
        assert {name: orjson.loads(raw) for name, raw in scanner.values.items()} == wanted
        assert scanner.values == member_values(body, NAMES)


def scanned(reads: list[bytes], value_bytes_max: int = 65_536) -> MemberScanner:
    scanner = MemberScanner(NAMES, value_bytes_max)
    for read in reads:
        scanner.feed(read)
    return scanner


@pytest.mark.parametrize(
    ("body", "members", "changed"),
    [
        (b"{}", {"a": 1}, b'{"a":1}'),
        (b" { } ", {"a": 1}, b' {"a":1 } '),
        (b'{"b":2}', {"a": 1, "c": [3]}, b'{"a":1,"c":[3],"b":2}'),
        (b'{ "a" : 0 , "b":2}', {"a": 1}, b'{ "a" : 1 , "b":2}'),
        (b'{"b":{"a":0},"a":[{"a":0}]}', {"a": 1}, b'{"b":{"a":0},"a":1}'),
        (b'{"b":{"a":0}}', {"a": 1}, b'{"a":1,"b":{"a":0}}'),
        (b'{"b":"\\"a\\":0","\\u0061":"}"}', {"a": None}, b'{"b":"\\"a\\":0","\\u0061":null}'),
        (b'{"a":1,"a":2}', {"a": 3}, b'{"a":3,"a":3}'),
        (b'{"a\\\\":1}', {"a": 3}, b'{"a":3,"a\\\\":1}'),
        (b'{"a":-1.5e+3,"b":""}', {"a": 3}, b'{"a":3,"b":""}'),
        (b'{"x":' + b"[" * 50 + b"]" * 50 + b',"a":0}', {"a": 1}, b'{"x":' + b"[" * 50 + b"]" * 50 + b',"a":1}'),
    ],
)
def test_with_members(body: bytes, members: Mapping[str, object], changed: bytes) -> None:
    assert with_members(body, members) == changed


def test_with_no_members_is_the_same_object() -> None:
    body = b'{"a":1}'
    assert with_members(body, {}) is body


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"model":1,"model":2}', "model"),
        (b'{"model":1,"mod\\u0065l":2}', "model"),
        (b'{"Model":1,"model":2}', "model"),
        (b'{"u\xc5\xbfage":1,"usage":2}', "usage"),
        (b'{"\\u017fage":1,"\\u017Fage":2,"u\\u017fage":1,"us\\u0061ge":0}', "usage"),
        (b'{"model":1,"b":{"model":2},"c":["model","model"]}', None),
        (b'{"b":1,"b":2}', None),
        (b'{"model\\"":1,"model":2}', None),
        (b"{}", None),
    ],
)
def test_duplicate_member(body: bytes, name: str | None) -> None:
    assert duplicate_member(body, NAMES) == name


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"[]",
        b"1",
        b"{",
        b'{"a"}',
        b'{"a":}',
        b'{"a":1',
        b'{"a":[1}',
        b"{a:1}",
        b'{"a":1 "b":2}',
        b'{"a":{"}',
    ],
)
def test_malformed(body: bytes) -> None:
    with pytest.raises(MalformedJson):
        duplicate_member(body, NAMES)
    assert not scanned([body]).complete


@pytest.mark.parametrize(
    "body", [b"[]", b'"a"', b"1", b"{a:1}", b'{"a"}', b'{"a":}', b'{"a":1,}', b'{"a":1 "b"', b"{}x", b"{,"]
)
def test_scanner_says_malformed_and_reads_no_more(body: bytes) -> None:
    scanner = scanned([body, b'"usage":1}'])
    assert scanner.malformed
    assert not scanner.complete
    assert "usage" not in scanner.values


@pytest.mark.parametrize("split", [1, 7, 10_000])
def test_scanner_keeps_no_value_over_its_limit(split: int) -> None:
    body = b'{"a":"' + b"x" * 99 + b'","usage":"' + b"x" * 98 + b'","model":[' + b"1," * 60 + b'1],"usage":"12"}'
    scanner = scanned([body[at : at + split] for at in range(0, len(body), split)], value_bytes_max=100)
    assert scanner.values == {"usage": b'"12"'}
    assert scanner.complete


def test_a_value_over_the_limit_hides_an_earlier_one() -> None:
    # The last of two counts; an old value must not pass for it.
    assert scanned([b'{"a":1,"a":"' + b"x" * 99 + b'"}'], value_bytes_max=10).values == {}


def test_scanner_bounds_a_name() -> None:
    name = b'"' + b"a" * 10 * NAME_BYTES_MAX + b'"'
    scanner = scanned([b"{", *[name[at : at + 100] for at in range(0, len(name), 100)], b':1,"a":2}'])
    assert scanner.values == {"a": b"2"}


def test_long_strings_and_lists_cost_no_step_each() -> None:
    image = b'{"data":[{"b64_json":"' + b"QUJD" * 1_000_000 + b'"}],"usage":{"total_tokens":3}}'
    floats = b'{"data":[{"embedding":[' + b",".join([b"-0.0123456"] * 400_000) + b']}],"usage":{"total_tokens":3}}'
    for body in (image, floats):
        started = perf_counter()
        scanner = scanned([body[at : at + 65_536] for at in range(0, len(body), 65_536)])
        # About 10 ms; a step per byte or per number would take over a second.
        assert perf_counter() - started < 0.5
        assert scanner.values == {"usage": b'{"total_tokens":3}'}


def test_tangled_nesting_is_given_up_in_bounded_time() -> None:
    body = b'{"x":[' + b",".join([b"[" * 15 + b"]" * 15] * 50_000) + b'],"model":1,"model":2}'
    started = perf_counter()
    with pytest.raises(MalformedJson):
        duplicate_member(body, NAMES)
    assert perf_counter() - started < 3


def test_deep_nesting_does_not_recurse() -> None:
    depth = 1_000_000
    scanner = scanned([b'{"x":' + b"[" * depth, b"]" * depth + b',"a":1}'])
    assert scanner.values == {"a": b"1"}
    assert scanner.complete


@pytest.mark.parametrize("split", [1, 10, 10_000])
def test_deep_values_end_where_they_end(split: int) -> None:
    deep = b'[{"]":[1,[], "\\\\"]},["}",{}],' * 40 + b'"a"' + b"]" * 40
    body = b'{"x":%b,"a":%b,"usage":2}' % (deep, deep)
    assert scanned([body[at : at + split] for at in range(0, len(body), split)]).values == {"a": deep, "usage": b"2"}
    assert member_values(body, NAMES) == {"a": deep, "usage": b"2"}
    assert orjson.loads(body)["usage"] == 2


@pytest.mark.parametrize(
    ("document", "value"),
    [
        (b'"\\ud83d"', "\ufffd"),
        (b'"\\uD83D\\uDE42 \\udE42"', "\ufffd\ufffd \ufffd"),
        (b'"\\\\ud83d \\ud83d"', "\\ufffd \ufffd"),
        (b'{"a":"\\ud83d\\ude42"}', {"a": "🙂"}),
    ],
)
def test_half_a_surrogate_pair_can_be_read(document: bytes, value: object) -> None:
    assert parse(document) == value


@pytest.mark.parametrize("document", [b"", b"\xff", b"NaN", b'{"a":"\\ud83d"', b"\xef\xbb\xbf{}", b"[" * 5_000])
def test_what_is_not_json_is_refused(document: bytes) -> None:
    with pytest.raises(orjson.JSONDecodeError):
        parse(document)
