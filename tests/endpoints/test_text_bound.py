import orjson

from gateway.endpoints.text_bound import TEMPLATE_TOKENS_MAX, TOOLS_TEMPLATE_TOKENS_MAX, text_tokens_max


def test_text_is_bounded_by_its_bytes_and_a_template() -> None:
    assert text_tokens_max(b"x" * 100, 40, {"messages": []}, ("tools",)) == 60 + TEMPLATE_TOKENS_MAX


def test_what_is_rendered_anew_counts_twice() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = orjson.dumps({"tools": tools, "text": None})
    once = text_tokens_max(body, 0, {"text": None}, ("tools", "text"))
    twice = text_tokens_max(body, 0, {"tools": tools, "text": None}, ("tools", "text"))
    assert twice == once + TOOLS_TEMPLATE_TOKENS_MAX + len(orjson.dumps([tools]))


def test_what_cannot_be_rendered_here_counts_as_the_whole_body() -> None:
    nested: object = 1
    for _ in range(900):
        nested = [nested]
    bound = text_tokens_max(b"x" * 5_000, 0, {"tools": nested}, ("tools",))
    assert bound == 2 * 5_000 + TEMPLATE_TOKENS_MAX + TOOLS_TEMPLATE_TOKENS_MAX
