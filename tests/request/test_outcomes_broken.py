"""The outcome matrix, where the upstream breaks, the client leaves, the hold is passed or the ledger is away.

See test_outcomes.py for how the charges are worked out.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from gateway.request.watch import TICK_SECONDS
from gateway.tasks import spawn, stop
from tests.support.behaviours import EMPTY, ERROR_IN_200, HTML, Choose, Completion, End, RawStream, Status
from tests.support.call import Gate
from tests.support.gateway import farebox
from tests.support.ledger_check import check_invariants
from tests.support.ledger_proxy import ledger_proxy
from tests.support.postgres import ScratchPostgres
from tests.support.shop import (
    CREDIT_NANOS,
    DONE,
    EXACT,
    FORMS,
    PROMPT_ESTIMATE,
    Shop,
    both_forms,
    client_noticed_gone,
    connected,
    open_shop,
    until,
    visit,
)
from tests.support.upstream import FakeUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")


def assert_cut_short(body: bytes, code: str) -> None:
    """A stream ends with an error event of ours and a well-formed end."""
    *_, error, end, rest = body.split(b"\n\n")
    assert orjson.loads(error.removeprefix(b"data: "))["error"]["code"] == code
    assert (end, rest) == (b"data: [DONE]", b"")


# The upstream breaks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [End.CLOSE, End.RESET])
@pytest.mark.parametrize(
    ("events", "tokens"), [(0, None), (1, None), (2, 1), (5, 8)], ids=["no event", "no text", "one word", "four words"]
)
async def test_a_stream_that_breaks_is_charged_for_what_was_relayed(
    shop: Shop, end: End, events: int, tokens: int | None
) -> None:
    """Four words are 29 bytes: 8 tokens by their size."""
    status, _, body = await shop.call("stream", Completion(end=end, end_after_events=events))
    assert status == 200
    assert_cut_short(body, "upstream_broke")
    assert body.count(b"data: ") == events + 2
    if tokens is None:
        await shop.resolved(0, "none", "upstream_broke", "upstream_broke")
    else:
        await shop.resolved(23 + 4 * tokens, "estimated", "upstream_broke", "upstream_broke")


@pytest.mark.parametrize("end", [End.ERROR, End.ERROR_DONE])
@pytest.mark.parametrize(("events", "tokens"), [(1, None), (5, 8)], ids=["no text", "four words"])
async def test_an_error_event_is_charged_for_what_was_relayed(
    shop: Shop, end: End, events: int, tokens: int | None
) -> None:
    """The upstream's own words end the stream, and its error text is no output."""
    _, _, body = await shop.call("stream", Completion(end=end, end_after_events=events))
    assert b"The engine stopped while answering." in body
    assert body.endswith(DONE) == (end is End.ERROR_DONE)
    assert body.count(b"data: ") == events + 1 + (end is End.ERROR_DONE)
    if tokens is None:
        await shop.resolved(0, "none", "upstream_broke", "upstream_broke")
    else:
        await shop.resolved(23 + 4 * tokens, "estimated", "upstream_broke", "upstream_broke")


@pytest.mark.parametrize("end", [End.CLOSE, End.RESET])
async def test_half_a_json_reply_is_free(shop: Shop, end: End) -> None:
    status, headers, body = await shop.call("json", Completion(end=end))
    assert (status, orjson.loads(body)["error"]["code"]) == (502, "upstream_broke")
    assert headers["x-farebox-cost"] == "0.00"
    await shop.resolved(0, "none", "upstream_broke", "upstream_broke")


async def test_an_error_in_a_200_is_free_and_passed_on(shop: Shop) -> None:
    status, _, body = await shop.call("json", ERROR_IN_200)
    assert (status, body) == (200, ERROR_IN_200.body)
    await shop.resolved(0, "none", "upstream_broke", "upstream_broke")


@pytest.mark.parametrize(
    "behaviour",
    [EMPTY, Status(200, HTML.body, HTML.content_type), Status(200, b"not json"), Status(204)],
    ids=["empty", "HTML", "text", "204"],
)
async def test_a_reply_that_is_no_json_is_free_and_passed_on(shop: Shop, behaviour: Status) -> None:
    status, _, body = await shop.call("json", behaviour)
    assert (status, body) == (behaviour.status, behaviour.body)
    await shop.resolved(0, "none", "upstream_broke", "upstream_broke")


