"""The outcome matrix again, every row for every endpoint (tests/support/endpoint_cases.py says what each comes to).

What only chat has, and the many spellings of usage and of streams: test_outcomes.py and test_outcomes_broken.py.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
import pytest_asyncio

from gateway.core.catalogue import Meter, Model
from gateway.db import prices
from gateway.request.watch import TICK_SECONDS
from gateway.tasks import spawn, stop
from gateway.web.routes import METERED
from tests.support.behaviours import (
    BROKEN,
    ERROR_IN_200,
    RATE_LIMITED,
    Behaviour,
    CloseBeforeHeaders,
    End,
    Part,
    RawStream,
    ResetBeforeHeaders,
    StallBeforeHeaders,
    Status,
)
from tests.support.call import Gate
from tests.support.endpoint_cases import (
    CASES,
    ELSEWHERE,
    MODERATION_MODEL,
    MODERATION_PICOS,
    STREAMED,
    Case,
    Resolved,
    Streamed,
)
from tests.support.gateway import CONTEXT, Farebox, farebox
from tests.support.ledger_check import check_invariants
from tests.support.ledger_proxy import ledger_proxy
from tests.support.postgres import ScratchPostgres
from tests.support.shop import CREDIT_NANOS, Shop, client_noticed_gone, connected, open_shop, settled, until, visit
from tests.support.upstream import FakeUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

every_endpoint = pytest.mark.parametrize("case", CASES, ids=str)
every_stream = pytest.mark.parametrize("case", STREAMED, ids=str)


async def price_moderation(running: Farebox) -> None:
    database = running.app.database
    await prices.save_models(database, [Model(MODERATION_MODEL, CONTEXT, 1)])
    version = prices.PriceVersion(MODERATION_MODEL, datetime.now(UTC), {Meter.REQUESTS: MODERATION_PICOS}, (), "test")
    await prices.add_prices(database, [version])
    await running.app.catalogue.run_once()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def open_all_day(scratch: ScratchPostgres) -> AsyncIterator[Shop]:
    async with open_shop(scratch, "every_endpoint") as opened:
        await price_moderation(opened.farebox)
        yield opened


def ask(running: Farebox, case: Case, members: Mapping[str, Any] | None = None) -> Any:
    body = orjson.dumps({**case.request, **(members or {})})
    return running.session.post(f"{running.base_url}{case.path}", data=body, headers=running.headers())


async def answered(
    shop: Shop, case: Case, behaviour: Behaviour, members: Mapping[str, Any] | None = None
) -> tuple[int, Mapping[str, str], bytes]:
    """One whole exchange."""
    shop.upstream.next(behaviour)
    async with ask(shop.farebox, case, members) as response:
        return response.status, response.headers, await response.read()


async def resolved(shop: Shop, case: Case, expected: Resolved, label: str = "completed") -> dict[str, Any]:
    return await shop.resolved(*expected, label, endpoint=case.endpoint, model=case.model)


def streamed(case: Case) -> Streamed:
    assert case.stream is not None
    return case.stream


async def test_every_metered_endpoint_has_its_rows() -> None:
    metered = {path: endpoint.name for path, endpoint in METERED.items() if path not in ELSEWHERE}
    assert {case.path: case.endpoint for case in CASES} == metered


# 2xx ------------------------------------------------------------------------------------------------------------------


@every_endpoint
@pytest.mark.parametrize("row", ["exact", "missing", "impossible"])
async def test_a_reply(shop: Shop, case: Case, row: str) -> None:
    body, expected = {"exact": (case.whole, case.exact), "missing": case.missing, "impossible": case.impossible}[row]
    status, headers, got = await answered(shop, case, Status(200, body))
    assert (status, got) == (200, body)
    assert float(headers["x-farebox-cost"]) == pytest.approx(expected[0] / 10**9)
    await resolved(shop, case, expected)


@every_stream
@pytest.mark.parametrize("row", ["exact", "missing", "impossible"])
async def test_a_stream(shop: Shop, case: Case, row: str) -> None:
    stream = streamed(case)
    exact = (stream.events, case.exact)
    events, expected = {"exact": exact, "missing": stream.missing, "impossible": stream.impossible}[row]
    status, _, got = await answered(shop, case, RawStream(list(events)), stream.members)
    # The usage that nobody asked for is taken out.
    assert (status, got) == (200, b"".join(event for event in events if b'"usage"' not in event))
    await resolved(shop, case, expected)


# The upstream refuses, cannot be asked, or breaks ---------------------------------------------------------------------


@every_endpoint
@pytest.mark.parametrize("behaviour", [BROKEN, RATE_LIMITED, Status(400, b'{"error":{"message":"bad"}}')])
async def test_a_refusal_is_free_and_passed_on(shop: Shop, case: Case, behaviour: Status) -> None:
    status, headers, body = await answered(shop, case, behaviour)
    assert (status, body, headers["x-farebox-cost"]) == (behaviour.status, behaviour.body, "0.00")
    await resolved(shop, case, (0, "none", "upstream_refused"), "refused")


@every_endpoint
@pytest.mark.parametrize("behaviour", [ResetBeforeHeaders(), CloseBeforeHeaders()], ids=["reset", "close"])
async def test_no_answer_is_free(shop: Shop, case: Case, behaviour: Behaviour) -> None:
    status, headers, _ = await answered(shop, case, behaviour)
    assert (status, headers["x-farebox-cost"]) == (502, "0.00")
    await resolved(shop, case, (0, "none", "upstream_refused"), "refused")


async def test_an_answer_that_does_not_come_in_time_is_free(scratch: ScratchPostgres) -> None:
    async with open_shop(scratch, "every_late", upstream={"first_byte_seconds": 0.2}) as opened:
        await price_moderation(opened.farebox)
        for case in CASES:
            async with visit(opened) as shop:
                status, _, _ = await answered(shop, case, StallBeforeHeaders())
                assert status == 504
                await resolved(shop, case, (0, "none", "upstream_refused"), "refused")


@every_endpoint
@pytest.mark.parametrize("end", [End.CLOSE, End.RESET])
async def test_half_a_reply_is_free(shop: Shop, case: Case, end: End) -> None:
    half = Part((case.whole[: len(case.whole) // 2],), "application/json", end, len(case.whole))
    status, headers, _ = await answered(shop, case, half)
    assert (status, headers["x-farebox-cost"]) == (502, "0.00")
    await resolved(shop, case, (0, "none", "upstream_broke"), "upstream_broke")


@every_endpoint
@pytest.mark.parametrize("behaviour", [ERROR_IN_200, Status(200, b"<html>busy</html>", "text/html"), Status(200)])
async def test_what_is_no_reply_is_free_and_passed_on(shop: Shop, case: Case, behaviour: Status) -> None:
    status, _, body = await answered(shop, case, behaviour)
    assert (status, body) == (200, behaviour.body)
    await resolved(shop, case, (0, "none", "upstream_broke"), "upstream_broke")


@every_stream
@pytest.mark.parametrize("end", [End.CLOSE, End.RESET])
async def test_a_stream_that_breaks_is_charged_for_what_was_relayed(shop: Shop, case: Case, end: End) -> None:
    stream = streamed(case)
    part = Part(stream.events[:2], "text/event-stream", end)
    _, _, body = await answered(shop, case, part, stream.members)
    assert b"upstream_broke" in body
    assert body.endswith(b"data: [DONE]\n\n")
    await resolved(shop, case, (stream.relayed_nanos, "estimated", "upstream_broke"), "upstream_broke")


@every_stream
async def test_a_stream_that_breaks_before_any_output_is_free(shop: Shop, case: Case) -> None:
    stream = streamed(case)
    _, _, body = await answered(shop, case, Part((), "text/event-stream", End.CLOSE), stream.members)
    assert b"upstream_broke" in body
    await resolved(shop, case, (0, "none", "upstream_broke"), "upstream_broke")


@every_stream
async def test_a_stream_with_an_error_is_charged_for_what_was_relayed(shop: Shop, case: Case) -> None:
    stream = streamed(case)
    events = [*stream.events[:2], b'data: {"error":{"message":"The engine stopped."}}\n\n']
    _, _, body = await answered(shop, case, RawStream(events), stream.members)
    assert body == b"".join(events)
    await resolved(shop, case, (stream.relayed_nanos, "estimated", "upstream_broke"), "upstream_broke")


@every_stream
async def test_a_stream_past_its_hold_is_cut_off(shop: Shop, case: Case) -> None:
    """A cap of 4 tokens lets 4 * 4 + 64 pass; the hold covers the bound of the prompt and 4 tokens."""
    stream = streamed(case)
    members = {**stream.members, "max_tokens": 4}
    _, _, body = await answered(shop, case, RawStream([stream.endless] * 2_000), members)
    assert b"cut_off" in body
    event = await shop.event()
    assert (event["basis"], event["reason"]) == ("estimated", "cut_off")
    assert stream.prompt_nanos < event["charged_nanos"] <= 512
    await shop.upstream.idle()
    assert shop.upstream.log[0].client_left


# The client leaves ----------------------------------------------------------------------------------------------------


async def leave_at_head(shop: Shop, case: Case, gate: Gate, members: Mapping[str, Any] | None = None) -> None:
    asking = spawn(ask(shop.farebox, case, members).__aenter__(), name="a client that leaves")
    await gate.arrived()
    await stop(asking)
    await client_noticed_gone(shop.farebox)


@every_endpoint
async def test_who_leaves_before_the_first_byte_is_charged_exactly(shop: Shop, case: Case) -> None:
    gate = Gate()
    shop.upstream.next(Status(200, case.whole, gate=gate))
    await leave_at_head(shop, case, gate)
    await asyncio.sleep(2 * TICK_SECONDS)  # the upstream is waited for, not merely overtaken
    gate.open()
    await resolved(shop, case, (case.exact[0], "reported", "client_gone"), "client_gone")


@every_stream
async def test_who_leaves_a_stream_is_charged_exactly(shop: Shop, case: Case) -> None:
    stream, gate = streamed(case), Gate()
    # The gate is before the last piece: usage and the end come when the client is gone.
    shop.upstream.next(RawStream([*stream.events[:2], b"".join(stream.events[2:])], gate=gate))
    response = await ask(shop.farebox, case, stream.members)
    await gate.arrived()
    await response.content.readuntil(b"\n\n")
    response.close()
    await client_noticed_gone(shop.farebox)
    gate.open()
    await resolved(shop, case, (case.exact[0], "reported", "client_gone"), "client_gone")


async def test_a_drain_that_ends_is_estimated(scratch: ScratchPostgres) -> None:
    async with open_shop(scratch, "every_drain", drain_seconds=0.2) as opened:
        await price_moderation(opened.farebox)
        for case in CASES:
            async with visit(opened) as shop:
                gate = Gate()
                shop.upstream.next(Status(200, case.whole, gate=gate))
                await leave_at_head(shop, case, gate)
                await resolved(shop, case, (case.prompt_nanos, "estimated", "client_gone"), "client_gone")
        for case in STREAMED:
            async with visit(opened) as shop:
                stream = streamed(case)
                shop.upstream.next(Part(stream.events[:2], "text/event-stream", End.STALL))
                response = await ask(shop.farebox, case, stream.members)
                for _ in range(2):
                    await response.content.readuntil(b"\n\n")
                response.close()
                await resolved(shop, case, (stream.relayed_nanos, "estimated", "client_gone"), "client_gone")


# Without the ledger ---------------------------------------------------------------------------------------------------


async def test_without_a_ledger_every_settle_is_journaled_and_charged_once_on_replay(scratch: ScratchPostgres) -> None:
    dsn = await scratch.clone("every_journaled")
    async with (
        ledger_proxy(dsn) as proxy,
        FakeUpstream() as upstream,
        farebox(proxy.dsn, [upstream.base_url], lane_wait_seconds=0.2) as running,
    ):
        await connected(running)
        await price_moderation(running)
        gate = Gate()
        replies = []
        for number, case in enumerate(CASES, 1):
            upstream.next(Status(200, case.whole, gate=gate))
            replies.append(spawn(_status(ask(running, case)), name="a call"))
            await upstream.received(number)
        proxy.cut()
        gate.open()
        assert await asyncio.gather(*replies) == [200] * len(CASES)
        assert running.app.journal.records == len(CASES)
        proxy.restore()
        await until(lambda: running.app.journal.records == 0)
        charged = {event["endpoint"]: event["charged_nanos"] for event in await running.usage()}
        assert charged == {case.endpoint: case.exact[0] for case in CASES}
        await check_invariants(dsn)
    await scratch.drop("every_journaled")


async def _status(request: Any) -> int:
    async with request as response:
        await response.read()
        return int(response.status)


# The gateway dies -----------------------------------------------------------------------------------------------------


@every_endpoint
async def test_a_call_whose_gateway_seems_dead_is_swept_and_settled_late(shop: Shop, case: Case) -> None:
    gate = Gate()
    shop.upstream.next(Status(200, case.whole, gate=gate))
    asking = spawn(whole(shop, case), name="call")
    await gate.arrived()
    await shop.presume_dead()
    [swept] = await shop.farebox.usage()
    assert (swept["endpoint"], swept["resolution"], swept["reason"]) == (case.endpoint, "expired", "swept")
    assert swept["charged_nanos"] == 0, "nothing had been checkpointed"
    assert (await shop.farebox.wallet())["held_nanos"] == 0
    gate.open()
    assert await asking == case.whole
    await settled(shop.farebox)
    events = await shop.farebox.usage()
    assert sorted(event["charged_nanos"] for event in events) == [0, case.exact[0]]
    assert (await shop.farebox.wallet())["balance_nanos"] == CREDIT_NANOS - case.exact[0]


async def whole(shop: Shop, case: Case) -> bytes:
    async with ask(shop.farebox, case) as response:
        body: bytes = await response.read()
        return body
