"""Holds that grow, where several want the same money, or the ledger is away when one would grow."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from gateway.core.catalogue import Meter, Model, Rates
from gateway.db import prices
from gateway.tasks import spawn
from tests.support.behaviours import Completion
from tests.support.call import Call, Gate
from tests.support.gateway import CONTEXT, OUTPUT, farebox
from tests.support.growing import PROMPT, PROMPT_ESTIMATE, SLICE, cut_off, stream, words
from tests.support.ledger_check import check_invariants
from tests.support.ledger_proxy import LedgerProxy, ledger_proxy
from tests.support.postgres import ScratchPostgres
from tests.support.shop import DONE, Shop, connected, open_shop, until, visit
from tests.support.upstream import FakeUpstream

# Without an answer ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def in_the_middle(
    scratch: ScratchPostgres, name: str, reply: Completion
) -> AsyncIterator[tuple[Shop, LedgerProxy, "asyncio.Task[tuple[int, bytes]]"]]:
    """A stream that stands before its gate, and the door to its ledger."""
    dsn = await scratch.clone(name)
    async with (
        ledger_proxy(dsn) as proxy,
        FakeUpstream(reply) as upstream,
        farebox(proxy.dsn, [upstream.base_url], hold_slice_tokens=SLICE, lane_wait_seconds=0.2) as running,
    ):
        await connected(running)
        shop = Shop(running, upstream, dsn, {})
        call = spawn(stream(shop), name="a call")
        assert reply.gate is not None
        await reply.gate.arrived()
        yield shop, proxy, call
        proxy.restore()
        await until(lambda: running.app.journal.records == 0)
        await check_invariants(dsn)
    await scratch.drop(name)


async def test_without_a_ledger_a_stream_goes_on_to_its_hold_and_is_then_cut_off(scratch: ScratchPostgres) -> None:
    gate = Gate()
    reply = Completion(endless=True, gate=gate, gate_at_event=40)
    async with in_the_middle(scratch, "limit_away", reply) as (shop, proxy, call):
        await until(lambda: shop.count("farebox_hold_extensions_total", outcome="extended") == 1)
        proxy.cut()
        gate.open()
        _, body = await call
        assert cut_off(body)["type"] == "server_error"
        assert words(body) == 2 * SLICE, "all that was held, and no more"
        assert shop.farebox.app.journal.records == 1
        proxy.restore()
        event = await _charged(shop)
        assert (event["charged_nanos"], event["reason"]) == (PROMPT_ESTIMATE + 4 * words(body), "cut_off")


async def test_a_short_reply_ends_well_without_a_ledger(scratch: ScratchPostgres) -> None:
    gate = Gate()
    reply = Completion(output_tokens=60, gate=gate, gate_at_event=10)
    async with in_the_middle(scratch, "limit_short", reply) as (shop, proxy, call):
        proxy.cut()
        gate.open()
        _, body = await call
        assert (words(body), body.endswith(DONE)) == (60, True)
        proxy.restore()
        assert (await _charged(shop))["charged_nanos"] == PROMPT + 4 * 60


async def test_a_slow_answer_is_waited_for_at_the_limit(scratch: ScratchPostgres) -> None:
    gate = Gate()
    reply = Completion(output_tokens=300, gate=gate, gate_at_event=10)
    async with in_the_middle(scratch, "limit_slow", reply) as (shop, proxy, call):
        proxy.mute()
        gate.open()
        await until(lambda: shop.upstream.log[0].output_tokens_sent > SLICE)
        await asyncio.sleep(0.2)
        assert not call.done()
        proxy.restore()
        _, body = await call
        assert (words(body), body.endswith(DONE)) == (300, True)
        assert (await _charged(shop))["charged_nanos"] == PROMPT + 4 * 300


async def _charged(shop: Shop) -> dict[str, Any]:
    async with asyncio.timeout(5):
        while not (events := await shop.farebox.usage()):
            await asyncio.sleep(0.02)
    return events[0]


# Ten on one wallet ---------------------------------------------------------------------------------------------------

# 20 a million out, 5 in, and slices as they are by default: ten of them are 0.84 of a wallet with 1.00.
DEAR, DEAR_TOKENS, WORDS_AT_ONCE = "dear-model", 5_040, 60
DEAR_COST = 10 * 5_000 + DEAR_TOKENS * 20_000


@dataclass(frozen=True, slots=True)
class Long:
    """A reply of DEAR_TOKENS that waits after its first words; sixty words are one piece."""

    gate: Gate

    async def reply(self, call: Call) -> None:
        await call.start("text/event-stream")
        word = b'data: {"choices":[{"index":0,"delta":{"content":" on"}}]}\n\n'
        for number in range(DEAR_TOKENS // WORDS_AT_ONCE):
            if number == 1:
                await self.gate.passed()
            await call.send(word * WORDS_AT_ONCE, events=WORDS_AT_ONCE, tokens=WORDS_AT_ONCE)
        usage = {"prompt_tokens": 10, "completion_tokens": DEAR_TOKENS, "total_tokens": DEAR_TOKENS + 10}
        await call.send(b"data: %b\n\n" % orjson.dumps({"choices": [], "usage": usage}))
        await call.send(DONE, last=True)
        await call.finish()


@pytest.mark.parametrize("in_turn", [True, False], ids=["one after the other", "all at once"])
async def test_one_wallet_with_1_00_and_ten_parallel_uncapped_streams_all_run_none_overdraws_and_the_last_is_cut_off_cleanly(  # noqa: E501
    scratch: ScratchPostgres, in_turn: bool
) -> None:
    async with open_shop(scratch, "ten") as opened, visit(opened) as shop:
        database = shop.farebox.app.database
        await prices.save_models(database, [Model(DEAR, CONTEXT, OUTPUT)])
        rates: Rates = {Meter.INPUT: 5_000_000, Meter.OUTPUT: 20_000_000}
        await prices.add_prices(database, [prices.PriceVersion(DEAR, datetime.now(UTC), rates, (), "test")])
        await shop.farebox.app.catalogue.run_once()
        wallet_id, key = await shop.farebox.new_wallet("1.00")
        gates = [Gate() for _ in range(10)]
        shop.upstream.next(*map(Long, gates))
        calls = [spawn(stream(shop, key, model=DEAR), name="a call") for _ in range(10)]
        await asyncio.gather(*(gate.arrived() for gate in gates))
        wallet = await shop.farebox.wallet(wallet_id)
        assert 10 * 4_096 * 20_000 < wallet["held_nanos"] < wallet["balance_nanos"] == 10**9, "all ten run"
        for gate, number in zip(gates, range(1, 11), strict=True):
            gate.open()
            if in_turn:
                await until(lambda number=number: sum(call.done() for call in calls) == number)  # type: ignore[misc]
        bodies = [body for _, body in await asyncio.gather(*calls)]
        whole = [body for body in bodies if body.count(b" on") == DEAR_TOKENS]
        short = [body for body in bodies if body not in whole]
        assert all(body.endswith(DONE) and b"error" not in body for body in whole)
        assert {cut_off(body)["type"] for body in short} == {"insufficient_funds"}
        assert len(short) == 1 if in_turn else len(short) >= 1
        events = await shop.farebox.usage(wallet_id)
        assert [event["charged_nanos"] for event in events].count(DEAR_COST) == len(whole)
        assert sum(event["shortfall_nanos"] for event in events) == 0
        charged = sum(event["charged_nanos"] for event in events)
        wallet = await shop.farebox.wallet(wallet_id)
        assert (wallet["balance_nanos"], wallet["held_nanos"]) == (10**9 - charged, 0)
        assert wallet["balance_nanos"] >= 0
        if in_turn:
            assert 4_096 < short[0].count(b" on") < DEAR_TOKENS, "what was left was used first"
