"""Holds that grow: a stream without a cap holds a slice at a time, and ends at its hold where it cannot grow.

What is charged is worked out from the numbers in tests/support/growing.py.
"""

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
import pytest_asyncio

from gateway.core.catalogue import Model
from gateway.core.money import format_nanos
from gateway.db import prices, wallets
from gateway.db.lanes import Operation
from gateway.tasks import spawn
from tests.support.behaviours import Completion, Form, RawStream
from tests.support.call import Gate
from tests.support.completion import changed
from tests.support.gateway import CONTEXT, MODEL, OUTPUT
from tests.support.growing import (
    ASKED,
    FIRST,
    PROMPT,
    PROMPT_ESTIMATE,
    PROMPT_MAX,
    SLICE,
    cut_off,
    extensions,
    held,
    stream,
    words,
)
from tests.support.ledger_operations import extend, open_ledger
from tests.support.postgres import ScratchPostgres
from tests.support.shop import DONE, Shop, client_noticed_gone, open_shop, until, visit

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def open_all_day(scratch: ScratchPostgres) -> AsyncIterator[Shop]:
    async with open_shop(scratch, "limit", hold_slice_tokens=SLICE) as shop:
        yield shop


# What is held --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "held", "cap"),
    [
        ({}, FIRST, None),
        ({"n": 3}, FIRST + len(',"n":3') + 8 * SLICE, None),
        ({"max_tokens": None}, FIRST + len(',"max_tokens":null'), None),
        ({"max_tokens": 500}, PROMPT_MAX + len(',"max_tokens":500') + 4 * 500, 500),
        ({"stream": False}, PROMPT_MAX + 1 + 4 * OUTPUT, None),
    ],
    ids=["a slice", "of each choice", "null is no cap", "a cap is held whole", "so is what is no stream"],
)
async def test_what_is_held_at_first(shop: Shop, members: dict[str, Any], held: int, cap: int | None) -> None:
    """A wallet is not emptied, and a cap of the day not eaten, by holds that nobody uses."""
    gate = Gate()
    shop.upstream.next(Completion(gate=gate))
    call = spawn(stream(shop, **members), name="a call")
    await gate.arrived()
    assert (await shop.farebox.wallet())["held_nanos"] == held
    sent = orjson.loads(shop.upstream.log[0].body)
    assert (sent.get("max_completion_tokens"), sent.get("max_tokens")) == (None, cap)
    gate.open()
    assert (await call)[0] == 200


async def test_hidden_reasoning_is_held_whole(scratch: ScratchPostgres) -> None:
    async with open_shop(scratch, "hidden", hold_slice_tokens=SLICE) as opened, visit(opened) as shop:
        await prices.save_models(shop.farebox.app.database, [Model(MODEL, CONTEXT, OUTPUT, hidden_reasoning=True)])
        await shop.farebox.app.catalogue.run_once()
        gate = Gate()
        shop.upstream.next(Completion(gate=gate))
        call = spawn(stream(shop), name="a call")
        await gate.arrived()
        assert (await shop.farebox.wallet())["held_nanos"] == PROMPT_MAX + 4 * OUTPUT
        gate.open()
        await call


@pytest.mark.parametrize(("funds", "cap"), [(FIRST, None), (FIRST - 1, 63), (PROMPT_MAX + 4 * 16, 16)])
async def test_funds_below_the_slice_lower_the_cap(shop: Shop, funds: int, cap: int | None) -> None:
    """Such a stream ends by itself, with the finish reason `length`, and needs no extension."""
    wallet_id, key = await shop.farebox.new_wallet(format_nanos(funds))
    shop.upstream.next(Completion(output_tokens=30))
    async with shop.farebox.chat(key, **ASKED) as response:
        body = await response.read()
    assert response.headers.get("x-farebox-output-cap") == (None if cap is None else str(cap))
    assert orjson.loads(shop.upstream.log[0].body).get("max_completion_tokens") == cap
    assert body.endswith(DONE)
    tokens = min(30, cap or 30)
    assert (await shop.farebox.wallet(wallet_id))["balance_nanos"] == funds - PROMPT - 4 * tokens
    assert extensions(shop, "extended") == 0


async def test_an_upstream_that_needs_a_cap_gets_the_models(scratch: ScratchPostgres) -> None:
    settings: dict[str, Any] = {"hold_slice_tokens": SLICE, "upstream": {"cap_member": "max_tokens"}}
    async with open_shop(scratch, "limit_cap", **settings) as opened, visit(opened) as shop:
        shop.upstream.next(Completion(output_tokens=100))
        assert words((await stream(shop))[1]) == 100
        assert orjson.loads(shop.upstream.log[0].body)["max_tokens"] == OUTPUT


