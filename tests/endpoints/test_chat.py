"""A request is bounded from above or refused; a body is changed only where it must be; a reply is read as it is."""

from typing import Any

import orjson
import pytest

from gateway.core.usage import InvalidUsage
from gateway.endpoints.chat import ChatEndpoint
from gateway.endpoints.endpoint import Changes, Endpoint, InvalidRequest
from gateway.endpoints.json_request import MEMBERS_MAX
from gateway.endpoints.text_bound import TEMPLATE_TOKENS_MAX, TOOLS_TEMPLATE_TOKENS_MAX
from tests.support.recordings import LIMITS

ENDPOINT = ChatEndpoint()
MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}


def body(**members: Any) -> bytes:
    return orjson.dumps({"model": "m", "messages": MESSAGES} | members)


def with_part(part: object) -> bytes:
    return body(messages=[{"role": "user", "content": [{"type": "text", "text": "?"}, part]}])


def refusal(request: bytes) -> tuple[str | None, str]:
    with pytest.raises(InvalidRequest) as refused:
        ENDPOINT.read_request(request)
    assert refused.value.message
    return refused.value.param, refused.value.code


def test_it_is_an_endpoint() -> None:
    endpoint: Endpoint = ENDPOINT
    assert endpoint.name == "chat.completions"


def test_ordinary_request() -> None:
    request = ENDPOINT.read_request(body(stream=True, max_tokens=50, n=2, stream_options={"include_usage": True}))
    assert (request.model, request.stream, request.wants_usage) == ("m", True, True)
    assert (request.output_tokens_cap, request.choices) == (50, 2)


@pytest.mark.parametrize(
    ("members", "read"),
    [
        ({}, (False, None, 1, False)),
        ({"stream": None, "n": None, "max_tokens": None, "stream_options": None}, (False, None, 1, False)),
        ({"stream": True}, (True, None, 1, False)),
        ({"stream": True, "stream_options": {}}, (True, None, 1, False)),
        ({"stream": True, "stream_options": {"include_usage": False}}, (True, None, 1, False)),
        ({"max_completion_tokens": 7}, (False, 7, 1, False)),
        # An upstream reads one of them; which one is not for us to say.
        ({"max_completion_tokens": 7, "max_tokens": 9}, (False, 9, 1, False)),
        ({"max_completion_tokens": 9, "max_tokens": 7}, (False, 9, 1, False)),
        ({"max_completion_tokens": None, "max_tokens": 7}, (False, 7, 1, False)),
        ({"n": 128}, (False, None, 128, False)),
    ],
)
def test_what_decides_the_cost(members: dict[str, Any], read: tuple[bool, int | None, int, bool]) -> None:
    request = ENDPOINT.read_request(body(**members))
    assert (request.stream, request.output_tokens_cap, request.choices, request.wants_usage) == read


