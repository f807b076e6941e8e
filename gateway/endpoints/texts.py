"""The texts of a request whose bytes its endpoint allows for as tokens: what a tokenizer may count instead.

An endpoint that is not named here has none. A text belongs here only if `read_request` counts its bytes, so that its
exact tokens may stand in their place (gateway/core/tokens.py).
"""

from collections.abc import Callable, Mapping
from functools import partial

from gateway.core.json_members import parse
from gateway.core.tokens import Text
from gateway.endpoints.chat import RENDERED

# Members of a message that are text, and those in which there may be more of it. Nothing else is looked into: what an
# image or a sound is bounded by has nothing to do with the bytes that spell it.
_TEXTS = frozenset({"arguments", "content", "input", "reasoning", "reasoning_content", "refusal", "text"})
_NESTED = frozenset({"content", "custom", "function", "function_call", "tool_calls"})
_PARTS = frozenset({"text", "refusal", "image_url", "input_audio"})


def texts_of(endpoint_name: str, body: bytes) -> list[Text]:
    """The texts of a body that the endpoint has read before; none where its bound is not made of their bytes."""
    found = _READERS.get(endpoint_name)
    request = parse(body) if found is not None else None
    return found(request) if found is not None and isinstance(request, dict) else []


def _chat_texts(request: Mapping[str, object]) -> list[Text]:
    texts: list[Text] = []
    messages = request.get("messages")
    for message in messages if isinstance(messages, list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else []:
            if not isinstance(part, dict) or part.get("type") not in _PARTS:
                return []  # such as a file, whose text only the upstream reads
        _gather(message, _TEXTS, _NESTED, texts, times=1)
    for name in RENDERED:
        # Rendered anew by the template: the bound has their bytes twice.
        _gather(request.get(name), frozenset({"description"}), None, texts, times=2)
    return texts


def _gather(
    value: object, names: frozenset[str], nested: frozenset[str] | None, texts: list[Text], *, times: int
) -> None:
    """Add the strings that are members of one of `names`, in lists and in members of one of `nested` (None: of any)."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting += item
        elif isinstance(item, dict):
            for name, inner in item.items():
                if isinstance(inner, str):
                    if name in names:
                        texts.append(Text(inner, times))
                elif nested is None or name in nested:
                    waiting.append(inner)


def _input_texts(name: str, request: Mapping[str, object]) -> list[Text]:
    """Texts that are all of the input, each by itself."""
    given = request.get(name)
    return [Text(one) for one in (given if isinstance(given, list) else [given]) if isinstance(one, str)]


_READERS: Mapping[str, Callable[[Mapping[str, object]], list[Text]]] = {
    "chat.completions": _chat_texts,
    "completions": partial(_input_texts, "prompt"),
    "embeddings": partial(_input_texts, "input"),
}