# Growing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "slices"), [(20, 0), (31, 0), (60, 1), (64, 1), (100, 2), (150, 2), (500, 8)])
async def test_a_stream_that_outgrows_its_slices_is_charged_as_reported(shop: Shop, tokens: int, slices: int) -> None:
    shop.upstream.next(Completion(output_tokens=tokens))
    _, body = await stream(shop)
    assert (words(body), body.endswith(DONE)) == (tokens, True)
    event = await shop.resolved(PROMPT + 4 * tokens, "reported", None, "completed")
    assert (extensions(shop, "extended"), await held(shop, event)) == (slices, FIRST + 4 * SLICE * slices)
    assert shop.count("farebox_over_hold_total", model=MODEL) == 0


async def test_all_choices_count(shop: Shop) -> None:
    shop.upstream.next(Completion(output_tokens=100))
    await stream(shop, n=3)
    await shop.resolved(PROMPT + 4 * 300, "reported", None, "completed")
    assert extensions(shop, "extended") == 2


async def test_a_hold_grows_no_further_than_its_ceiling(scratch: ScratchPostgres) -> None:
    async with open_shop(scratch, "limit_small", hold_slice_tokens=SLICE) as opened, visit(opened) as shop:
        await prices.save_models(shop.farebox.app.database, [Model(MODEL, CONTEXT, 100)])
        await shop.farebox.app.catalogue.run_once()
        shop.upstream.next(Completion(output_tokens=100))
        await stream(shop)
        event = await shop.resolved(PROMPT + 4 * 100, "reported", None, "completed")
        assert (await held(shop, event), extensions(shop, "extended")) == (PROMPT_MAX + 4 * 100, 1)
        # What runs past the model's own maximum is cut off only at a multiple of it.
        async with visit(opened) as other:
            other.upstream.next(Completion(endless=True))
            _, body = await stream(other)
            assert cut_off(body)["type"] == "upstream_error"
            assert words(body) == 4 * 100 + 64


async def test_more_than_was_shown_comes_from_free_funds_and_is_counted(shop: Shop) -> None:
    """A model that thinks in secret, though its entry in the catalogue does not say so."""
    shop.upstream.next(Completion(usage=changed(completion_tokens=500, total_tokens=508)))
    await stream(shop)
    await shop.resolved(PROMPT + 4 * 500, "reported", None, "completed")
    assert shop.count("farebox_over_hold_total", model=MODEL) == 1
    assert shop.count("farebox_over_ceiling_total", model=MODEL) == 0


async def test_json_in_place_of_a_stream_is_charged_exactly(shop: Shop) -> None:
    shop.upstream.next(Completion(output_tokens=300, form=Form.JSON))
    await stream(shop)
    await shop.resolved(PROMPT + 4 * 300, "reported", None, "completed")


async def test_a_hold_grows_while_a_client_that_left_is_drained_for(shop: Shop) -> None:
    gate = Gate()
    shop.upstream.next(Completion(output_tokens=200, gate=gate, gate_at_event=2))
    response = await shop.chat(**ASKED)
    await response.content.readuntil(b"\n\n")
    response.close()
    await client_noticed_gone(shop.farebox)
    gate.open()
    await shop.resolved(PROMPT + 4 * 200, "reported", "client_gone", "client_gone")


async def test_a_checkpoint_and_an_extension_in_one_moment_both_arrive(shop: Shop) -> None:
    gate = Gate()
    shop.upstream.next(Completion(output_tokens=20, gate=gate, gate_at_event=3))
    call = spawn(stream(shop), name="a call")
    await gate.arrived()
    [watched] = shop.farebox.app.watch._calls
    await until(lambda: watched.output_tokens_estimate() == 2)
    hold_id = str(shop.upstream.log[0].request_id)
    document = orjson.dumps(extend(hold_id, 700, 601))
    assert watched.renew is not None
    watched.renew(1e12)
    answer = await shop.farebox.app.lane.submit(Operation(shop.farebox.wallet_id, hold_id, document))
    assert (str(answer.outcome), answer.amount_nanos) == ("extended", 700)
    async with open_ledger(shop.dsn) as ledger:
        [row] = await ledger.rows("holds", shop.farebox.wallet_id)
    assert (row["held_nanos"], row["checkpoint_nanos"]) == (700, PROMPT_ESTIMATE + 4 * 2)
    gate.open()
    await call
    await shop.resolved(PROMPT + 4 * 20, "reported", None, "completed")


