"""Text completions, the older kind: several prompts in one request, as text or as tokens, and several candidates each.

Without `max_tokens` OpenAI stops at 16 tokens and other servers at the end of the context, so the model's maximum is
held. `echo` repeats the prompt in the reply; nobody bills it as output.
"""

from collections.abc import Mapping
from typing import NamedTuple

import orjson

from gateway.core.catalogue import Meter
from gateway.core.estimate import prompt_tokens_estimate, tokens_from_bytes, utf8_bytes
from gateway.core.sse import EVENT_STREAM
from gateway.core.usage import Limits, Reading, read_token_usage
from gateway.endpoints.chat_stream import ChatStream
from gateway.endpoints.completion_reply import read_completion
from gateway.endpoints.endpoint import CallRequest, Changes, Described, InvalidRequest, ReplySeen
from gateway.endpoints.json_request import (
    OUTPUT_TOKENS_CAP_MAX,
    Names,
    cap_members,
    changed_body,
    is_token_list,
    read_flag,
    read_model,
    read_object,
    read_tier,
    read_wants_usage,
    read_whole,
    refuse_present,
    usage_member,
)

CANDIDATES_MAX = 128
PROMPTS_MAX = 2_048
# What a server may add once: a template, or the system prompt of a model that has one.
TEMPLATE_TOKENS_MAX = 256
# What it adds to each prompt: begin and end, and the marks between prefix, suffix and middle.
PROMPT_TOKENS_MAX = 8

_CAP = "max_tokens"
# Nothing here bounds what these cost: another model, searches, caps under other names, prompts as vectors.
_NOT_METERED = frozenset({"max_completion_tokens", "models", "n_predict", "plugins", "preset", "prompt_embeds"})
_NAMES = Names(
    _NOT_METERED
    | {"best_of", "echo", "max_tokens", "model", "n", "prompt", "service_tier", "stream", "stream_options", "suffix"},
    {
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "min_p",
        "presence_penalty",
        "repetition_penalty",
        "seed",
        "stop",
        "temperature",
        "top_k",
        "top_p",
        "user",
    },
)


class _Prompts(NamedTuple):
    number: int
    tokens: int  # given as such
    text_bytes: int


class CompletionsEndpoint:
    """`POST /v1/completions`."""

    name = "completions"
    described = Described(
        (Meter.INPUT, Meter.CACHED_INPUT, Meter.CACHE_WRITE, Meter.OUTPUT, Meter.REASONING_OUTPUT),
        "bytes of the body, or the tokens given; `max_tokens`, or the model's maximum, for each prompt and candidate",
        "`usage`, or the last usage event of a stream; else a token for four bytes of text, the echo taken off",
    )

    def read_request(self, body: bytes) -> CallRequest:
        request = read_object(body, _NAMES)
        model = read_model(request)
        stream = read_flag(request, "stream")
        cap = read_whole(request, _CAP, OUTPUT_TOKENS_CAP_MAX, minimum=0)
        candidates = max(read_whole(request, name, CANDIDATES_MAX) or 1 for name in ("n", "best_of"))
        wants_usage = read_wants_usage(body, request, stream=stream)
        refuse_present(request, _NOT_METERED)
        prompts = _read_prompts(request.get("prompt"))
        suffix = request.get("suffix")
        if suffix is not None and not isinstance(suffix, str):
            raise InvalidRequest("'suffix' must be a string.", param="suffix")
        suffix_bytes = utf8_bytes(suffix) if suffix else 0
        # A text is at least its bytes of JSON, and what else is in the body may be rendered as well; see chat.py.
        text_bytes = 0 if prompts.tokens else len(body)
        text_bytes += (prompts.number if prompts.tokens else prompts.number - 1) * suffix_bytes
        bound = prompts.tokens + text_bytes + TEMPLATE_TOKENS_MAX + PROMPT_TOKENS_MAX * prompts.number
        echoed = prompts.tokens + tokens_from_bytes(prompts.text_bytes) if read_flag(request, "echo") else 0
        return CallRequest(
            model=model,
            stream=stream,
            input_tokens_max=bound,
            input_tokens_estimate=prompts.tokens + prompt_tokens_estimate(text_bytes, bound),
            output_tokens_cap=cap,
            choices=prompts.number * candidates,
            wants_usage=wants_usage,
            service_tier=read_tier(request),
            echo_tokens=echoed * candidates,
        )

    def upstream_body(self, body: bytes, changes: Changes) -> bytes:
        """The cap has one name here, which every upstream reads."""

        def members(body: bytes) -> dict[str, object]:
            wanted = usage_member(body) if changes.include_usage else {}
            if (cap := changes.output_tokens_cap) is not None:
                wanted |= cap_members(body, frozenset({_CAP}), _CAP, _CAP, cap)
            return wanted

        return changed_body(body, model=changes.model, members=members)

    def reply_reader(self, content_type: str, request: CallRequest) -> ChatStream | None:
        if not content_type.startswith(EVENT_STREAM):
            return None
        remove_usage = request.stream and not request.wants_usage
        if request.echo_tokens:
            return EchoStream(request.echo_tokens, remove_usage=remove_usage)
        return ChatStream(remove_usage=remove_usage)

    def error_end(self, document: Mapping[str, object]) -> bytes:
        return b"data: %s\n\ndata: [DONE]\n\n" % orjson.dumps(document)

    def read_reply(self, body: bytes) -> ReplySeen:
        return read_completion(body)

    def read_usage(self, usage: Mapping[str, object], limits: Limits) -> Reading | None:
        return read_token_usage(usage, limits)


class EchoStream(ChatStream):
    """A stream that begins with the prompt: so many tokens, by estimate, are no output."""

    __slots__ = ("_echo_tokens",)

    def __init__(self, echo_tokens: int, *, remove_usage: bool) -> None:
        super().__init__(remove_usage=remove_usage)
        self._echo_tokens = echo_tokens

    def output_tokens_estimate(self) -> int:
        return max(0, super().output_tokens_estimate() - self._echo_tokens)


def _read_prompts(prompt: object) -> _Prompts:
    """A text, a list of texts, a list of tokens, or a list of lists of tokens; without any the server has its own."""
    if prompt is None:
        return _Prompts(1, 0, 0)
    if isinstance(prompt, str):
        return _Prompts(1, 0, utf8_bytes(prompt))
    if isinstance(prompt, list) and prompt:
        kinds = set(map(type, prompt))
        if is_token_list(prompt, kinds):
            return _Prompts(1, len(prompt), 0)
        if len(prompt) > PROMPTS_MAX:
            raise InvalidRequest(f"'prompt' must hold at most {PROMPTS_MAX} prompts.", param="prompt")
        if kinds == {str}:
            return _Prompts(len(prompt), 0, sum(map(utf8_bytes, prompt)))
        if kinds == {list} and all(is_token_list(item) for item in prompt):
            return _Prompts(len(prompt), sum(map(len, prompt)), 0)
    raise InvalidRequest(
        "'prompt' must be a string, or a list of strings, of tokens or of token lists.", param="prompt"
    )
