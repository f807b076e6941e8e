"""What cannot be served: a clear error in OpenAI's envelope, nothing sent upstream, nothing held, nothing charged.

Paths and methods: test_routes.py. HTTP itself: test_server.py.
"""

import gzip
import zlib

import orjson
import pytest

from gateway.db import keys
from tests.support.gateway import MODEL
from tests.support.rawhttp import exchange, request
from tests.support.refusals import BODY, MESSAGES, PATH, STRICT_BODY_BYTES_MAX, check_refused, post
from tests.support.shop import Shop

pytestmark = pytest.mark.asyncio(loop_scope="module")


def with_members(**members: object) -> bytes:
    """A good body but for these members; one that is `...` is left out."""
    document: dict[str, object] = {"model": MODEL, "messages": MESSAGES, **members}
    return orjson.dumps({name: value for name, value in document.items() if value is not ...})


# Bodies --------------------------------------------------------------------------------------------------------------

BROKEN_BODIES = {
    "empty": b"",
    "text": b"hello",
    "cut short": BODY[:-1],
    "two documents": BODY + BODY,
    "a byte order mark": b"\xef\xbb\xbf" + BODY,
    "invalid UTF-8": BODY.replace(b"Say", b"S\xff\xfe"),
    "UTF-16": BODY.decode().encode("utf-16"),
    "not a number": BODY[:-1] + b',"temperature":NaN}',
    "10,000 deep": BODY[:-1] + b',"metadata":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "10,000 deep messages": b'{"model":"test-model","messages":' + b'[{"a":' * 10_000 + b"1" + b"}]" * 10_000 + b"}",
}


@pytest.mark.parametrize("name", BROKEN_BODIES)
async def test_a_body_that_is_no_json(shop: Shop, name: str) -> None:
    await check_refused(shop, post(shop, BROKEN_BODIES[name]), 400, "invalid_json")


@pytest.mark.parametrize("body", [b"[]", b"7", b'"text"', b"null", b"true"])
async def test_a_body_that_is_no_object(shop: Shop, body: bytes) -> None:
    await check_refused(shop, post(shop, body), 400, "invalid_request")


# member -> values that it may not have
WRONG_VALUES: dict[str, list[object]] = {
    "model": [..., None, 7, "", [], {}, "m" * 257],
    "max_tokens": [-1, 0, 1.5, "5", True, [], 2**31, 10**18],
    "max_completion_tokens": [-1, 0, 2**31],
    "n": [0, -1, 1_000, 129, 1.0, "2", False],
    "stream": ["yes", 1, []],
    "messages": [..., None, [], "x", {}],
    "tools": [{}],
    "stream_options": [7, {"include_usage": True}],
}


@pytest.mark.parametrize(
    ("members", "param"),
    [
        *(({name: value}, name) for name, values in WRONG_VALUES.items() for value in values),
        ({"stream": True, "stream_options": 7}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"messages": ["x"]}, "messages[0]"),
        ({"messages": [*MESSAGES, {"content": 7}]}, "messages[1].content"),
    ],
    ids=str,
)
async def test_a_member_of_the_wrong_kind(shop: Shop, members: dict[str, object], param: str) -> None:
    await check_refused(shop, post(shop, with_members(**members)), 400, "invalid_request", param)


@pytest.mark.parametrize(
    ("members", "code", "param"),
    [
        ({"max_tokens": 16_385}, "output_cap_too_large", "max_completion_tokens"),
        ({"service_tier": "priority"}, "service_tier_not_priced", "service_tier"),
        ({"tools": [{"type": "web_search"}]}, "not_metered", "tools"),
        ({"Model": "gpt"}, "duplicate_member", "model"),
    ],
    ids=str,
)
async def test_a_member_whose_cost_cannot_be_told(
    shop: Shop, members: dict[str, object], code: str, param: str
) -> None:
    await check_refused(shop, post(shop, with_members(**members)), 400, code, param)


@pytest.mark.parametrize(
    "members",
    [
        {"audio": {"voice": "alloy"}},
        {"modalities": ["text", "audio"]},
        {"web_search_options": {}},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "input_audio", "input_audio": {"data": "A" * 64, "format": "wav"}}],
                }
            ]
        },
    ],
    ids=str,
)
async def test_what_the_model_has_no_price_for(shop: Shop, members: dict[str, object]) -> None:
    await check_refused(shop, post(shop, with_members(**members)), 404, "model_not_priced", "model")


async def test_a_member_that_is_given_twice(shop: Shop) -> None:
    body = BODY[:-1] + b',"max_tokens":5,"max_tokens":5000}'
    await check_refused(shop, post(shop, body), 400, "duplicate_member", "max_tokens")


