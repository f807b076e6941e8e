"""Embeddings: vectors of texts, paid for by the tokens of the texts. Pure."""

import unicodedata
from collections.abc import Mapping
from typing import NamedTuple

import orjson

from gateway.core.catalogue import Meter
from gateway.core.estimate import prompt_tokens_estimate, utf8_bytes
from gateway.core.json_members import parse
from gateway.core.sse import BOM
from gateway.core.usage import Limits, Reading, read_token_usage
from gateway.core.usage_json import LargeReply
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
from gateway.endpoints.json_reply import usage_in
from gateway.endpoints.json_request import (
    Names,
    changed_body,
    is_token_list,
    read_model,
    read_object,
    read_tier,
    refuse_present,
)

INPUTS_MAX = 2_048
# What a model adds to each text: begin, end, separators, a short instruction.
INPUT_TOKENS_MAX = 16
# Usage stands at the end of a reply, behind megabytes of numbers that nobody needs to parse.
_TAIL_BYTES = 512

# Inputs of other kinds, at other prices, or another model.
_NOT_METERED = frozenset({"images", "inputs", "messages", "models"})
_NAMES = Names(
    _NOT_METERED | {"input", "model", "service_tier"}, {"dimensions", "encoding_format", "input_type", "user"}
)


class _Inputs(NamedTuple):
    number: int
    tokens_max: int
    text_bytes: int
    tokens: int  # given as such


class EmbeddingsEndpoint:
    """`POST /v1/embeddings`."""

    name = "embeddings"
    described = Described(
        (Meter.INPUT,),
        "bytes of each text, in its NFKC form where that is longer, or the tokens given",
        "`usage`; else a token for four bytes of text",
    )

    def read_request(self, body: bytes) -> CallRequest:
        request = read_object(body, _NAMES)
        model = read_model(request)
        refuse_present(request, _NOT_METERED)
        inputs = _read_inputs(request.get("input"))
        bound = inputs.tokens_max + INPUT_TOKENS_MAX * inputs.number
        return CallRequest(
            model=model,
            stream=False,
            input_tokens_max=bound,
            input_tokens_estimate=inputs.tokens + prompt_tokens_estimate(inputs.text_bytes, bound),
            output_tokens_cap=None,
            choices=1,
            wants_usage=False,
            output=Output.NONE,
            outputs=(),
            output_units=NOTHING,
            # Each text has a context of its own.
            passes=inputs.number,
            service_tier=read_tier(request),
        )

    def upstream_body(self, body: bytes, changes: Changes) -> bytes:
        return changed_body(body, model=changes.model)

    def reply_reader(self, _content_type: str, _request: CallRequest) -> None:
        return None

    def error_end(self, document: Mapping[str, object]) -> bytes:
        return b"data: %s\n\n" % orjson.dumps(document)

    def read_reply(self, body: bytes) -> ReplySeen:
        """Vectors count as one unit of output, which costs nothing: it tells a reply from none."""
        if (usage := _last_usage(body)) is not None:
            return ReplySeen(usage, lambda: 1, False)
        try:
            reply = parse(body.removeprefix(BOM))
        except orjson.JSONDecodeError:
            scanned = LargeReply()
            scanned.feed(body.removeprefix(BOM))
            return ReplySeen(scanned.usage, lambda: 1 if scanned.is_complete else 0, False)
        if not isinstance(reply, dict):
            return NOTHING_SEEN
        count = 1 if reply.get("data") else 0
        return ReplySeen(usage_in(reply), lambda: count, is_error(reply))

    def read_usage(self, usage: Mapping[str, object], limits: Limits) -> Reading | None:
        """Usage without an output count has none."""
        if usage.get("completion_tokens") is None and usage.get("output_tokens") is None:
            usage = {**usage, "completion_tokens": 0}
        return read_token_usage(usage, limits)


def _last_usage(body: bytes) -> Mapping[str, object] | None:
    """The usage at the very end of a long reply that does not begin with an error; None where it must be looked for.

    What follows the name must be the rest of an object with one closing brace too many, so nothing nested passes; and
    no string holds a bare quote.
    """
    at = body.rfind(b'"usage"', max(0, len(body) - _TAIL_BYTES))
    if at < _TAIL_BYTES or not body.startswith(b"{") or body.find(b"error", 0, _TAIL_BYTES) >= 0:
        return None
    try:
        end = parse(b"{" + body[at:])
    except orjson.JSONDecodeError:
        return None
    usage = end.get("usage") if isinstance(end, dict) else None
    return usage if isinstance(usage, dict) else None


def _read_inputs(given: object) -> _Inputs:
    """A text, a list of texts, a list of tokens, or a list of lists of tokens. Raises InvalidRequest."""
    if isinstance(given, str):
        return _texts([given])
    if isinstance(given, list) and given:
        kinds = set(map(type, given))
        if is_token_list(given, kinds):
            return _Inputs(1, len(given), 0, len(given))
        if len(given) > INPUTS_MAX:
            raise InvalidRequest(f"'input' must hold at most {INPUTS_MAX} texts.", param="input")
        if kinds == {str}:
            return _texts(given)
        if kinds == {list} and all(is_token_list(item) for item in given):
            tokens = sum(map(len, given))
            return _Inputs(len(given), tokens, 0, tokens)
    raise InvalidRequest("'input' must be a string, or a list of strings, of tokens or of token lists.", param="input")


def _texts(texts: list[str]) -> _Inputs:
    """Many of these models read the NFKC form of a text, which can be longer: one character of 3 bytes becomes 33."""
    tokens_max = text_bytes = 0
    for text in texts:
        size = utf8_bytes(text)
        text_bytes += size
        tokens_max += size if text.isascii() else max(size, utf8_bytes(unicodedata.normalize("NFKC", text)))
    return _Inputs(len(texts), tokens_max, text_bytes, 0)
