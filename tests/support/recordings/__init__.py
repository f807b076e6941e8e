"""Replies of many upstreams, in the shapes that the metering reference describes, and what each of them means.

The numbers are worked out by hand from the files: `output_tokens_estimate` is the larger of the events with output and
a quarter of the bytes of its text, rounded up. `usage_only` names the events, counted from 0, that hold usage and
nothing else.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gateway.core.catalogue import Meter
from gateway.core.usage import Limits

LIMITS = Limits(input_tokens_max=128_000, output_tokens_max=16_384)
BOM = b"\xef\xbb\xbf"

_DIRECTORY = Path(__file__).parent


def tokens(input_: int, output: int, cached: int = 0, cache_write: int = 0) -> dict[str, int]:
    """Quantities, without the meters that saw nothing."""
    quantities = {
        Meter.INPUT: input_,
        Meter.OUTPUT: output,
        Meter.CACHED_INPUT: cached,
        Meter.CACHE_WRITE: cache_write,
    }
    return {meter: quantity for meter, quantity in quantities.items() if quantity}


@dataclass(frozen=True, slots=True)
class Stream:
    """A recorded stream. `quantities` is None where the upstream reported nothing."""

    name: str
    output_tokens_estimate: int
    quantities: Mapping[str, int] | None = None
    reasoning_tokens: int = 0
    usage_only: tuple[int, ...] = ()
    ended: bool = True
    failed: bool = False
    events: tuple[bytes, ...] = field(init=False)

    def __post_init__(self) -> None:
        parts = (_DIRECTORY / f"{self.name}.sse").read_bytes().split(b"\n\n")
        assert parts.pop() == b"", "a recording ends with a blank line"
        object.__setattr__(self, "events", tuple(part + b"\n\n" for part in parts))

    def kept(self, *, remove_usage: bool) -> tuple[bytes, ...]:
        """The events that the client is to have."""
        return tuple(
            event for position, event in enumerate(self.events) if not remove_usage or position not in self.usage_only
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """A recorded reply that is not a stream."""

    name: str
    output_tokens_estimate: int
    quantities: Mapping[str, int] | None = None
    reasoning_tokens: int = 0
    failed: bool = False

    @property
    def body(self) -> bytes:
        return (_DIRECTORY / f"{self.name}.json").read_bytes()


STREAMS = (
    Stream("openai_usage", 10, tokens(107, 9, cached=1024), usage_only=(7,)),
    Stream("openai_plain", 10),
    Stream("openai_tools", 5, tokens(124, 85, cached=1024, cache_write=1152), reasoning_tokens=64, usage_only=(5,)),
    Stream("azure", 2, tokens(14, 3), usage_only=(6,)),
    Stream("vllm", 3, tokens(25, 4), usage_only=(5,)),
    Stream("vllm_continuous", 5, tokens(25, 7), usage_only=(8,)),
    Stream("vllm_error", 2, failed=True),
    Stream("llamacpp", 4, tokens(19, 4), usage_only=(5,)),
    Stream("ollama", 5, tokens(31, 5), usage_only=(5,)),
    Stream("ollama_text", 4, tokens(6, 5)),
    Stream("openrouter", 5, tokens(10, 6, cache_write=1200)),
    Stream("openrouter_error", 2, ended=False, failed=True),
    Stream("groq", 3, tokens(42, 3)),
    Stream("deepseek", 7, tokens(2, 6, cached=128), reasoning_tokens=3),
    Stream("together", 4, tokens(38, 4)),
    Stream("mistral", 4, tokens(17, 5)),
    # 61 in all less 12 of prompt: the 10 of the completion count leave out the thinking.
    Stream("gemini", 9, tokens(12, 49)),
    # 1,021 in all less 700 of prompt: 318 of reasoning stand outside the 3 of the completion count.
    Stream("xai", 6, tokens(188, 321, cached=512), reasoning_tokens=318, usage_only=(4,)),
    Stream("litellm", 4, tokens(18, 5)),
    Stream("anthropic", 7, tokens(21, 7), usage_only=(4,)),
    Stream("usage_after_end", 3, tokens(9, 3), usage_only=(5,)),
)

REPLIES = (
    Reply("openai", 12, tokens(107, 9, cached=1024)),
    Reply("azure", 2, tokens(14, 3)),
    Reply("vllm", 3, tokens(25, 4)),
    Reply("llamacpp", 3, tokens(19, 4)),
    Reply("llamacpp_without_usage", 5),
    Reply("ollama", 2, tokens(31, 8)),
    Reply("openrouter", 5, tokens(10, 6, cache_write=1200)),
    Reply("openrouter_error", 0, failed=True),
    Reply("groq", 2, tokens(42, 3)),
    Reply("deepseek", 5, tokens(2, 6, cached=128), reasoning_tokens=3),
    Reply("together", 5, tokens(38, 4)),
    Reply("mistral", 4, tokens(17, 5)),
    Reply("mistral_error", 0, failed=True),
    # As in their streams: what was thought stands outside the completion count, and inside the total.
    Reply("gemini", 9, tokens(12, 49)),
    Reply("xai", 6, tokens(188, 321, cached=512), reasoning_tokens=318),
    Reply("litellm", 4, tokens(18, 5)),
    Reply("anthropic", 7, tokens(21, 7)),
)


def _multi_line(event: bytes) -> bytes:
    return event.replace(b',"choices":', b',\ndata: "choices":')


def _mixed(event: bytes) -> bytes:
    return _multi_line(event).replace(b"\ndata:", b"\rdata:").removesuffix(b"\n\n") + b"\n\r\n"


# The same events as other servers would spell them.
WIRE_FORMS: Mapping[str, Callable[[bytes], bytes]] = {
    "lf": lambda event: event,
    "crlf": lambda event: event.replace(b"\n", b"\r\n"),
    "cr": lambda event: event.replace(b"\n", b"\r"),
    "no space": lambda event: event.replace(b"data: ", b"data:"),
    "named": lambda event: b"event: message\nid: 7\nretry: 9\n" + event,
    "multi-line": _multi_line,
    "multi-line crlf": lambda event: _multi_line(event).replace(b"\n", b"\r\n"),
    "mixed": _mixed,
}
