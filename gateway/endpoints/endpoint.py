"""What every endpoint gives the request flow: how to read a request, and how to read a reply. Pure.

An endpoint never decides about money. It bounds what was asked for, and reports what was seen.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable

from gateway.core.catalogue import Meter
from gateway.core.multipart import Form
from gateway.core.pricing import Quantities
from gateway.core.usage import Limits, Reading

__all__ = [
    "CallRequest",
    "Changes",
    "Described",
    "Endpoint",
    "InvalidRequest",
    "LargeReader",
    "Limits",
    "Made",
    "MakesResponse",
    "Output",
    "ReadsForms",
    "ReadsLarge",
    "ReplySeen",
    "StreamReader",
    "WholeReader",
]

NOTHING: Quantities = MappingProxyType({})
OUTPUT_TOKENS: Quantities = MappingProxyType({Meter.OUTPUT: 1})


class InvalidRequest(ValueError):
    """The caller's request cannot be metered as it stands; the message says what to change."""

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.message, self.param, self.code = message, param, code


class Output(StrEnum):
    """What bounds the tokens that a call may produce."""

    CAPPED = "capped"  # the client's cap, or one of ours that is set where there is none
    MODEL = "model"  # nothing but the model
    NONE = "none"  # no such tokens, or bounded among the request's extra quantities


class CallRequest(NamedTuple):
    """What decides the cost of a call, read from its body.

    `input_tokens_max` is a true upper bound of the text whatever the tokenizer; `input_tokens_estimate` is what to
    charge for it where the upstream does not say. `output_tokens_cap` is the client's own cap per choice, or None.
    `wants_usage` says that the client asked for the usage chunk of a stream.

    What few requests have: `extra_max` bounds what is used of other meters, and `extra_estimate` is the same without
    usage. `alternatives` are sets of meters of which a model is priced by one, such as characters, or text and audio
    tokens. `outputs` are the meters that the output may turn out to be, `output_units` what one counted unit of it is
    charged as without usage. `counted` are meters that are counted exactly without usage: a charge by these alone is no
    estimate. `stored` names the member that refers to what only the upstream knows the size of.
    `echo_tokens` estimates what of the reply is the prompt again. `fixed` is used once by every such call, whatever its
    usage says, and is part of `extra_max`. `for_model` gives the same request once the model's own name is known.
    `follows` is the response that this one goes on from, `unowned` names a member that refers to something of which
    nobody here knows whose it is. `keeps`: the upstream keeps the reply under its id. `background`: it works on when
    the call is over.
    """

    model: str
    stream: bool = False
    input_tokens_max: int = 0
    input_tokens_estimate: int = 0
    output_tokens_cap: int | None = None
    choices: int = 1
    wants_usage: bool = False
    output: Output = Output.CAPPED
    extra_max: Quantities = NOTHING
    extra_estimate: Quantities = NOTHING
    alternatives: tuple[frozenset[str], ...] = ()
    outputs: tuple[str, ...] = (Meter.OUTPUT,)
    output_units: Quantities = OUTPUT_TOKENS
    passes: int = 1
    service_tier: str = ""
    stored: str | None = None
    echo_tokens: int = 0
    fixed: Quantities = NOTHING
    for_model: "Callable[[CallRequest, str], CallRequest] | None" = None
    follows: str | None = None
    unowned: str | None = None
    keeps: bool = False
    background: bool = False
    counted: frozenset[str] = frozenset()


class Changes(NamedTuple):
    """What must be changed in a body before it goes upstream.

    `model`: its name there. `include_usage`: ask for the usage of a stream. `output_tokens_cap`: per choice, in
    `cap_member`, the member from which this upstream reads its cap: Ollama reads only `max_tokens`.
    """

    model: str | None = None
    include_usage: bool = False
    output_tokens_cap: int | None = None
    cap_member: str = "max_completion_tokens"


class Made(NamedTuple):
    """What an upstream keeps under an id of its own. `is_ended`: nothing more will be used for it."""

    response_id: str
    is_ended: bool