@pytest.mark.parametrize(
    ("request_body", "refused"),
    [
        (b"", (None, "invalid_json")),
        (b"model=m", (None, "invalid_json")),
        (b"\xff\xfe", (None, "invalid_json")),
        (b'{"model":"m","messages":[{"content":NaN}]}', (None, "invalid_json")),
        (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", (None, "invalid_json")),
        (b"[]", (None, "invalid_request")),
        (b'"m"', (None, "invalid_request")),
        (b"null", (None, "invalid_request")),
        (b'{"messages":[{}]}', ("model", "invalid_request")),
        (body(model=None), ("model", "invalid_request")),
        (body(model=7), ("model", "invalid_request")),
        (body(model=""), ("model", "invalid_request")),
        (body(model="m" * 257), ("model", "invalid_request")),
        (b'{"model":"m"}', ("messages", "invalid_request")),
        (body(messages={}), ("messages", "invalid_request")),
        (body(messages=[]), ("messages", "invalid_request")),
        (body(messages=["hello"]), ("messages[0]", "invalid_request")),
        (body(messages=[{"content": 7}]), ("messages[0].content", "invalid_request")),
        (body(messages=[{"content": {"type": "input_audio"}}]), ("messages[0].content", "invalid_request")),
        (body(stream="true"), ("stream", "invalid_request")),
        (body(stream=1), ("stream", "invalid_request")),
        (body(stream=True, stream_options=[]), ("stream_options", "invalid_request")),
        (body(stream_options={"include_usage": True}), ("stream_options", "invalid_request")),
        (body(stream=True, stream_options={"include_usage": 1}), ("stream_options.include_usage", "invalid_request")),
        *[
            (body(**{name: value}), (name, "invalid_request"))
            for name in ("max_tokens", "max_completion_tokens", "n")
            for value in (0, -1, 1.5, "5", True, [5], 2**31)
        ],
        (body(n=129), ("n", "invalid_request")),
        (body(tools={}), ("tools", "invalid_request")),
        (body(**{f"x{number}": 1 for number in range(MEMBERS_MAX)}), (None, "invalid_request")),
    ],
)
def test_what_cannot_be_read_is_refused(request_body: bytes, refused: tuple[str | None, str]) -> None:
    assert refusal(request_body) == refused


@pytest.mark.parametrize("name", ["model", "messages", "n", "max_tokens", "stream", "service_tier", "tools", "models"])
@pytest.mark.parametrize("spelling", [str, str.upper, str.title, lambda name: f"\\u{ord(name[0]):04x}{name[1:]}"])
def test_a_member_that_decides_the_cost_is_spelled_once(name: str, spelling: Any) -> None:
    # Parsers differ on which of two members counts, and Go's does not tell case apart.
    value = orjson.dumps(orjson.loads(body()).get(name))
    twice = body().replace(b"{", b'{"%b":%b,"%b":%b,' % (name.encode(), value, spelling(name).encode(), value), 1)
    assert refusal(twice) == (name, "duplicate_member")


@pytest.mark.parametrize("spelled", ["\u017ftream", "max_to\u212aens", "\\u017ftream", "Stream", "max_to\\u212aens"])
def test_a_member_that_only_folds_to_one_of_ours_is_refused(spelled: str) -> None:
    assert refusal(body().replace(b"{", b'{"%b":null,' % spelled.encode(), 1))[1] == "duplicate_member"


@pytest.mark.parametrize(
    "request_body",
    [
        body(
            tools=[
                {"type": "function", "function": {"name": "f", "parameters": {"properties": {"model": {}, "n": {}}}}}
            ]
        ),
        body(messages=[{"role": "model", "content": '"model":1,"model":2'}, {"model": "x", "n": 3}]),
        body(metadata={"MODEL": "x", "stream": "y", "model": "z"}),
        body().replace(b"sky", b"s\\u006by"),
        body().replace(b'"model"', b'"\\u006dodel"'),
        body().replace(b"sky", b"cut \\ud83d"),
    ],
)
def test_a_name_elsewhere_is_no_member(request_body: bytes) -> None:
    assert ENDPOINT.read_request(request_body).model == "m"


def test_the_tier_of_service_is_passed_on_to_be_priced() -> None:
    assert [ENDPOINT.read_request(body(service_tier=tier)).service_tier for tier in (None, "auto", "flex")] == [
        "",
        "auto",
        "flex",
    ]


@pytest.mark.parametrize("tier", [1, ["auto"], {}, "x" * 65])
def test_a_tier_of_service_is_a_name(tier: object) -> None:
    assert refusal(body(service_tier=tier)) == ("service_tier", "invalid_request")


@pytest.mark.parametrize(
    ("request_body", "param"),
    [
        (body(modalities="audio"), "modalities"),
        (body(modalities=["text", "image"]), "modalities"),
        (body(preset="dear"), "preset"),
        (body(prompt_cache_options={"ttl": "24h"}), "prompt_cache_options"),
        (body(modalities=[["text"]]), "modalities"),
        (body(search_parameters={"mode": "on"}), "search_parameters"),
        (body(plugins=[{"id": "web"}]), "plugins"),
        (body(models=["dearer"]), "models"),
        (body(best_of=4), "best_of"),
        (body(n_predict=4_000), "n_predict"),
        (body(prompt_cache_options="12h"), "prompt_cache_options"),
        (body(tools=[{"type": "web_search"}]), "tools"),
        (body(tools=[{"type": "function"}, {"google_search": {}}]), "tools"),
        (body(tools=["function"]), "tools"),
        (with_part({"type": "video_url", "video_url": {"url": "u"}}), "messages[0].content[1]"),
        (with_part({"image_url": {"url": "u"}}), "messages[0].content[1]"),
        (with_part({"type": ["text"]}), "messages[0].content[1]"),
        (with_part("text"), "messages[0].content[1]"),
        (
            with_part({"type": "text", "text": "", "prompt_cache_breakpoint": {"mode": "explicit", "ttl": "24h"}}),
            "messages[0].content[1].prompt_cache_breakpoint",
        ),
    ],
)
def test_what_no_meter_counts_is_refused(request_body: bytes, param: str) -> None:
    assert refusal(request_body) == (param, "not_metered")


@pytest.mark.parametrize(
    "request_body",
    [
        body(
            modalities=["text"], audio=None, web_search_options=None, models=None, tools=None, prompt_cache_options=None
        ),
        body(modalities=None, prompt_cache_options={"mode": "implicit", "ttl": "30m"}),
        body(tools=[{"type": "function", "function": {"name": "f"}}, {"type": "custom", "custom": {"name": "c"}}]),
        body(messages=[{"role": "assistant", "content": None, "tool_calls": [], "audio": None}]),
        body(messages=[{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}]),
        with_part({"type": "text", "text": "", "prompt_cache_breakpoint": {"mode": "explicit", "ttl": "30m"}}),
        with_part(IMAGE),
    ],
)
def test_what_has_a_price_passes(request_body: bytes) -> None:
    ENDPOINT.read_request(request_body)


@pytest.mark.parametrize(
    ("request_body", "bound", "estimate"),
    [
        (body(), len(body()) + TEMPLATE_TOKENS_MAX, -(-len(body()) // 4)),
        # Tools are rendered anew by the template, so their JSON counts twice.
        (
            body(tools=[{"type": "function"}]),
            len(body(tools=[{"type": "function"}])) + TEMPLATE_TOKENS_MAX + TOOLS_TEMPLATE_TOKENS_MAX + 23,
            -(-len(body(tools=[{"type": "function"}])) // 4),
        ),
    ],
)
def test_input_bound_and_estimate(request_body: bytes, bound: int, estimate: int) -> None:
    request = ENDPOINT.read_request(request_body)
    assert (request.input_tokens_max, request.input_tokens_estimate) == (bound, estimate)


def test_tools_nested_too_deep_to_be_written_are_still_bounded() -> None:
    tools = b'[{"type":"function","x":' + b"[" * 900 + b"]" * 900 + b"}]"
    request = ENDPOINT.read_request(body().replace(b"{", b'{"tools":%b,' % tools, 1))
    assert request.input_tokens_max > 2 * len(tools)


def upstream(request_body: bytes, **changes: Any) -> bytes:
    return ENDPOINT.upstream_body(request_body, Changes(**changes))


def test_a_body_that_needs_no_change_is_the_same_object() -> None:
    request_body = b' {"model" : "m", "stream_options":{"include_usage" : true}}'
    assert upstream(request_body) is request_body
    assert upstream(b'{"model":"m"}', model="m") == b'{"model":"m"}'


@pytest.mark.parametrize(
    ("before", "changes", "after"),
    [
        (b'{ "model" : "m","x":1.0}', {"model": "n"}, b'{ "model" : "n","x":1.0}'),
        (b'{"x":{"model":1},"model":"m"}', {"model": "n"}, b'{"x":{"model":1},"model":"n"}'),
        (b'{"x":1}', {"include_usage": True}, b'{"stream_options":{"include_usage":true},"x":1}'),
        (b'{"stream_options":null}', {"include_usage": True}, b'{"stream_options":{"include_usage":true}}'),
        (b'{"stream_options":{}}', {"include_usage": True}, b'{"stream_options":{"include_usage":true}}'),
        (
            b'{"stream_options": {"include_obfuscation" : false}}',
            {"include_usage": True},
            b'{"stream_options": {"include_usage":true,"include_obfuscation" : false}}',
        ),
        (
            b'{"stream_options":{"include_usage":false,"a":1}}',
            {"include_usage": True},
            b'{"stream_options":{"include_usage":true,"a":1}}',
        ),
        (b'{"x":1}', {"output_tokens_cap": 9}, b'{"max_completion_tokens":9,"x":1}'),
        (b'{"x":1}', {"output_tokens_cap": 9, "cap_member": "max_tokens"}, b'{"max_tokens":9,"x":1}'),
        (b'{"max_tokens":20}', {"output_tokens_cap": 9}, b'{"max_tokens":9}'),
        (b'{"max_completion_tokens":20}', {"output_tokens_cap": 9}, b'{"max_completion_tokens":9}'),
        (b'{"max_completion_tokens":20,"max_tokens":9}', {"output_tokens_cap": 5},
         b'{"max_completion_tokens":5,"max_tokens":5}'),
        (b'{"max_tokens":null}', {"output_tokens_cap": 9}, b'{"max_completion_tokens":9,"max_tokens":null}'),
        (b'{"max_completion_tokens":null}', {"output_tokens_cap": 9}, b'{"max_completion_tokens":9}'),
        # Ollama reads only max_tokens: a cap under the other name would be none.
        (b'{"max_completion_tokens":20}', {"output_tokens_cap": 9, "cap_member": "max_tokens"},
         b'{"max_tokens":9,"max_completion_tokens":9}'),
        (b'{"model":"m"}', {"model": "n", "include_usage": True, "output_tokens_cap": 3},
         b'{"stream_options":{"include_usage":true},"max_completion_tokens":3,"model":"n"}'),
    ],
)  # fmt: skip
def test_upstream_body(before: bytes, changes: dict[str, Any], after: bytes) -> None:
    assert upstream(before, **changes) == after


def test_a_body_that_cannot_be_changed_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        upstream(b"[]", model="n")


def test_usage_out_of_the_limits_is_refused() -> None:
    with pytest.raises(InvalidUsage):
        ENDPOINT.read_usage({"prompt_tokens": 1, "completion_tokens": LIMITS.output_tokens_max + 1}, LIMITS)
    assert ENDPOINT.read_usage({"prompt_tokens": 0, "completion_tokens": 0}, LIMITS) is None


def test_the_reader_of_a_stream_removes_usage_or_not() -> None:
    usage_only = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n'
    for wanted, out in ((False, b""), (True, usage_only)):
        request = ENDPOINT.read_request(body(stream=True, stream_options={"include_usage": wanted}))
        reader = ENDPOINT.reply_reader("text/event-stream; charset=utf-8", request)
        assert reader is not None
        assert reader.feed(usage_only) + reader.finish() == out


@pytest.mark.parametrize(
    "options",
    [
        b'{"include_usage":true,"include_usage":false}',
        b'{"include_usage":false,"include_usage":true}',
        b'{"include_usage":true,"Include_Usage":false}',
        b'{"include_usage":true,"includ\\u0065_usage":false}',
    ],
)
def test_include_usage_is_given_once(options: bytes) -> None:
    """An upstream that reads false where we read true would report no usage."""
    request = b'{"model":"m","stream":true,"stream_options":%b,"messages":[{"role":"user","content":"x"}]}' % options
    assert refusal(request)[1] == "duplicate_member"


@pytest.mark.parametrize("value", [b"{}", b"[]", b'""'])
def test_a_body_of_very_many_values_is_refused_before_it_is_parsed(value: bytes) -> None:
    request = b'{"model":"m","messages":[%b{}]}' % ((value + b",") * 1_000_000)
    assert refusal(request)[1] == "body_too_large"
