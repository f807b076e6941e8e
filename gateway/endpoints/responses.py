"""The Responses API: what a request may cost, what goes upstream, what a reply says.

Two things are unlike chat. A request may refer to what the upstream keeps (the response before, files, a template),
whose size only the upstream knows: the context window bounds it. And the upstream may run tools of its own: each call
has a fee, and reads the context anew, so the number of calls must be bounded by the client (`max_tool_calls`).
"""

from collections.abc import Mapping

import orjson

from gateway.core.catalogue import Meter
from gateway.core.estimate import prompt_tokens_estimate
from gateway.core.image_tokens import IMAGE_TOKENS_MAX
from gateway.core.json_members import parse
from gateway.core.pricing import Quantities
from gateway.core.sse import BOM, EVENT_STREAM
from gateway.core.usage import Limits, Reading, read_token_usage
from gateway.core.usage_json import LargeReply
from gateway.endpoints.chat_content import IMAGE_TOKENS_ESTIMATE
from gateway.endpoints.chat_stream import is_error
from gateway.endpoints.endpoint import (
    NOTHING,
    NOTHING_SEEN,
    CallRequest,
    Changes,
    Described,
    InvalidRequest,
    Output,
    ReplySeen,
)
from gateway.endpoints.json_request import (
    OUTPUT_TOKENS_CAP_MAX,
    Names,
    changed_body,
    not_metered,
    read_flag,
    read_model,
    read_object,
    read_tier,
    read_whole,
    refuse_present,
)
from gateway.endpoints.responses_input import TOOL_CALLS_MAX, Asked, read_input, read_tools
from gateway.endpoints.responses_stream import ResponsesStream
from gateway.endpoints.responses_usage import count_items, made_of, read_fees, usage_of
from gateway.endpoints.text_bound import text_tokens_max

RESPONSE_ID_CHARS_MAX = 256
# More than any context: the model's own window is then what bounds the input.
_ANY_TOKENS = 2**40

# Present and not null, each of these has a cost without a meter: passes of the model that nothing bounds, a second
# model, tokens outside the cap.
_NOT_METERED = frozenset(
    {"best_of", "context_management", "models", "multi_agent", "n", "n_predict", "plugins", "search_parameters"}
)
# Rendered into the prompt by the upstream's template in a form of its own.
_RENDERED = ("tools", "text")
_NAMES = Names(
    _NOT_METERED
    | {
        *_RENDERED, "background", "conversation", "input", "instructions", "max_output_tokens", "max_tool_calls",
        "model", "previous_response_id", "prompt", "prompt_cache_options", "service_tier", "store", "stream",
    },
    {
        "include", "metadata", "moderation", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention",
        "reasoning", "safety_identifier", "stream_options", "temperature", "tool_choice", "top_logprobs", "top_p",
        "truncation", "user",
    },
)  # fmt: skip


class ResponsesEndpoint:
    """`POST /v1/responses`."""

    name = "responses"
    described = Described(
        (
            *(Meter.INPUT, Meter.CACHED_INPUT, Meter.CACHE_WRITE, Meter.CACHE_WRITE_12H, Meter.IMAGE_INPUT),
            *(Meter.OUTPUT, Meter.REASONING_OUTPUT),
            *(Meter.WEB_SEARCHES, Meter.FILE_SEARCHES, Meter.CONTAINERS),
        ),
        "bytes of text; the model's most for an image, its context for a file or what is stored; all of it again for "
        "each tool call allowed; the output cap, or the model's maximum",
        "`usage` and tool calls of the reply or of the last event; else a token for four bytes of text",
    )

    def read_request(self, body: bytes) -> CallRequest:
        request = read_object(body, _NAMES)
        model = read_model(request)
        stream, background = read_flag(request, "stream"), read_flag(request, "background")
        keeps = request.get("store") is None or read_flag(request, "store")
        if background and not keeps:
            raise InvalidRequest("A background response must be stored, or nobody could read it.", param="store")
        refuse_present(request, _NOT_METERED)
        tool_calls_max = read_whole(request, "max_tool_calls", TOOL_CALLS_MAX)
        asked = _read_asked(request, tool_calls_max)
        passes = 1 + (tool_calls_max or 0) if asked.fees else 1
        bound, estimate = _input_tokens(body, request, asked)
        extra_max: Quantities = asked.fees or NOTHING
        extra_estimate: Quantities = NOTHING
        if asked.caches_long:
            # All of the input may be written to the dearer cache.
            extra_max = {**extra_max, Meter.CACHE_WRITE_12H: bound}
            extra_estimate = {Meter.INPUT: estimate}
            bound = estimate = 0
        return CallRequest(
            model=model,
            stream=stream,
            input_tokens_max=bound,
            input_tokens_estimate=estimate,
            output_tokens_cap=read_whole(request, "max_output_tokens", OUTPUT_TOKENS_CAP_MAX),
            wants_usage=True,  # it is always there
            extra_max=extra_max,
            extra_estimate=extra_estimate,
            passes=passes,
            service_tier=read_tier(request),
            stored=asked.stored,
            follows=_response_id(request),
            unowned=asked.unowned,
            keeps=keeps,
            background=background,
        )

    def upstream_body(self, body: bytes, changes: Changes) -> bytes:
        """A response always says its usage, and its cap has one name only."""
        cap = changes.output_tokens_cap
        members: dict[str, object] = {} if cap is None else {"max_output_tokens": cap}
        return changed_body(body, model=changes.model, members=lambda _: members)

    def reply_reader(self, content_type: str, _request: CallRequest) -> ResponsesStream | None:
        return ResponsesStream() if content_type.startswith(EVENT_STREAM) else None

    def error_end(self, document: Mapping[str, object]) -> bytes:
        """The nested form: both SDKs raise it, while the flat one is handed to the caller as an event."""
        return b"event: error\ndata: %b\n\n" % orjson.dumps({"type": "error", "sequence_number": 0, **document})

    def read_reply(self, body: bytes) -> ReplySeen:
        """A reply that is no JSON object, such as a proxy's HTML page, holds no output and is not charged."""
        try:
            reply = parse(body.removeprefix(BOM))
        except orjson.JSONDecodeError:
            return _unparsed(body.removeprefix(BOM))
        if not isinstance(reply, dict):
            return NOTHING_SEEN
        failed = is_error(reply) or reply.get("status") == "failed"
        tier = reply.get("service_tier")
        return ReplySeen(
            usage_of(reply),
            lambda: count_items(reply.get("output")),
            failed,
            tier if isinstance(tier, str) else "",
            made_of(reply),
        )

    def read_usage(self, usage: Mapping[str, object], limits: Limits) -> Reading | None:
        reading = read_token_usage(usage, limits)
        if reading is None:
            return None
        fees = read_fees(usage)
        return Reading({**reading.quantities, **fees}, reading.reasoning_tokens) if fees else reading


