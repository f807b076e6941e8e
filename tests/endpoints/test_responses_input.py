"""What a request to the Responses API reads is found wherever it stands, and what has no bound is refused."""

from typing import Any

import pytest

from gateway.core.image_tokens import IMAGE_TOKENS_MAX
from gateway.endpoints.text_bound import TEMPLATE_TOKENS_MAX, TOOLS_TEMPLATE_TOKENS_MAX
from tests.endpoints.test_responses import ENDPOINT, IMAGE, SEARCH, TOOLS, body, refusal


@pytest.mark.parametrize(
    ("members", "param"),
    [
        *[({name: 1}, name) for name in ("best_of", "context_management", "models", "multi_agent", "n", "plugins")],
        ({"tools": [SEARCH]}, "max_tool_calls"),
        *[
            ({"tools": [{"type": kind}], "max_tool_calls": 1}, "tools[0]")
            for kind in ("mcp", "image_generation", "tool_search", "programmatic_tool_calling", "shell", "new")
        ],
        ({"tools": [{"type": "code_interpreter"}], "max_tool_calls": 1}, "tools[0].container"),
        (
            {"tools": [{**TOOLS[2], "container": {"type": "auto", "memory_limit": "4g"}}], "max_tool_calls": 1},
            "tools[0].container.memory_limit",
        ),
        ({"input": [{"type": "mcp_call"}]}, "input[0]"),
        ({"input": [{"type": ["message"]}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": {"a": 1}}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_video"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}, "x"]}]}, "input[0].content[1]"),
        ({"input": [{"type": "function_call_output", "output": [{"type": "audio"}]}]}, "input[0].output[0]"),
        ({"input": [{"type": "computer_call", "action": {"type": "input_audio"}}]}, "input[0]"),
        ({"prompt": {"id": "pmpt_1"}}, "tools"),
        ({"prompt_cache_options": "12h"}, "prompt_cache_options"),
    ],
)  # fmt: skip
def test_what_no_meter_counts_is_refused(members: dict[str, Any], param: str) -> None:
    assert refusal(body(**members)) == (param, "not_metered")


@pytest.mark.parametrize(
    ("members", "images", "more"),
    [
        ({}, 0, 0),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "?"}]}]}, 0, 0),
        ({"tools": [{"type": "function"}]}, 0, TOOLS_TEMPLATE_TOKENS_MAX + len(b'[[{"type":"function"}]]')),
        ({"tools": [{"type": "shell", "environment": {"type": "local"}}], "text": {}}, 0, None),
        ({"input": [{"role": "user", "content": [IMAGE, IMAGE]}]}, 2, -2 * len(str(IMAGE["image_url"]))),
        ({"input": [{"type": "computer_call_output", "output": {**IMAGE, "type": "computer_screenshot"}}]}, 1, None),
    ],
)
def test_bytes_bound_the_input(members: dict[str, Any], images: int, more: int | None) -> None:
    request = ENDPOINT.read_request(body(**members))
    assert request.stored is None
    if more is not None:
        bound = len(body(**members)) + TEMPLATE_TOKENS_MAX + images * IMAGE_TOKENS_MAX + more
        assert request.input_tokens_max == bound
    assert images * IMAGE_TOKENS_MAX < request.input_tokens_max < (images + 1) * IMAGE_TOKENS_MAX
    assert request.input_tokens_estimate <= request.input_tokens_max


def test_a_reasoning_item_that_brings_its_text_is_text() -> None:
    item = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "QUJD"}
    assert ENDPOINT.read_request(body(input=[item])).stored is None


def test_a_container_by_its_id_is_somebodys() -> None:
    tools = [{"type": "code_interpreter", "container": "cntr_1"}]
    assert ENDPOINT.read_request(body(tools=tools, max_tool_calls=1)).unowned == "tools[0].container"