@pytest.mark.parametrize("chunks", [[b""], [b": waiting\n\n"]], ids=["empty", "comments"])
async def test_a_stream_without_any_event_is_free(shop: Shop, chunks: list[bytes]) -> None:
    _, _, body = await shop.call("stream", RawStream(chunks))
    assert body == chunks[0]
    await shop.resolved(0, "none", "upstream_broke", "upstream_broke")


async def test_a_silent_stream_is_ended_and_charged_for_what_was_relayed(scratch: ScratchPostgres) -> None:
    async with open_shop(scratch, "silent", upstream={"idle_seconds": 0.2}) as opened, visit(opened) as shop:
        _, _, body = await shop.call("stream", Completion(end=End.STALL, end_after_events=5))
        assert_cut_short(body, "upstream_broke")
        await shop.resolved(23 + 4 * 8, "estimated", "upstream_broke", "upstream_broke")
        await shop.upstream.idle()
        assert shop.upstream.log[0].client_left


# The client leaves ---------------------------------------------------------------------------------------------------


async def leave(shop: Shop, form: str, events: int, gate: Gate, *, at_head: bool = False) -> None:
    """Read so many events of a reply that waits at `gate`, and leave; return when the gateway has noticed."""
    if at_head:
        sent = spawn(shop.chat(**FORMS[form]).__aenter__(), name="a client that leaves")
        await gate.arrived()
        await stop(sent)
    else:
        response = await shop.chat(**FORMS[form])
        await gate.arrived()
        for _ in range(events):
            await response.content.readuntil(b"\n\n")
        response.close()
    await client_noticed_gone(shop.farebox)


@both_forms
async def test_who_leaves_before_the_first_byte_is_charged_exactly(shop: Shop, form: str) -> None:
    gate = Gate()
    shop.upstream.next(Completion(gate=gate))
    await leave(shop, form, 0, gate, at_head=True)
    await asyncio.sleep(2 * TICK_SECONDS)  # the upstream is waited for, not merely overtaken
    gate.open()
    await shop.resolved(EXACT, "reported", "client_gone", "client_gone")
    assert shop.upstream.log[0].completed


@pytest.mark.parametrize("events", range(6))
async def test_who_leaves_after_any_event_is_charged_exactly(shop: Shop, events: int) -> None:
    """Events of a reply of three words: role, words, finish, usage (which the client does not see), [DONE]."""
    gate = Gate()
    shop.upstream.next(Completion(output_tokens=3, gate=gate, gate_at_event=events))
    await leave(shop, "stream", min(events, 5), gate)
    await asyncio.sleep(2 * TICK_SECONDS if events == 3 else 0)
    gate.open()
    await shop.resolved(10 + 4 * 3, "reported", "client_gone", "client_gone")
    assert shop.upstream.log[0].completed


async def test_who_leaves_after_the_end_is_charged_as_usual(shop: Shop) -> None:
    response = await shop.chat(stream=True)
    await response.content.readuntil(DONE)
    response.close()
    await shop.resolved(EXACT, "reported", None, "completed")


async def test_a_drain_ends_and_the_rest_is_estimated(scratch: ScratchPostgres) -> None:
    """The upstream stalls after so many events, the client leaves, and the upstream is left in the end.

    The words are "3" and " something.": 1 byte after one of them, 12 after two, 14 after three.
    """
    tokens = {0: 0, 1: 0, 2: 1, 3: 3, 4: 4, 5: 4}
    async with open_shop(scratch, "drain", drain_seconds=0.2) as opened, visit(opened) as shop:
        running, upstream = shop.farebox, shop.upstream
        upstream.default = Choose(
            lambda asked: Completion(output_tokens=3, end=End.STALL, end_after_events=int(asked.words[0]))
        )

        async def leave_early(events: int) -> int:
            wallet_id, key = await running.new_wallet("100")
            message = {"role": "user", "content": f"{events} something."}
            response = await running.chat(key, stream=True, messages=[message])
            for _ in range(min(events, 5)):
                await response.content.readuntil(b"\n\n")
            await until(lambda: sum(served.events_sent >= events for served in upstream.log) > 0)
            response.close()
            while not (found := await running.usage(wallet_id)):
                await asyncio.sleep(0.05)
            assert found[0]["reason"] == "client_gone"
            assert found[0]["basis"] == ("reported" if events == 6 else "estimated")
            return int(found[0]["charged_nanos"])

        charges = await asyncio.gather(*(leave_early(events) for events in range(7)))
        # Usage was seen in the last of them: 9 in, 3 out.
        assert charges == [23 + 4 * tokens[events] for events in range(6)] + [9 + 4 * 3]
        await upstream.idle()
        assert all(served.client_left for served in upstream.log)


