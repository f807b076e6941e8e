"""What every endpoint gives the request flow: how to read a request, and how to read a reply. Pure.

An endpoint never decides about money. It bounds what was asked for, and reports what was seen.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from gateway.core.usage import Limits, Reading

__all__ = [
    "CallRequest",
    "Endpoint",
    "InvalidRequest",
    "Limits",
    "ReplySeen",
    "StreamReader",
]


class InvalidRequest(ValueError):
    """The caller's request cannot be metered as it stands; the message says what to change."""

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.message, self.param, self.code = message, param, code


class CallRequest(NamedTuple):
    """What decides the cost of a call, read from its body.

    `input_tokens_max` is a true upper bound whatever the tokenizer; `input_tokens_estimate` is what to charge for the
    input where the upstream does not say. `output_tokens_cap` is the client's own cap per choice, or None.
    `wants_usage` says that the client asked for the usage chunk of a stream.
    """

    model: str
    stream: bool
    input_tokens_max: int
    input_tokens_estimate: int
    output_tokens_cap: int | None
    choices: int
    wants_usage: bool


class ReplySeen(NamedTuple):
    """A whole non-streaming reply as the meter sees it. `usage` is the raw object, or None."""

    usage: Mapping[str, object] | None
    count_output: Callable[[], int]
    failed: bool


class StreamReader(Protocol):
    """Reads a stream as it passes. Retains at most one incomplete event, bounded in size.

    `ended`: the logical end was seen ([DONE] or its like). `failed`: the upstream sent an error event.
    `output_seen`: some generated output was relayed. `usage`: the merged raw usage so far, or None.
    """

    ended: bool
    failed: bool

    @property
    def output_seen(self) -> bool: ...

    @property
    def usage(self) -> Mapping[str, object] | None: ...

    def feed(self, data: bytes) -> bytes:
        """Take one network read; return the bytes that the client may have now."""

    def finish(self) -> bytes:
        """The upstream's bytes have ended: return everything withheld, to be sent once the settle is durable."""

    def output_tokens_estimate(self) -> int:
        """Output tokens relayed so far, estimated from the text; never below the events that carried output."""


class Endpoint(Protocol):
    """One modality."""

    name: str

    def read_request(self, body: bytes) -> CallRequest:
        """Raises InvalidRequest."""

    def upstream_body(
        self,
        body: bytes,
        *,
        model: str | None,
        include_usage: bool,
        output_tokens_cap: int | None,
        cap_member: str = "max_completion_tokens",
    ) -> bytes:
        """The body to send: `body` itself, but for a renamed model, usage asked for, or a cap (in tokens per choice).

        Raises InvalidRequest for a body that `read_request` would refuse.
        `cap_member` is the member from which this upstream reads its cap: Ollama reads only `max_tokens`.
        """

    def stream_reader(self, *, remove_usage: bool) -> StreamReader: ...

    def read_reply(self, body: bytes) -> ReplySeen: ...

    def read_usage(self, usage: Mapping[str, object], limits: Limits) -> Reading | None:
        """Canonical usage; None where it says nothing (all zero). Raises InvalidUsage."""
