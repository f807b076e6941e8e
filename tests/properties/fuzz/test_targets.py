"""The targets of `make fuzz`, briefly: on every seed, and on seeds that Hypothesis has taken apart.

And a reader of a stream that is all one line: what it keeps back is bounded, at every endpoint.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.sse import EVENT_BYTES_MAX, EVENT_STREAM
from gateway.endpoints.endpoint import Endpoint
from gateway.web.routes import METERED
from tests.properties.fuzz.run import CRUMBS, seed_inputs
from tests.properties.fuzz.targets import STREAMING, TARGETS, specified_usage

SEEDS = seed_inputs()
PIECES = st.one_of(st.sampled_from(CRUMBS), st.binary(max_size=8))
INPUTS = st.builds(
    lambda seed, at, length, piece: seed[: at % len(seed)] + b"".join(piece) + seed[at % len(seed) + length :],
    st.sampled_from(SEEDS),
    st.integers(0, 4_096),
    st.integers(0, 64),
    st.lists(PIECES, max_size=6),
)
STREAMED = [endpoint for endpoint in METERED.values() if endpoint.reply_reader(EVENT_STREAM, STREAMING) is not None]


@pytest.mark.parametrize("name", TARGETS)
def test_every_seed_holds(name: str) -> None:
    for seed in SEEDS:
        TARGETS[name](seed)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_taken_apart_hold(name: str) -> None:
    target = TARGETS[name]

    @settings(max_examples=40, deadline=None)
    @given(data=INPUTS)
    def check(data: bytes) -> None:
        target(data)

    check()


def test_the_oracle_of_usage_finds_it() -> None:
    assert specified_usage(b'data: {"usage":{"prompt_tokens":3}}\r\r: x\n\ndata: {"choices":\ndata: []}') == (
        {"prompt_tokens": 3},
        True,
    )


@pytest.mark.parametrize("endpoint", STREAMED, ids=lambda endpoint: endpoint.name)
@pytest.mark.parametrize(
    "start", [b"data: ", b'data: {"usage":{"prompt_tokens":"', b"data: [DONE]\n\ndata: ", b": ", b""]
)
def test_a_stream_that_is_one_line_is_passed_on(endpoint: Endpoint, start: bytes) -> None:
    reader = endpoint.reply_reader(EVENT_STREAM, STREAMING)
    assert reader is not None
    kept, read = len(start), b"x" * 65_536
    kept -= len(reader.feed(start))
    for _ in range(40):
        kept += len(read) - len(reader.feed(read))
    # After the end nothing more is passed on, and what is over the limit is dropped.
    kept = len(reader.finish()) if b"[DONE]" in start else kept
    assert kept <= 3 * EVENT_BYTES_MAX
