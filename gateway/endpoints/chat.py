"""Chat completions: what a request may cost, what goes upstream, what a reply says.

A request is refused here only where its cost could not be told: a malformed field that decides the cost, one that is
spelled twice so that the upstream might read another value than we do, or a feature that has no meter yet.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from gateway.core.estimate import prompt_tokens_estimate
from gateway.core.sse import EVENT_STREAM
from gateway.core.usage import Limits, Reading, read_token_usage
from gateway.endpoints.chat_stream import ChatStream
from gateway.endpoints.completion_reply import read_completion
from gateway.endpoints.endpoint import CallRequest, InvalidRequest, ReplySeen
from gateway.endpoints.json_request import (
    Names,
    cap_members,
    changed_body,
    not_metered,
    read_flag,
    read_model,
    read_object,
    read_wants_usage,
    read_whole,
    refuse_present,
    usage_member,
)

CHOICES_MAX = 128
OUTPUT_TOKENS_CAP_MAX = 2**31 - 1
# The dearest image of any model in the reference: 30,000 patches at 1.62 tokens. The estimate is a common one.
IMAGE_TOKENS_MAX = 48_600
IMAGE_TOKENS_ESTIMATE = 1_445
# What a chat template adds to the text of every request: its priming tokens and a default system message.
TEMPLATE_TOKENS_MAX = 256
# What it adds once to explain tools or a schema.
TOOLS_TEMPLATE_TOKENS_MAX = 512

_CAPS = frozenset({"max_completion_tokens", "max_tokens"})
# Present and not null, each of these has a cost without a meter: searches, audio, a second model, more candidates
# than `n`, tokens outside the cap.
_NOT_METERED = frozenset(
    {"audio", "best_of", "models", "n_predict", "plugins", "prediction", "search_parameters", "web_search_options"}
)
# Rendered into the prompt by the upstream's template in a form of its own.
_RENDERED = ("tools", "functions", "response_format")
_DECIDING = _NOT_METERED | {
    *_CAPS,
    *_RENDERED,
    "messages",
    "modalities",
    "model",
    "n",
    "prompt_cache_options",
    "service_tier",
    "stream",
    "stream_options",
}
# Members that cost nothing in themselves.
_ORDINARY = frozenset(
    {
        "frequency_penalty",
        "function_call",
        "logit_bias",
        "logprobs",
        "metadata",
        "min_p",
        "parallel_tool_calls",
        "presence_penalty",
        "prompt_cache_key",
        "reasoning",
        "reasoning_effort",
        "repetition_penalty",
        "safety_identifier",
        "seed",
        "stop",
        "store",
        "temperature",
        "tool_choice",
        "top_k",
        "top_logprobs",
        "top_p",
        "user",
        "verbosity",
    }
)
_NAMES = Names(_DECIDING, _ORDINARY)


@dataclass(frozen=True, slots=True)
class _Images:
    count: int = 0
    url_bytes: int = 0  # of data URLs, which are not text


_NO_IMAGES = _Images()


class ChatEndpoint:
    """`POST /v1/chat/completions`."""

    name = "chat.completions"

    def read_request(self, body: bytes) -> CallRequest:
        request = read_object(body, _NAMES)
        model = read_model(request)
        stream = read_flag(request, "stream")
        caps = [cap for name in _CAPS if (cap := read_whole(request, name, OUTPUT_TOKENS_CAP_MAX)) is not None]
        choices = read_whole(request, "n", CHOICES_MAX)
        wants_usage = read_wants_usage(body, request, stream=stream)
        _refuse_unpriced(request)
        images = _read_messages(request.get("messages"))
        input_tokens_max, input_tokens_estimate = _input_tokens(body, request, images)
        return CallRequest(
            model=model,
            stream=stream,
            input_tokens_max=input_tokens_max,
            input_tokens_estimate=input_tokens_estimate,
            output_tokens_cap=max(caps) if caps else None,
            choices=choices or 1,
            wants_usage=wants_usage,
        )

    def upstream_body(
        self,
        body: bytes,
        *,
        model: str | None,
        include_usage: bool,
        output_tokens_cap: int | None,
        cap_member: str = "max_completion_tokens",
    ) -> bytes:
        """`body` with only those members set that must change; `body` itself if none must. Raises InvalidRequest."""

        def members(body: bytes) -> dict[str, object]:
            changes = usage_member(body) if include_usage else {}
            if output_tokens_cap is not None:
                changes |= cap_members(body, _CAPS, cap_member, "max_completion_tokens", output_tokens_cap)
            return changes

        return changed_body(body, model=model, members=members)

    def reply_reader(self, content_type: str, request: CallRequest) -> ChatStream | None:
        if content_type.startswith(EVENT_STREAM):
            return ChatStream(remove_usage=request.stream and not request.wants_usage)
        return None

    def error_end(self, document: Mapping[str, object]) -> bytes:
        return b"data: %s\n\ndata: [DONE]\n\n" % orjson.dumps(document)

    def read_reply(self, body: bytes) -> ReplySeen:
        return read_completion(body)

    def read_usage(self, usage: Mapping[str, object], limits: Limits) -> Reading | None:
        return read_token_usage(usage, limits)


def _refuse_unpriced(request: dict[str, object]) -> None:
    """Refuse what would cost something that no meter counts and no price covers."""
    tier = request.get("service_tier")
    if tier is not None and tier not in ("auto", "default"):
        message = "Only the service tiers 'auto' and 'default' are priced here."
        raise InvalidRequest(message, param="service_tier", code="service_tier_not_priced")
    refuse_present(request, _NOT_METERED)
    modalities = request.get("modalities")
    if modalities is not None and (not isinstance(modalities, list) or any(item != "text" for item in modalities)):
        raise not_metered("modalities")
    cache_options = request.get("prompt_cache_options")
    if cache_options is not None and (not isinstance(cache_options, dict) or cache_options.get("ttl") == "12h"):
        raise not_metered("prompt_cache_options")
    tools = request.get("tools")
    if tools is not None:
        if not isinstance(tools, list):
            raise InvalidRequest("'tools' must be a list.", param="tools")
        # Tools that the upstream runs by itself have fees of their own.
        if any(not isinstance(tool, dict) or tool.get("type") not in ("function", "custom") for tool in tools):
            raise not_metered("tools")


def _read_messages(messages: object) -> _Images:
    """The images of the messages; every other part is text, or refused."""
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("'messages' must be a list with at least one message.", param="messages")
    images = _NO_IMAGES
    for position, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidRequest(f"Message {position} must be an object.", param=f"messages[{position}]")
        if message.get("audio") is not None:
            raise not_metered(f"messages[{position}].audio")
        content = message.get("content")
        if content is None or isinstance(content, str):
            continue
        param = f"messages[{position}].content"
        if not isinstance(content, list):
            raise InvalidRequest(f"The content of message {position} must be a string or a list.", param=param)
        images = _read_parts(content, images, param)
    return images


def _read_parts(parts: list[object], images: _Images, param: str) -> _Images:
    """`images` with those of one message's content parts added."""
    count, url_bytes = images.count, images.url_bytes
    for position, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(part, dict) or kind not in ("text", "image_url", "refusal"):
            raise not_metered(f"{param}[{position}]")
        breakpoint_options = part.get("prompt_cache_breakpoint")
        if isinstance(breakpoint_options, dict) and breakpoint_options.get("ttl") == "12h":
            raise not_metered(f"{param}[{position}].prompt_cache_breakpoint")
        if kind == "image_url":
            count += 1
            image = part.get("image_url")
            url = image.get("url") if isinstance(image, dict) else image
            # Any other kind of data might be taken for text, and counts as such.
            if isinstance(url, str) and url.startswith("data:image/"):
                url_bytes += len(url)
    return _Images(count, url_bytes)


