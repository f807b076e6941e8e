"""Chat completions: what a request may cost, what goes upstream, what a reply says.

A request is refused here only where its cost could not be told: a malformed field that decides the cost, one that is
spelled twice so that the upstream might read another value than we do, or a feature that has no meter yet.
"""

from collections.abc import Mapping

import orjson

from gateway.core.catalogue import Meter
from gateway.core.estimate import prompt_tokens_estimate
from gateway.core.sse import EVENT_STREAM
from gateway.core.usage import Limits, Reading, read_token_usage
from gateway.endpoints.chat_content import read_messages
from gateway.endpoints.chat_extras import searching, with_extras
from gateway.endpoints.chat_stream import ChatStream
from gateway.endpoints.completion_reply import read_completion
from gateway.endpoints.endpoint import CallRequest, Changes, Described, InvalidRequest, ReplySeen
from gateway.endpoints.json_request import (
    OUTPUT_TOKENS_CAP_MAX,
    Names,
    cap_members,
    changed_body,
    not_metered,
    read_flag,
    read_model,
    read_object,
    read_tier,
    read_wants_usage,
    read_whole,
    refuse_present,
    usage_member,
)
from gateway.endpoints.text_bound import text_tokens_max

CHOICES_MAX = 128

_CAPS = frozenset({"max_completion_tokens", "max_tokens"})
# Present and not null, each of these has a cost without a meter: searches of any number, a second model, more
# candidates than `n`, tokens outside the cap, what an operator's preset says.
_NOT_METERED = frozenset({"best_of", "models", "n_predict", "plugins", "preset", "search_parameters"})
# Rare, and each with a meter or a bound of its own.
_RARE = frozenset({"audio", "modalities", "prediction", "prompt_cache_options", "web_search_options"})
# Rendered into the prompt by the upstream's template in a form of its own.
RENDERED = ("tools", "functions", "response_format")
_DECIDING = (
    _NOT_METERED
    | _RARE
    | {
        *_CAPS,
        *RENDERED,
        "messages",
        "model",
        "n",
        "service_tier",
        "stream",
        "stream_options",
    }
)
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


class ChatEndpoint:
    """`POST /v1/chat/completions`."""

    name = "chat.completions"
    described = Described(
        (
            *(Meter.INPUT, Meter.CACHED_INPUT, Meter.CACHE_WRITE, Meter.CACHE_WRITE_12H),
            *(Meter.AUDIO_INPUT, Meter.CACHED_AUDIO_INPUT, Meter.IMAGE_INPUT, Meter.CACHED_IMAGE_INPUT),
            *(Meter.OUTPUT, Meter.REASONING_OUTPUT, Meter.AUDIO_OUTPUT, Meter.WEB_SEARCHES),
        ),
        "bytes of text; the model's most for an image, the length of a sound, its context for a file or a search; "
        "the output cap times `n`, or the model's maximum",
        "`usage`, or the last usage event of a stream; else a token for four bytes of text",
    )

    def read_request(self, body: bytes) -> CallRequest:
        request = read_object(body, _NAMES)
        model = read_model(request)
        stream = read_flag(request, "stream")
        given = [read_whole(request, name, OUTPUT_TOKENS_CAP_MAX) for name in _CAPS if name in request]
        caps = [cap for cap in given if cap is not None]
        choices = read_whole(request, "n", CHOICES_MAX)
        wants_usage = read_wants_usage(body, request, stream=stream)
        _refuse_unpriced(request)
        content = read_messages(request.get("messages"))
        input_tokens_max, input_tokens_estimate = _input_tokens(body, request, content.media_bytes)
        call = CallRequest(
            model=model,
            stream=stream,
            input_tokens_max=input_tokens_max,
            input_tokens_estimate=input_tokens_estimate,
            output_tokens_cap=max(caps) if caps else None,
            choices=choices or 1,
            wants_usage=wants_usage,
            service_tier=read_tier(request),
            for_model=searching,
        )
        return call if content.is_text and _RARE.isdisjoint(request) else with_extras(call, request, content)

    def upstream_body(self, body: bytes, changes: Changes) -> bytes:
        def members(body: bytes) -> dict[str, object]:
            wanted = usage_member(body) if changes.include_usage else {}
            if (cap := changes.output_tokens_cap) is not None:
                wanted |= cap_members(body, _CAPS, changes.cap_member, "max_completion_tokens", cap)
            return wanted

        return changed_body(body, model=changes.model, members=members)

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
    refuse_present(request, _NOT_METERED)
    tools = request.get("tools")
    if tools is not None:
        if not isinstance(tools, list):
            raise InvalidRequest("'tools' must be a list.", param="tools")
        # Tools that the upstream runs by itself have fees of their own.
        if any(not isinstance(tool, dict) or tool.get("type") not in ("function", "custom") for tool in tools):
            raise not_metered("tools")


def _input_tokens(body: bytes, request: dict[str, object], media_bytes: int) -> tuple[int, int]:
    """The bound of the text, and an estimate of it; `media_bytes` of the body are no text."""
    bound = text_tokens_max(body, media_bytes, request, RENDERED)
    return bound, prompt_tokens_estimate(len(body) - media_bytes, bound)
