"""What upstreams say a response used, and what that costs, worked out by hand to the nano.

Nanos: input 1,250; cached 125; cache write 1,562.5, of 12 hours 2,500; output 10,000; above 272,000 input tokens 2,500,
250 and 15,000. A web search 10,000,000, a file search 2,500,000, a container 30,000,000. Flex is half, priority double.
"""

from dataclasses import dataclass, field
from typing import Any

from gateway.core.catalogue import Meter, Model, Price, Tier
from tests.support.gateway import MODEL
from tests.support.offers import BEGINNING
from tests.support.responses import message_item, usage_json

GOLDEN_MODEL = Model(MODEL, 400_000, 128_000)
GOLDEN_PRICE = Price(
    1,
    MODEL,
    BEGINNING,
    "test",
    {
        Meter.INPUT: 1_250_000,
        Meter.CACHED_INPUT: 125_000,
        Meter.CACHE_WRITE: 1_562_500,
        Meter.CACHE_WRITE_12H: 2_500_000,
        Meter.OUTPUT: 10_000_000,
        Meter.WEB_SEARCHES: 10_000_000_000,
        Meter.FILE_SEARCHES: 2_500_000_000,
        "containers/1g": 30_000_000_000,
    },
    (Tier(272_000, {Meter.INPUT: 2_500_000, Meter.CACHED_INPUT: 250_000, Meter.OUTPUT: 15_000_000}),),
    {"flex": 5_000, "priority": 20_000},
)


@dataclass(frozen=True, slots=True)
class Golden:
    """`response` are members of the reply beside its usage, `request` of the request."""

    name: str
    usage: dict[str, Any]
    charge: int
    response: dict[str, Any] = field(default_factory=dict)
    request: dict[str, Any] = field(default_factory=dict)
    hidden: bool = False  # hidden from the stream's own items


def _search(kind: str | None = "search") -> dict[str, Any]:
    action = {"action": {"type": kind, "query": "q"}} if kind else {}
    return {"type": "web_search_call", "id": "ws_1", "status": "completed", **action}


FILE_SEARCH = {"type": "file_search_call", "id": "fs_1", "status": "completed", "queries": ["q"], "results": None}


def _code(container: str) -> dict[str, Any]:
    return {"type": "code_interpreter_call", "id": "ci_1", "container_id": container, "code": "1", "outputs": None}


def _written(input_tokens: int, output_tokens: int, **details: object) -> dict[str, Any]:
    return {**usage_json(input_tokens, output_tokens), "input_tokens_details": {"cached_tokens": 0, **details}}


def _searches(count: int) -> dict[str, Any]:
    return {"tool_usage": {"web_search": {"num_requests": count}, "image_gen": {"total_tokens": 0}}}


GOLDEN = (
    Golden("plain", usage_json(36, 87), 45_000 + 870_000),
    Golden("nothing but input", usage_json(36, 0), 45_000),
    Golden("cached", usage_json(1_000, 10, cached=600), 500_000 + 75_000 + 100_000),
    Golden("all cached", usage_json(1, 0, cached=1), 125),
    Golden("cache write", _written(2_000, 1, cached_tokens=500, cache_write_tokens=1_000), 2_260_000),
    Golden("half a nano to even, down", _written(1, 0, cache_write_tokens=1), 1_562),
    Golden("half a nano to even, up", _written(3, 0, cache_write_tokens=3), 4_688),
    Golden(
        "cache write of 12 hours",
        _written(
            2_000,
            5,
            cache_write_tokens=1_000,
            cache_write_tokens_details={"ttl_30m_tokens": 400, "ttl_12h_tokens": 600},
        ),
        1_250_000 + 625_000 + 1_500_000 + 50_000,
        request={"prompt_cache_options": {"ttl": "12h"}},
    ),
    Golden("reasoning is inside the output", usage_json(20, 1_100, reasoning=1_024), 25_000 + 11_000_000),
    Golden("reasoning outside of the count", {**usage_json(12, 10), "total_tokens": 61}, 15_000 + 490_000),
    Golden(
        "incomplete",
        usage_json(30, 16),
        37_500 + 160_000,
        {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
    ),
    Golden(
        "failed, partly used",
        usage_json(50, 3),
        62_500 + 30_000,
        {"status": "failed", "error": {"code": "server_error", "message": "No."}},
    ),
    Golden("searches reported", usage_json(9_000, 400), 11_250_000 + 4_000_000 + 20_000_000, _searches(2)),
    Golden(
        "searches counted, pages that were opened not",
        usage_json(100, 10),
        225_000 + 30_000_000,
        {"output": [_search(), _search(None), _search("open_page"), _search(), _search("find_in_page")]},
    ),
    Golden(
        "what is reported beats what is counted",
        usage_json(100, 10),
        225_000 + 10_000_000,
        {"output": [_search(), _search()], **_searches(1)},
    ),
    Golden("searches that cost nothing", usage_json(100, 10), 225_000, {"output": [_search()], **_searches(0)}),
    Golden("file searches", usage_json(100, 10), 225_000 + 5_000_000, {"output": [FILE_SEARCH, FILE_SEARCH]}),
    Golden(
        "a container is charged once",
        usage_json(100, 10),
        225_000 + 60_000_000,
        {"output": [_code("cntr_1"), _code("cntr_2"), _code("cntr_1"), message_item("1")]},
    ),
    Golden(
        "every tool",
        usage_json(100, 10),
        225_000 + 42_500_000,
        {"output": [_search(), FILE_SEARCH, _code("cntr_1")], "tool_usage": None},
    ),
    Golden("flex", usage_json(1_001, 1), 625_625 + 5_000, {"service_tier": "flex"}, {"service_tier": "flex"}),
    Golden("served faster than asked", usage_json(10, 10), 225_000, {"service_tier": "priority"}),
    Golden("not as fast as asked", usage_json(10, 10), 112_500, request={"service_tier": "priority"}),
    Golden("long context", usage_json(300_000, 100), 750_000_000 + 1_500_000),
    Golden("vLLM, no details", {"input_tokens": 25, "output_tokens": 4, "total_tokens": 29}, 71_250),
    Golden(
        "details that are null",
        {
            "input_tokens": 12,
            "input_tokens_details": None,
            "output_tokens": 3,
            "output_tokens_details": None,
            "total_tokens": 15,
        },
        45_000,
    ),
    Golden("a bridge that counts in text", {"input_tokens": "25", "output_tokens": "4"}, 71_250),
    Golden("a bridge that spells it as chat does", {"prompt_tokens": 25, "completion_tokens": 4}, 71_250),
)
