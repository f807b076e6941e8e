"""A request that is passed on as it is, by the operator's leave: nothing of it is read but that it was one.

Its price is flat: one `requests`, whatever it asks for, where the upstream answers it with success.
"""

from collections.abc import Mapping

import orjson

from gateway.core.catalogue import Meter
from gateway.core.sse import EVENT_STREAM
from gateway.core.usage import Limits, Reading
from gateway.endpoints.endpoint import CallRequest, Changes, Described, Output, ReplySeen

_ONE_REQUEST: Mapping[str, object] = {Meter.REQUESTS: 1}
_NOTHING = Reading({})  # the one request is counted by its price


class PassedEndpoint:
    """`model` is what the request is priced as."""

    name = "passed"

    described = Described((Meter.REQUESTS,), "one request, at the price of its rule", "one request")

    def __init__(self, model: str) -> None:
        self._request = CallRequest(
            model=model,
            stream=False,
            input_tokens_max=0,
            input_tokens_estimate=0,
            output_tokens_cap=None,
            choices=1,
            wants_usage=False,
            output=Output.NONE,
        )

    def read_request(self, _body: bytes) -> CallRequest:
        return self._request

    def upstream_body(self, body: bytes, _changes: Changes) -> bytes:
        return body

    def reply_reader(self, content_type: str, _request: CallRequest) -> "PassedReply | None":
        """Any body passes as it comes; what has none is read whole."""
        return PassedReply(content_type.startswith(EVENT_STREAM)) if content_type else None

    def error_end(self, document: Mapping[str, object]) -> bytes:
        return b"data: %s\n\n" % orjson.dumps(document)

    def read_reply(self, _body: bytes) -> ReplySeen:
        return ReplySeen(_ONE_REQUEST, int, False)

    def read_usage(self, _usage: Mapping[str, object], _limits: Limits) -> Reading | None:
        return _NOTHING


class PassedReply:
    """Passes everything on, and keeps back the last read of what is no stream of events: it waits for the settle."""

    ended = False
    failed = False
    output_seen = True
    usage: Mapping[str, object] | None = _ONE_REQUEST
    service_tier = ""

    def __init__(self, is_events: bool) -> None:
        self._is_events = is_events
        self._kept = b""

    def feed(self, data: bytes) -> bytes:
        if self._is_events:
            return data
        passed, self._kept = self._kept, data
        return passed

    def finish(self) -> bytes:
        return self._kept

    def output_tokens_estimate(self) -> int:
        return 0