class CompactEndpoint(ResponsesEndpoint):
    """`POST /v1/responses/compact`: one pass of the model, whose output nothing but the model bounds."""

    name = "responses.compact"
    described = Described(
        (Meter.INPUT, Meter.CACHED_INPUT, Meter.CACHE_WRITE, Meter.OUTPUT, Meter.REASONING_OUTPUT),
        "as `POST /v1/responses`; the model's maximum of output",
        "`usage`; else a token for four bytes of text",
    )

    def read_request(self, body: bytes) -> CallRequest:
        if read_object(body, _NAMES).get("stream"):
            raise InvalidRequest("'stream' is not taken here.", param="stream")
        request = super().read_request(body)
        if request.background:
            raise InvalidRequest("'background' is not taken here.", param="background")
        return request._replace(output=Output.MODEL, output_tokens_cap=None, keeps=False)

    def upstream_body(self, body: bytes, changes: Changes) -> bytes:
        return changed_body(body, model=changes.model)


class InputTokensEndpoint(CompactEndpoint):
    """`POST /v1/responses/input_tokens`: it counts, makes nothing, and needs no bounds."""

    name = "responses.input_tokens"

    def read_request(self, body: bytes) -> CallRequest:
        request = read_object(body, _NAMES)
        asked = Asked()
        read_input(request.get("input"), asked)
        return CallRequest(
            model=read_model(request),
            stream=False,
            input_tokens_max=0,
            input_tokens_estimate=0,
            output_tokens_cap=None,
            choices=1,
            wants_usage=True,
            output=Output.NONE,
            follows=_response_id(request),
            unowned="conversation" if request.get("conversation") is not None else asked.unowned,
        )


def _read_asked(request: Mapping[str, object], tool_calls_max: int | None) -> Asked:
    """What the request reads and uses. Raises InvalidRequest."""
    asked = Asked()
    read_input(request.get("input"), asked)
    instructions = request.get("instructions")
    if isinstance(instructions, list):
        read_input(instructions, asked)
    elif instructions is not None and not isinstance(instructions, str):
        raise InvalidRequest("'instructions' must be a string.", param="instructions")
    read_tools(request.get("tools"), tool_calls_max, asked)
    text = request.get("text")
    if text is not None and not isinstance(text, dict):
        raise InvalidRequest("'text' must be an object.", param="text")
    for name in ("previous_response_id", "prompt", "conversation"):
        if request.get(name) is not None:
            asked.stored = name
    if request.get("conversation") is not None:
        asked.unowned = "conversation"
    if request.get("prompt") is not None and request.get("tools") is None:
        message = "With 'prompt' give 'tools', which may be empty: those of the template cannot be seen here."
        raise InvalidRequest(message, param="tools", code="not_metered")
    options = request.get("prompt_cache_options")
    if options is not None:
        if not isinstance(options, dict):
            raise not_metered("prompt_cache_options")
        asked.caches_long = asked.caches_long or options.get("ttl") == "12h"
    return asked


def _response_id(request: Mapping[str, object]) -> str | None:
    value = request.get("previous_response_id")
    if value is not None and (not isinstance(value, str) or not 0 < len(value) <= RESPONSE_ID_CHARS_MAX):
        message = f"'previous_response_id' must be a string of 1 to {RESPONSE_ID_CHARS_MAX} characters."
        raise InvalidRequest(message, param="previous_response_id")
    return value


def _input_tokens(body: bytes, request: Mapping[str, object], asked: Asked) -> tuple[int, int]:
    """The bound of the input, and an estimate of it."""
    bound = text_tokens_max(body, asked.url_bytes, request, _RENDERED) + asked.images * IMAGE_TOKENS_MAX
    estimate = prompt_tokens_estimate(len(body) - asked.url_bytes, bound) + asked.images * IMAGE_TOKENS_ESTIMATE
    if asked.stored is not None or asked.fees:
        bound = _ANY_TOKENS
    return bound, estimate


def _unparsed(body: bytes) -> ReplySeen:
    """A reply that our parser refuses and a client's may not, or events under a wrong content type."""
    if body.lstrip().startswith((b"data:", b"event:", b":")):
        stream = ResponsesStream()
        stream.feed(body)
        stream.finish()
        return ReplySeen(stream.usage, stream.output_tokens_estimate, stream.failed, stream.service_tier, stream.made)
    scanned = LargeReply()
    scanned.feed(body)
    return ReplySeen(scanned.usage, scanned.count_output if scanned.is_complete else int, False)
