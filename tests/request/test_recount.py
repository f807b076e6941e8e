"""Between a refused hold and its 402: a lower bound where there is a true one, and one more try."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.catalogue import Meter, Model
from gateway.core.money import format_nanos
from gateway.db import prices
from gateway.metrics import Metrics
from gateway.request.admit import Offer, Shelf
from gateway.request.recount import TEXT_CHARS_MAX, Recounted, Recounter, counter
from tests.support.behaviours import Completion
from tests.support.gateway import CONTEXT, OUTPUT, RATES
from tests.support.offers import offer_of, price_of, shelf_of, upstream_of
from tests.support.postgres import ScratchPostgres
from tests.support.shop import Shop, open_shop, visit

KNOWN = "gpt-4o"
ENGLISH = "The quick brown fox jumps over the lazy dog, and nobody minds. " * 64
in_the_module = pytest.mark.asyncio(loop_scope="module")


# The bound itself ----------------------------------------------------------------------------------------------------


def known_shelf(name: str = KNOWN, **upstream: Any) -> Shelf:
    return shelf_of([Model(name, CONTEXT, OUTPUT)], [price_of(name)], [upstream_of(**upstream)])


def known_offer(name: str = KNOWN, shelf: Shelf | None = None, **members: object) -> Offer:
    chosen: dict[str, Any] = {"model": name, "max_tokens": 10, **members}
    return offer_of(shelf or known_shelf(name), **chosen)


def user(content: object) -> list[object]:
    return [{"role": "user", "content": content}]


@contextmanager
def recounter(load: Callable[[str], Callable[[str], int]] | None = None) -> Iterator[tuple[Recounter, Metrics]]:
    metrics = Metrics()
    made = Recounter(metrics, is_on=True, load=load)
    try:
        yield made, metrics
    finally:
        made.close()


async def recount(made: Recounter, offer: Offer, available_nanos: int = 10**12) -> Offer | None:
    return await made.offer(offer, available_nanos, min_output_tokens=16, hold_slice_tokens=4_096)


def outcomes(metrics: Metrics) -> dict[str, float]:
    """The outcomes that were counted."""
    values = {
        name: metrics.registry.get_sample_value("farebox_recounts_total", {"outcome": name}) for name in Recounted
    }
    return {str(name): value for name, value in values.items() if value}


async def test_plain_text_is_bounded_four_times_lower() -> None:
    offer = known_offer(messages=user(ENGLISH))
    with recounter() as (made, metrics):
        lower = await recount(made, offer)
    assert lower is not None
    assert lower.is_recounted
    assert counter("o200k_base")(ENGLISH) < lower.request.input_tokens_max < offer.request.input_tokens_max / 2.5
    assert lower.ceiling.nanos == lower.request.input_tokens_max + 4 * 10
    assert (lower.body, lower.request.output_tokens_cap) == (offer.body, 10)
    assert outcomes(metrics) == {"lowered": 1}


def missing(_: str) -> Callable[[str], int]:
    raise ImportError("no tokenizer")


@pytest.mark.parametrize(
    ("offer", "available", "load", "outcome"),
    [
        (known_offer(messages=user("short")), 10**12, None, Recounted.NOT_LOWER),
        (known_offer(messages=user(ENGLISH)), 0, None, Recounted.HOPELESS),
        (known_offer(messages=user(ENGLISH)), 39, None, Recounted.HOPELESS),
        (known_offer("mistral-large", messages=user(ENGLISH)), 10**12, None, Recounted.UNKNOWN_MODEL),
        # An upstream that knows the model by another name may serve another one.
        (
            known_offer(shelf=known_shelf(rename={KNOWN: "llama"}), messages=user(ENGLISH)),
            10**12,
            None,
            Recounted.UNKNOWN_MODEL,
        ),
        (known_offer(messages=user("a" * (TEXT_CHARS_MAX + 1))), 10**12, None, Recounted.TOO_LARGE),
        (known_offer(messages=user(ENGLISH)), 10**12, missing, Recounted.NO_TOKENIZER),
    ],
    ids=["short", "empty wallet", "output alone is dearer", "unknown model", "renamed", "too large", "no tokenizer"],
)
async def test_without_a_lower_bound_the_refusal_stands(
    offer: Offer, available: int, load: Any, outcome: Recounted
) -> None:
    with recounter(load) as (made, metrics):
        assert await recount(made, offer, available) is None
    assert outcomes(metrics) == {outcome: 1}


async def test_what_refers_to_unknown_text_is_never_recounted() -> None:
    offer = known_offer(messages=user(ENGLISH))
    with recounter() as (made, metrics):
        request = offer.request._replace(stored="file_id")
        assert await recount(made, offer._replace(request=request)) is None
    assert outcomes(metrics) == {"unknown_model": 1}


@pytest.mark.parametrize(
    "members",
    [{"web_search_options": {}}, {"prompt_cache_options": {"ttl": "12h"}}],
    ids=["what a search finds", "a long cache"],
)
async def test_what_is_bounded_otherwise_is_not_recounted(members: dict[str, Any]) -> None:
    rates = {**RATES, Meter.WEB_SEARCHES: 10**7, Meter.CACHE_WRITE_12H: 2_000}
    shelf = shelf_of([Model(KNOWN, CONTEXT, OUTPUT)], [price_of(KNOWN, rates)])
    with recounter() as (made, metrics):
        assert await recount(made, known_offer(shelf=shelf, messages=user(ENGLISH), **members)) is None
    assert outcomes(metrics) == {"not_lower": 1}


async def test_it_can_be_turned_off() -> None:
    with recounter() as (made, metrics):
        made.is_on = False
        assert await recount(made, known_offer(messages=user(ENGLISH))) is None
    assert outcomes(metrics) == {}


async def test_a_crowd_is_not_counted() -> None:
    offer = known_offer(messages=user(ENGLISH))
    with recounter() as (made, metrics):
        found = await asyncio.gather(*(recount(made, offer) for _ in range(40)))
        assert sum(one is not None for one in found) == 16
        assert outcomes(metrics) == {"lowered": 16, "busy": 24}
        assert await recount(made, offer) is not None, "nobody waits any more"


# No vocabulary is asked for less than it would count -----------------------------------------------------------------

WORDS = st.one_of(
    st.sampled_from(
        ("word ", "Wort", '"quoted" ', "{}", "\n\n", "  ", "漢字かな", "👩‍💻", "<|im_end|>", "\\u0041", "\t", "ﷺ")
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)
TEXTS = st.builds(
    lambda words, times: "".join(words) * times, st.lists(WORDS, max_size=6), st.sampled_from((1, 2, 30, 200))
)
PARTS = st.one_of(TEXTS, st.lists(TEXTS.map(lambda text: {"type": "text", "text": text}), min_size=1, max_size=4))
MESSAGES = st.lists(
    st.builds(
        lambda role, content, name: {"role": role, "content": content} | ({"name": name} if name else {}),
        st.sampled_from(("system", "user", "assistant", "developer")),
        PARTS,
        st.sampled_from(("", "anna")),
    ),
    min_size=1,
    max_size=6,
)
TOOLS = st.lists(
    st.builds(
        lambda text, kind: {
            "type": "function",
            "function": {
                "name": "look_up",
                "description": text,
                "parameters": {"type": "object", "properties": {"of": {"type": kind, "description": text}}},
            },
        },
        TEXTS,
        st.sampled_from(("string", "integer")),
    ),
    max_size=3,
)


def rendered(tools: list[Any]) -> list[str]:
    """Tools as chat templates write them: TypeScript with comments, and indented JSON."""
    lines = ["namespace functions {"]
    for tool in tools:
        function = tool["function"]
        lines += ["// " + line for line in function["description"].split("\n")]
        lines.append(f"type {function['name']} = (_: {{")
        for name, schema in function["parameters"]["properties"].items():
            lines += ["  // " + line for line in schema["description"].split("\n")]
            lines.append(f"  {name}?: {schema['type']},")
        lines.append("}) => any;\n")
    return ["\n".join([*lines, "} // namespace functions"]), orjson.dumps(tools, option=orjson.OPT_INDENT_2).decode()]


def counted(messages: list[Any], tools: list[Any], count: Callable[[str], int]) -> int:
    """What an upstream counts: each message between special tokens, its parts joined in the dearest way."""
    total = 3
    for message in messages:
        content = message["content"]
        texts = [content] if isinstance(content, str) else [part["text"] for part in content]
        total += 4 + count(message["role"]) + (1 + count(message["name"]) if "name" in message else 0)
        total += max(count(joint.join(texts)) for joint in ("", "\n", "\n\n"))
    return total + (max(map(count, rendered(tools))) if tools else 0)


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4", "gpt-6"])
def test_no_bound_is_below_what_an_upstream_counts(model: str) -> None:
    count = counter("cl100k_base" if model == "gpt-4" else "o200k_base")
    shelf = known_shelf(model)

    with recounter() as (made, _), asyncio.Runner() as runner:

        @settings(max_examples=40, deadline=None)
        @given(messages=MESSAGES, tools=TOOLS)
        def check(messages: list[Any], tools: list[Any]) -> None:
            members = {"tools": tools} if tools else {}
            offer = known_offer(model, shelf, messages=messages, **members)
            lower = runner.run(recount(made, offer)) or offer
            truth = counted(messages, tools, count)
            assert truth <= offer.request.input_tokens_max
            assert truth * (130 if model == "gpt-6" else 100) // 100 <= lower.request.input_tokens_max

        check()


# In the flow of a call -----------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def known_shop(scratch: ScratchPostgres) -> AsyncIterator[Shop]:
    """A shop that sells a model with a known vocabulary."""
    async with open_shop(scratch, "recount") as shop:
        database, price = shop.farebox.app.database, price_of(KNOWN)
        await prices.save_models(database, [Model(KNOWN, CONTEXT, OUTPUT)])
        version = prices.PriceVersion(KNOWN, price.effective_from, price.rates, (), "test")
        await prices.add_prices(database, [version])
        await shop.farebox.app.catalogue.run_once()
        yield shop


def body() -> dict[str, Any]:
    return {"model": KNOWN, "messages": user(ENGLISH), "max_tokens": 20}


def truthful(asked: Any) -> list[object]:
    """The usage of an upstream with the true vocabulary."""
    return [{"prompt_tokens": 7 + counter("o200k_base")(ENGLISH), "completion_tokens": asked["completion_tokens"]}]


@in_the_module
@pytest.mark.parametrize("with_key", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_wallet_that_bytes_refuse_and_tokens_admit(known_shop: Shop, with_key: bool, stream: bool) -> None:
    bytes_bound = len(orjson.dumps({**body(), "stream": stream})) + 256 + 4 * 20
    headers = {"Idempotency-Key": f"recount-{stream}"} if with_key else {}
    async with visit(known_shop) as shop:
        wallet_id, key = await shop.farebox.new_wallet(format_nanos(bytes_bound // 2))
        shop.upstream.next(Completion(usage=truthful))
        async with shop.farebox.session.post(
            f"{shop.farebox.base_url}/chat/completions",
            data=orjson.dumps({**body(), "stream": stream}),
            headers={**shop.farebox.headers(key), **headers},
        ) as response:
            reply = await response.read()
        assert response.status == 200, reply
        cost = 7 + counter("o200k_base")(ENGLISH) + 4 * 20
        events = await shop.farebox.usage(wallet_id)
        # The declined hold has left no event; the second one is charged what was used.
        assert [(event["charged_nanos"], event["basis"], event["shortfall_nanos"]) for event in events] == [
            (cost, "reported", 0)
        ]
        assert shop.count("farebox_hold_decisions_total", outcome="insufficient_funds") == 1
        assert shop.count("farebox_hold_decisions_total", outcome="held") == 1
        assert shop.count("farebox_recounts_total", outcome="lowered") == 1
        assert shop.count("farebox_recounts_total", outcome="held") == 1
        assert shop.count("farebox_over_ceiling_total", model=KNOWN) == 0


@in_the_module
async def test_where_tokens_cost_too_much_as_well_the_answer_says_so_by_tokens(known_shop: Shop) -> None:
    async with visit(known_shop) as shop:
        funds = counter("o200k_base")(ENGLISH)
        wallet_id, key = await shop.farebox.new_wallet(format_nanos(funds))
        async with shop.farebox.chat(key, **body()) as response:
            error = (await response.json())["error"]
        assert (response.status, error["code"]) == (402, "insufficient_funds")
        assert funds < float(error["required"]) * 10**9 < len(ENGLISH) / 2
        assert await shop.farebox.usage(wallet_id) == []
        assert (await shop.farebox.wallet(wallet_id))["held_nanos"] == 0
        assert shop.count("farebox_recounts_total", outcome="lowered") == 1
        assert shop.count("farebox_recounts_total", outcome="held") == 0
        assert not shop.upstream.log


@in_the_module
async def test_a_stream_that_its_funds_cut_off_is_not_begun_again(known_shop: Shop) -> None:
    async with visit(known_shop) as shop:
        _, key = await shop.farebox.new_wallet(format_nanos(2 * len(ENGLISH) + 4 * 4_096))
        shop.upstream.next(Completion(output_tokens=12_000))
        members = {"model": KNOWN, "messages": user(ENGLISH), "stream": True}
        async with shop.farebox.chat(key, **members) as response:
            reply = await response.read()
        assert b'"cut_off"' in reply
        assert len(shop.upstream.log) == 1
        assert all(shop.count("farebox_recounts_total", outcome=one) == 0 for one in Recounted)