def _input_tokens(body: bytes, request: dict[str, object], images: _Images) -> tuple[int, int]:
    """The bound of the input, and an estimate of it.

    Why the bytes of the body bound its tokens. A token of a byte-level vocabulary is at least one byte of text, and a
    SentencePiece vocabulary falls back to bytes. JSON spells a text in at least its UTF-8 bytes, since no escape is
    shorter than what it stands for. A template adds about five tokens to a message, and no message is
    less than fifteen bytes of JSON; what it adds once is TEMPLATE_TOKENS_MAX. Tools and schemas are rendered anew: a
    template that spaces or indents their JSON adds at most one token of white space per byte, so they count twice. A
    data URL is no text but an image. (A vocabulary that normalises to NFKC can make a rare character longer. No chat
    model known to us has one; usage above the hold would be charged and counted, not lost.)
    """
    text_bytes = len(body) - images.url_bytes
    bound = text_bytes + TEMPLATE_TOKENS_MAX + images.count * IMAGE_TOKENS_MAX
    rendered = [value for name in _RENDERED if (value := request.get(name)) is not None]
    if rendered:
        try:
            bound += TOOLS_TEMPLATE_TOKENS_MAX + len(orjson.dumps(rendered))
        except orjson.JSONEncodeError:
            # Nested deeper than orjson writes, though not deeper than it reads.
            bound += TOOLS_TEMPLATE_TOKENS_MAX + len(body)
    estimate = prompt_tokens_estimate(text_bytes, bound) + images.count * IMAGE_TOKENS_ESTIMATE
    return bound, estimate