@both_forms
async def test_who_leaves_an_upstream_that_never_answers_pays_for_the_prompt(
    scratch: ScratchPostgres, form: str
) -> None:
    async with open_shop(scratch, f"never_{form}", drain_seconds=0.2) as opened, visit(opened) as shop:
        gate = Gate()
        shop.upstream.next(Completion(gate=gate))
        await leave(shop, form, 0, gate, at_head=True)
        await shop.resolved(PROMPT_ESTIMATE[form], "estimated", "client_gone", "client_gone")
        await shop.upstream.idle()
        assert shop.upstream.log[0].client_left
        labels = {"upstream": "up0", "class": "first_byte_timeout"}
        assert shop.count("farebox_upstream_errors_total", **labels) == 0, "it was not the upstream that failed"


# Past the hold, and without the ledger -------------------------------------------------------------------------------


@pytest.mark.parametrize("words_at_once", [1, 20])
async def test_an_endless_stream_is_cut_off_within_its_hold(shop: Shop, words_at_once: int) -> None:
    """The upstream ignores a cap of 4 tokens, of which 4 * 4 + 64 may pass: 64 words of 5 bytes, and no more.

    The prompt is 27 tokens by its size and the hold (107 + 256) + 4 * 4 nanos, which covers 88 tokens of output.
    """
    word = b'data: {"choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
    status, _, body = await shop.call("stream", RawStream([word * words_at_once] * 2_000), max_tokens=4)
    assert status == 200
    assert_cut_short(body, "cut_off")
    assert body.count(b"word") == 64
    await shop.resolved(27 + 4 * 80, "estimated", "cut_off", "cut_off")
    await shop.upstream.idle()
    assert shop.upstream.log[0].client_left


async def test_without_a_ledger_the_settle_is_journaled_and_charged_once_on_replay(scratch: ScratchPostgres) -> None:
    dsn = await scratch.clone("journaled")
    async with (
        ledger_proxy(dsn) as proxy,
        FakeUpstream() as upstream,
        farebox(proxy.dsn, [upstream.base_url], lane_wait_seconds=0.2) as running,
    ):
        await connected(running)
        gate = Gate()
        upstream.default = Completion(gate=gate)
        replies = [spawn(_read(running.chat(**members)), name="a call") for members in FORMS.values()]
        await upstream.received(2)
        proxy.cut()
        gate.open()
        (status, headers, _), (streamed, _, events) = await asyncio.gather(*replies)
        assert (status, streamed) == (200, 200)
        assert (headers["x-farebox-cost"], headers.get("x-farebox-balance")) == ("0.00000009", None)
        assert events.endswith(DONE)
        assert running.app.journal.records == 2
        assert running.app.metrics.registry.get_sample_value("farebox_settles_total", {"outcome": "journaled"}) == 2
        async with running.chat() as refused:
            assert (refused.status, refused.headers["retry-after"]) == (503, "2")
        proxy.restore()
        await until(lambda: running.app.journal.records == 0)
        usage = await running.usage()
        assert [event["charged_nanos"] for event in usage] == [EXACT, EXACT]
        assert (await running.wallet())["balance_nanos"] == CREDIT_NANOS - 2 * EXACT
        await check_invariants(dsn)
    await scratch.drop("journaled")


async def _read(request: Any) -> tuple[int, Mapping[str, str], bytes]:
    async with request as response:
        return response.status, response.headers, await response.read()