class Described(NamedTuple):
    """What an endpoint says of itself in the table of the README: phrases of Markdown."""

    meters: tuple[str, ...]  # every meter that a call may be charged by
    ceiling: str  # what bounds it
    usage: str  # where its use is read from, and what stands in for it


class ReplySeen(NamedTuple):
    """A whole non-streaming reply as the meter sees it. `usage` is the raw object, or None.

    `count_output` counts what was produced in units of the request's `output_units`.
    """

    usage: Mapping[str, object] | None
    count_output: Callable[[], int]
    failed: bool
    service_tier: str = ""
    made: Made | None = None


NOTHING_SEEN = ReplySeen(None, int, failed=False)


class StreamReader(Protocol):
    """Reads a reply as it passes: events, or sound. Retains at most one incomplete event, bounded in size.

    `ended`: the logical end was seen ([DONE] or its like). `failed`: the upstream sent an error event.
    `output_seen`: some generated output was relayed. `usage`: the merged raw usage so far, or None. `service_tier`:
    the tier that the reply names, or "".
    """

    ended: bool
    failed: bool

    @property
    def output_seen(self) -> bool: ...

    @property
    def usage(self) -> Mapping[str, object] | None: ...

    @property
    def service_tier(self) -> str: ...

    def feed(self, data: bytes) -> bytes:
        """Take one network read; return the bytes that the client may have now."""

    def finish(self) -> bytes:
        """The upstream's bytes have ended: return everything withheld, to be sent once the settle is durable."""

    def output_tokens_estimate(self) -> int:
        """Output relayed so far in units of the request's `output_units`: mostly tokens, estimated from the text and
        never below the events that carried output."""


@runtime_checkable
class MakesResponse(Protocol):
    """A StreamReader of what the upstream keeps. `made` is there before any byte that names it is given out."""

    @property
    def made(self) -> Made | None: ...


class Endpoint(Protocol):
    """One modality."""

    name: str
    described: Described

    def read_request(self, body: bytes, /) -> CallRequest:
        """Raises InvalidRequest."""

    def upstream_body(self, body: bytes, changes: Changes, /) -> bytes:
        """The body to send: with only those members set that must change, and `body` itself if none must.

        Raises InvalidRequest for a body that `read_request` would refuse.
        """

    def reply_reader(self, content_type: str, request: CallRequest, /) -> StreamReader | None:
        """What reads a reply of this type (in lower case) that is passed on as it comes; None for one that is read
        whole where it is not too large."""

    def error_end(self, document: Mapping[str, object]) -> bytes:
        """How a stream of events ends that cannot go on: an error event that the SDKs raise, and a well-formed end.

        `document` is OpenAI's envelope.
        """

    def read_reply(self, body: bytes, /) -> ReplySeen: ...

    def read_usage(self, usage: Mapping[str, object], limits: Limits, /) -> Reading | None:
        """Canonical usage; None where it says nothing (all zero). Raises InvalidUsage."""


@runtime_checkable
class ReadsForms(Protocol):
    """An endpoint whose requests may come as multipart forms. `forms_only`: and in no other way."""

    forms_only: bool

    def read_form(self, form: Form) -> CallRequest:
        """Raises InvalidRequest."""


class LargeReader(Protocol):
    """Reads a JSON reply that is too large to hold, as it passes (gateway/core/usage_json.py)."""

    @property
    def is_complete(self) -> bool: ...

    @property
    def usage(self) -> Mapping[str, object] | None: ...

    def feed(self, data: bytes) -> bytes: ...

    def look(self, data: bytes) -> None: ...

    def pass_on(self, data: bytes) -> bytes: ...

    def finish(self) -> bytes: ...

    def count_output(self) -> int: ...


class WholeReader(LargeReader, Protocol):
    """One that can do without parsing even where the reply is held until it is whole."""

    def seen(self) -> ReplySeen | None:
        """What was seen of it; None where it must be parsed."""


class ReadsLarge(Protocol):
    """An endpoint whose replies are mostly large, and looked through as they come."""

    def large_reply(self) -> WholeReader: ...