# Where it cannot grow ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "tokens"),
    [(0, SLICE), (4 * 16 - 1, SLICE), (4 * 16, SLICE + 16), (4 * 40, SLICE + 40), (4 * 100, SLICE + 100)],
    ids=["nothing", "too little to be worth it", "the least", "a part of a slice", "a slice and a part"],
)
async def test_what_the_funds_cover_is_relayed_and_then_the_stream_is_cut_off(
    shop: Shop, extra: int, tokens: int
) -> None:
    wallet_id, key = await shop.farebox.new_wallet(format_nanos(FIRST + extra))
    shop.upstream.next(Completion(endless=True))
    status, body = await stream(shop, key)
    error = cut_off(body)
    assert (status, error["type"]) == (200, "insufficient_funds")
    assert "funds" in error["message"]
    assert words(body) == tokens, "all that was held, and no more"
    [event] = await shop.farebox.usage(wallet_id)
    assert (event["basis"], event["reason"], event["shortfall_nanos"]) == ("estimated", "cut_off", 0)
    assert event["usage"] == {"input": PROMPT_ESTIMATE, "output": words(body)}, "exact to the cut"
    assert await held(shop, event) == FIRST + (extra if tokens > SLICE else 0)
    wallet = await shop.farebox.wallet(wallet_id)
    charged = PROMPT_ESTIMATE + 4 * words(body)
    assert (wallet["balance_nanos"], wallet["held_nanos"]) == (FIRST + extra - charged, 0)
    await shop.upstream.idle()
    assert shop.upstream.log[0].client_left
    assert 1 <= extensions(shop, "insufficient_funds") <= 12, "asked again, but not for ever"
    labels = {"endpoint": "chat.completions", "model": MODEL, "outcome": "cut_off", "basis": "estimated"}
    assert shop.count("farebox_calls_total", **labels) == 1


def at_once(tokens: int) -> RawStream:
    """A whole stream, its usage and its end, in one piece."""
    word = b'data: {"choices":[{"index":0,"delta":{"content":" on."}}]}\n\n'
    usage = {"prompt_tokens": PROMPT, "completion_tokens": tokens, "total_tokens": PROMPT + tokens}
    return RawStream([word * tokens + b"data: %b\n\n" % orjson.dumps({"choices": [], "usage": usage}) + DONE])


@pytest.mark.parametrize("tokens", [SLICE + 1, 100, 1_000])
async def test_a_read_that_brings_the_end_too_is_passed_on_no_further_than_the_hold(shop: Shop, tokens: int) -> None:
    wallet_id, key = await shop.farebox.new_wallet(format_nanos(FIRST))
    shop.upstream.next(at_once(tokens))
    _, body = await stream(shop, key)
    assert (cut_off(body)["type"], words(body)) == ("insufficient_funds", SLICE)
    [event] = await shop.farebox.usage(wallet_id)
    assert event["usage"] == {"input": PROMPT_ESTIMATE, "output": SLICE}
    assert (await shop.farebox.wallet(wallet_id))["balance_nanos"] == FIRST - PROMPT_ESTIMATE - 4 * SLICE


async def test_a_read_of_many_slices_waits_for_each_and_is_passed_on_whole(shop: Shop) -> None:
    shop.upstream.next(at_once(1_000))
    _, body = await stream(shop)
    assert (words(body), body.endswith(DONE)) == (1_000, True)
    await shop.resolved(PROMPT + 4 * 1_000, "reported", None, "completed")
    assert shop.count("farebox_over_hold_total", model=MODEL) == 0


async def test_money_that_comes_in_time_is_used(shop: Shop) -> None:
    """A refusal is not the last word: a top-up, or the end of another call, keeps the stream alive."""
    wallet_id, key = await shop.farebox.new_wallet(format_nanos(FIRST))
    gate = Gate()
    # Slowly, so that there is time for an answer between two events: asked at 32, 48 and 56 tokens.
    shop.upstream.next(Completion(output_tokens=100, gate=gate, gate_at_event=60, pause_seconds=0.01))
    call = spawn(stream(shop, key), name="a call")
    await gate.arrived()
    await until(lambda: extensions(shop, "insufficient_funds") >= 3)
    await wallets.credit(
        shop.farebox.app.database, wallet_id, "01900000-0000-7000-8000-00000000000c", 10_000, actor="t", reason="t"
    )
    gate.open()
    _, body = await call
    assert (words(body), body.endswith(DONE)) == (100, True)
    assert (await shop.farebox.wallet(wallet_id))["balance_nanos"] == FIRST + 10_000 - PROMPT - 4 * 100


async def test_a_wallet_suspended_in_the_middle_ends_its_stream_at_the_hold(shop: Shop) -> None:
    gate = Gate()
    shop.upstream.next(Completion(endless=True, gate=gate, gate_at_event=10))
    call = spawn(stream(shop), name="a call")
    await gate.arrived()
    await wallets.set_status(shop.farebox.app.database, shop.farebox.wallet_id, "suspended")
    gate.open()
    _, body = await call
    assert cut_off(body)["type"] == "permission_error"
    assert words(body) == SLICE
    await shop.resolved(PROMPT_ESTIMATE + 4 * words(body), "estimated", "cut_off", "cut_off")


async def test_nothing_more_is_risked_while_the_journal_cannot_be_written(shop: Shop) -> None:
    holds, gate = shop.farebox.app.gateway.holds, Gate()
    shop.upstream.next(Completion(endless=True, gate=gate, gate_at_event=10))
    call = spawn(stream(shop), name="a call")
    await gate.arrived()
    holds.usable = lambda: False
    gate.open()
    try:
        _, body = await call
    finally:
        holds.usable = lambda: True
    assert cut_off(body)["type"] == "server_error"
    assert words(body) == SLICE
    assert extensions(shop, "unanswered") > 0