@pytest.mark.parametrize("model", ["unknown", "Test-Model", "test-model ", "../test-model", "\u0000"])
async def test_a_model_that_is_not_on_offer(shop: Shop, model: str) -> None:
    await check_refused(shop, post(shop, with_members(model=model)), 404, "model_not_found", "model")


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/jsonx",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
        "application/json; charset=utf-7",
        'application/json;x=y; CharSet = "UTF-16"',
    ],
)
async def test_a_wrong_content_type(shop: Shop, content_type: str) -> None:
    data = post(shop, BODY, f"Content-Type: {content_type}")
    await check_refused(shop, data, 415, "unsupported_media_type")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "rot13", "gzip, gzip"])
async def test_an_encoded_body(shop: Shop, encoding: str) -> None:
    for body in (BODY, gzip.compress(BODY), zlib.compress(BODY)):
        data = post(shop, body, f"Content-Encoding: {encoding}")
        await check_refused(shop, data, 415, "unsupported_media_type")


async def test_a_bomb_is_not_unpacked(shop: Shop) -> None:
    await check_refused(
        shop, post(shop, gzip.compress(bytes(2**26)), "Content-Encoding: gzip"), 415, "unsupported_media_type"
    )
    body = orjson.dumps({"model": MODEL, "messages": MESSAGES, "padding": "x" * 2**16})
    await check_refused(shop, post(shop, body + body), 400, "invalid_json")


async def test_a_body_over_the_limit(strict: Shop) -> None:
    large = with_members(padding="x" * STRICT_BODY_BYTES_MAX)
    await check_refused(strict, post(strict, large), 413, "body_too_large")
    await check_refused(strict, post(strict, b"", f"Content-Length: {2**40}"), 413, "body_too_large")
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(large), large)
    await check_refused(strict, post(strict, chunked, "Transfer-Encoding: chunked"), 413, "body_too_large")
    full = with_members(padding="")
    full = with_members(padding="x" * (STRICT_BODY_BYTES_MAX - len(full)))
    assert len(full) == STRICT_BODY_BYTES_MAX
    assert (await exchange(strict.farebox.app.port, post(strict, full))).status == 200


# Keys ----------------------------------------------------------------------------------------------------------------

NOT_KEYS = {
    "none": [],
    "empty": ["Authorization: "],
    "no key": ["Authorization: Bearer"],
    "blank key": ["Authorization: Bearer   "],
    "basic": ["Authorization: Basic ZmItMTpmYi0y"],
    "the key alone": ["Authorization: fb-0000000000000000000000000000000000000000000"],
    "another's key": ["Authorization: Bearer sk-proj-1234567890"],
    "unknown": ["Authorization: Bearer fb-0000000000000000000000000000000000000000000"],
    "too long": ["Authorization: Bearer fb-" + "0" * 126],
    "not ASCII": ["Authorization: Bearer fb-\xe9"],
    "unknown in api-key": ["api-key: fb-0000000000000000000000000000000000000000000"],
    "unknown in x-api-key": ["x-api-key: fb-0000000000000000000000000000000000000000000"],
    "in the query": [],
}


@pytest.mark.parametrize("name", NOT_KEYS)
async def test_no_valid_key(shop: Shop, name: str) -> None:
    """Asked before anything else is looked at: the body here is broken too."""
    path = f"{PATH}?api_key={shop.farebox.key}" if name == "in the query" else PATH
    data = request("POST", path, *NOT_KEYS[name], "Content-Type: text/plain", body=b"{")
    await check_refused(shop, data, 401, "invalid_api_key")
    models = request("GET", "/v1/models", *NOT_KEYS[name])
    await check_refused(shop, models, 401, "invalid_api_key")


async def test_a_revoked_key(shop: Shop) -> None:
    row = await keys.by_hash(shop.farebox.app.database, keys.hash_key(shop.farebox.key))
    assert row is not None
    await keys.revoke(shop.farebox.app.database, str(row["key_id"]))
    await check_refused(shop, post(shop, BODY), 401, "invalid_api_key")


@pytest.mark.parametrize("name", ["Authorization: Bearer", "authorization: bearer", "api-key:", "X-API-Key:"])
async def test_a_key_in_any_usual_header(shop: Shop, name: str) -> None:
    data = request("POST", PATH, f"{name} {shop.farebox.key}", body=BODY)
    assert (await exchange(shop.farebox.app.port, data)).status == 200


async def test_the_first_of_two_keys_counts(shop: Shop) -> None:
    good, bad = (f"Authorization: Bearer {key}" for key in (shop.farebox.key, "fb-" + "0" * 43))
    await check_refused(shop, request("POST", PATH, bad, good, body=BODY), 401, "invalid_api_key")
    await check_refused(
        shop, request("POST", PATH, bad, f"api-key: {shop.farebox.key}", body=BODY), 401, "invalid_api_key"
    )
    assert (await exchange(shop.farebox.app.port, request("POST", PATH, good, bad, body=BODY))).status == 200
