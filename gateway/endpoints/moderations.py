"""Moderations: free at OpenAI, and without usage. A model is on offer where its price has a rate per request, if 0.

That rate is the whole cost, so nothing is estimated. A model that is priced by tokens is refused here: what it would
use is not said.
"""

from collections.abc import Mapping
from types import MappingProxyType

import orjson

from gateway.core.catalogue import Meter
from gateway.core.usage import Limits, Reading
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
from gateway.endpoints.json_reply import parse_reply
from gateway.endpoints.json_request import Names, changed_body, read_model, read_object

DEFAULT_MODEL = "omni-moderation-latest"

_NAMES = Names({"input", "model"})
_ONE_REQUEST: Mapping[str, object] = MappingProxyType({"requests": 1})


class ModerationsEndpoint:
    """`POST /v1/moderations`."""

    name = "moderations"
    described = Described(
        (Meter.REQUESTS,),
        "one request",
        "one request for a reply with results",
    )

    def read_request(self, body: bytes) -> CallRequest:
        request = read_object(body, _NAMES)
        model = read_model(request, DEFAULT_MODEL)
        if not isinstance(request.get("input"), str | list) or not request["input"]:
            raise InvalidRequest("'input' must be a string or a list, and not empty.", param="input")
        return CallRequest(
            model=model,
            stream=False,
            input_tokens_max=0,
            input_tokens_estimate=0,
            output_tokens_cap=None,
            choices=1,
            wants_usage=False,
            output=Output.NONE,
            alternatives=(frozenset({Meter.REQUESTS}),),
            outputs=(),
            output_units=NOTHING,
        )

    def upstream_body(self, body: bytes, changes: Changes) -> bytes:
        return changed_body(body, model=changes.model)

    def reply_reader(self, _content_type: str, _request: CallRequest) -> None:
        return None

    def error_end(self, document: Mapping[str, object]) -> bytes:
        return b"data: %s\n\n" % orjson.dumps(document)

    def read_reply(self, body: bytes) -> ReplySeen:
        """A reply with results is one request, and that is all there is to know of it."""
        reply = parse_reply(body)
        if reply is None:
            return NOTHING_SEEN
        has_results = isinstance(reply.get("results"), list)
        return ReplySeen(_ONE_REQUEST if has_results else None, lambda: int(has_results), is_error(reply))

    def read_usage(self, _usage: Mapping[str, object], _limits: Limits) -> Reading | None:
        return Reading({Meter.REQUESTS: 1})
