"""Golden cases: what each kind of upstream answers, recorded, and what that costs to the nano, worked out by hand.

One gateway before an upstream of each kind. A token of input costs 2 nanos, from the cache 0.5, into the cache 2.5, and
a token of output 10. The bytes that the client gets are those of the recording, less the usage that it did not ask for.
"""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, get_args

import orjson
import pytest
import pytest_asyncio

from gateway.core.catalogue import Meter, Model, Rates
from gateway.db import prices
from gateway.settings import UpstreamSettings
from tests.support.behaviours import RawStream, Status
from tests.support.gateway import CONTEXT, OUTPUT
from tests.support.postgres import ScratchPostgres
from tests.support.recordings import REPLIES, STREAMS
from tests.support.shop import Shop, open_shop, visit
from tests.support.upstream import FakeUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

RATES: Rates = {Meter.INPUT: 2_000, Meter.CACHED_INPUT: 500, Meter.CACHE_WRITE: 2_500, Meter.OUTPUT: 10_000}
STREAM = {stream.name: stream for stream in STREAMS}
REPLY = {reply.name: reply for reply in REPLIES}

# (kind, recording, nanos): streams.
STREAMED = [
    ("openai", "openai_usage", 816),  # 107 x 2 + 1,024 x 0.5 + 9 x 10
    ("openai", "openai_tools", 4490),  # 124 x 2 + 1,024 x 0.5 + 1,152 x 2.5 + 85 x 10
    ("azure", "azure", 58),  # 14 x 2 + 3 x 10
    ("vllm", "vllm", 90),  # 25 x 2 + 4 x 10
    ("vllm", "vllm_continuous", 120),  # 25 x 2 + 7 x 10: the last chunk's, not a sum
    ("llamacpp", "llamacpp", 78),  # 19 x 2 + 4 x 10
    ("ollama", "ollama", 112),  # 31 x 2 + 5 x 10
    ("ollama", "ollama_text", 62),  # 6 x 2 + 5 x 10: after zeros on every chunk
    ("openrouter", "openrouter", 3080),  # 10 x 2 + 1,200 x 2.5 + 6 x 10; its own `cost` is none of ours
    ("groq", "groq", 114),  # 42 x 2 + 3 x 10, told twice
    ("deepseek", "deepseek", 128),  # 2 x 2 + 128 x 0.5 + 6 x 10
    ("together", "together", 116),  # 38 x 2 + 4 x 10, beside a choice
    ("mistral", "mistral", 84),  # 17 x 2 + 5 x 10, beside a choice
    ("xai", "xai", 3842),  # 188 x 2 + 512 x 0.5 + (3 + 318 outside) x 10
    ("gemini", "gemini", 514),  # 12 x 2 + (61 - 12) x 10: what was thought is in the total only
    ("litellm", "litellm", 86),  # 18 x 2 + 5 x 10
    ("openai", "anthropic", 112),  # 21 x 2 + 7 x 10
]
# Replies that are no streams. None is charged for.
WHOLE: list[tuple[str, str, int | None]] = [
    ("openai", "openai", 816),
    ("azure", "azure", 58),
    ("vllm", "vllm", 90),
    ("llamacpp", "llamacpp", 78),
    ("ollama", "ollama", 142),  # 31 x 2 + 8 x 10
    ("openrouter", "openrouter", 3080),
    ("openrouter", "openrouter_error", None),
    ("groq", "groq", 114),
    ("deepseek", "deepseek", 128),  # after four empty lines
    ("together", "together", 116),
    ("mistral", "mistral", 84),
    ("xai", "xai", 3842),
    ("gemini", "gemini", 514),
    ("litellm", "litellm", 86),
    ("openai", "anthropic", 112),
]
KINDS = get_args(UpstreamSettings.model_fields["kind"].annotation)


def settings_of(kind: str, upstream: FakeUpstream) -> dict[str, Any]:
    azure = {"base_url": upstream.url, "api_version": "2024-10-21"} if kind == "azure" else {}
    return {"name": kind, "kind": kind, "models": (f"{kind}-model",), **azure}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def market_all_day(scratch: ScratchPostgres) -> AsyncIterator[Shop]:
    """The fake behind all kinds is the shop's own; it is reached by as many upstreams."""
    async with FakeUpstream() as fake:
        each = [settings_of(kind, fake) for kind in KINDS]
        async with open_shop(scratch, "kinds", urls=[fake.base_url] * len(KINDS), each=each) as opened:
            app = opened.farebox.app
            names = [f"{kind}-model" for kind in KINDS]
            await prices.save_models(app.database, [Model(name, CONTEXT, OUTPUT) for name in names])
            now = datetime.now(UTC)
            versions = [prices.PriceVersion(name, now, RATES, (), "test") for name in names]
            await prices.add_prices(app.database, versions)
            await app.catalogue.run_once()
            yield Shop(opened.farebox, fake, opened.dsn, {})


@pytest_asyncio.fixture(loop_scope="module")
async def market(market_all_day: Shop) -> AsyncIterator[Shop]:
    async with visit(market_all_day) as shop:
        yield shop


async def charged(market: Shop, kind: str) -> tuple[int, str, str]:
    """(nanos, basis, resolution) of the one call, which went to this kind."""
    event = await market.event()
    assert (event["upstream"], event["cost_nanos"]) == (kind, event["charged_nanos"])
    return event["charged_nanos"], event["basis"], event["resolution"]


async def test_every_kind_has_both_forms() -> None:
    assert {kind for kind, *_ in STREAMED} == {kind for kind, *_ in WHOLE} == set(KINDS)


@pytest.mark.parametrize("wants_usage", [False, True], ids=["unasked", "asked"])
@pytest.mark.parametrize(("kind", "name", "nanos"), STREAMED, ids=[name for _, name, _ in STREAMED])
async def test_a_stream(market: Shop, kind: str, name: str, nanos: int, wants_usage: bool) -> None:
    recorded = STREAM[name]
    market.upstream.next(RawStream(list(recorded.events)))
    asked = {"stream_options": {"include_usage": True}} if wants_usage else {}
    async with market.chat(model=f"{kind}-model", stream=True, **asked) as response:
        assert await response.read() == b"".join(recorded.kept(remove_usage=not wants_usage))
    assert await charged(market, kind) == (nanos, "reported", "settled")
    sent = orjson.loads(market.upstream.log[0].body)
    expected = {"include_usage": True} if wants_usage or kind not in ("mistral", "openrouter") else None
    assert sent.get("stream_options") == expected


@pytest.mark.parametrize(("kind", "name", "nanos"), WHOLE, ids=[name for _, name, _ in WHOLE])
async def test_a_whole_reply(market: Shop, kind: str, name: str, nanos: int | None) -> None:
    body = REPLY[name].body
    market.upstream.next(Status(200, body))
    async with market.chat(model=f"{kind}-model") as response:
        assert await response.read() == body
    expected = (0, "none", "voided") if nanos is None else (nanos, "reported", "settled")
    assert await charged(market, kind) == expected


async def test_a_refusal_in_an_envelope_of_their_own_is_passed_on(market: Shop) -> None:
    body = REPLY["mistral_error"].body
    market.upstream.next(Status(422, body))
    async with market.chat(model="mistral-model", stream=True) as response:
        assert (response.status, await response.read()) == (422, body)
    assert await charged(market, "mistral") == (0, "none", "voided")
