"""Step 4, on the wire: deadlines of an upstream, connections that are used again, and replies that go on and on."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
import pytest_asyncio

from gateway.clock import monotonic_seconds
from tests.support.behaviours import Completion, End, RawStream, Status, failure
from tests.support.call import Call, Gate
from tests.support.postgres import ScratchPostgres
from tests.support.shop import DONE, EXACT, FORMS, Shop, both_forms, open_shop, until, visit

pytestmark = pytest.mark.asyncio(loop_scope="module")

EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hasty_all_day(scratch: ScratchPostgres) -> AsyncIterator[Shop]:
    upstream: dict[str, Any] = {"first_byte_seconds": 0.4, "idle_seconds": 0.5, "total_seconds": 1.0}
    async with open_shop(scratch, "hasty", upstream=upstream, hold_valid_seconds=2) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def hasty(hasty_all_day: Shop) -> AsyncIterator[Shop]:
    """A shop that gives an upstream 0.4 s to answer, 0.5 s between reads and 1 s in all."""
    async with visit(hasty_all_day) as shop:
        yield shop


class StallAfter:
    """Sends a head and these bytes, and then nothing."""

    def __init__(self, data: bytes, content_type: str = "application/json", status: int = 200) -> None:
        self.data, self.content_type, self.status = data, content_type, status

    async def reply(self, call: Call) -> None:
        await call.start(self.content_type, status=self.status)
        await call.send(self.data)
        await call.stall()


async def test_a_stream_that_never_ends_is_ended(hasty: Shop) -> None:
    """It is never silent, and is charged for what was relayed."""
    began = monotonic_seconds()
    _, _, body = await hasty.call("stream", Completion(output_tokens=1_000, pause_seconds=0.1), max_tokens=1_000)
    assert 0.9 < monotonic_seconds() - began < 3
    assert body.endswith(DONE)
    assert b'"code":"upstream_broke"' in body
    event = await hasty.event()
    assert (event["basis"], event["reason"]) == ("estimated", "upstream_broke")
    assert 5 < event["usage"]["output"] < 60


@both_forms
async def test_a_head_without_a_body_is_given_up_and_free(hasty: Shop, form: str) -> None:
    content_type = "application/json" if form == "json" else "text/event-stream"
    status, _, body = await hasty.call(form, StallAfter(b"", content_type))
    assert status == (502 if form == "json" else 200)
    assert b"upstream_broke" in body
    await hasty.resolved(0, "none", "upstream_broke", "upstream_broke")
    await hasty.upstream.idle()
    assert hasty.upstream.log[0].client_left


async def test_an_error_that_never_ends_is_a_502(hasty: Shop) -> None:
    status, _, body = await hasty.call("json", StallAfter(b'{"error":', status=400))
    assert (status, orjson.loads(body)["error"]["code"]) == (502, "upstream_broke")
    await hasty.resolved(0, "none", "upstream_refused", "refused")


async def test_an_error_without_measure_is_a_502(shop: Shop) -> None:
    status, _, body = await shop.call("json", Status(400, b"x" * (2**20 + 1)))
    assert (status, orjson.loads(body)["error"]["code"]) == (502, "upstream_broke")
    status, _, body = await shop.call("json", Status(400, b"x" * 2**20))
    assert (status, len(body)) == (400, 2**20)


async def test_an_upstream_that_keeps_its_connection_open_does_not_delay_the_client(shop: Shop) -> None:
    """After [DONE] only usage could follow, and is waited for a second."""
    whole = EVENT + b'data: {"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":20}}\n\n' + DONE
    began = monotonic_seconds()
    _, _, body = await shop.call("stream", StallAfter(whole, "text/event-stream"))
    assert monotonic_seconds() - began < 2
    assert body == EVENT + DONE
    await shop.resolved(EXACT, "reported", None, "completed")
    await shop.upstream.idle()
    assert shop.upstream.log[0].client_left


async def test_a_half_read_reply_that_stalls_is_ended(hasty: Shop) -> None:
    """Past the buffer the head is out: the connection is dropped, for no end of it would be true."""
    start = b'{"padding":"' + b"x" * 2**21
    hasty.upstream.next(StallAfter(start))
    async with hasty.chat() as response:
        got = await response.content.readexactly(2**20)
        assert start.startswith(got)
        with pytest.raises(Exception, match=r"not completed|[Cc]onnection|payload"):
            await response.read()
    event = await hasty.event()
    assert (event["basis"], event["reason"]) == ("estimated", "upstream_broke")


async def test_a_client_that_does_not_read_is_dropped(hasty: Shop) -> None:
    """It keeps money held; what was relayed, and what was drained after it, is charged."""
    hasty.upstream.next(RawStream([EVENT * 1_000] * 3_000))
    response = await hasty.chat(stream=True)
    await until(lambda: len(hasty.farebox.app.watch) == 1)
    await until(lambda: len(hasty.farebox.app.watch) == 0)
    event = await hasty.event()
    assert event["reason"] in ("client_gone", "cut_off")
    response.close()


async def test_a_long_call_renews_its_hold_with_what_it_cost_so_far(hasty: Shop) -> None:
    """A hold valid for 2 s is renewed after 1 s at the latest; its checkpoint is what a sweep would charge."""
    gate = Gate()
    hasty.upstream.next(Completion(output_tokens=20, gate=gate, gate_at_event=11, end=End.FINISH))
    app = hasty.farebox.app
    async with hasty.chat(stream=True) as response:
        await gate.arrived()
        for call in list(app.watch._calls):
            call.idle_seconds = call.ends_at_seconds = 0
            assert call.renew is not None
            call.renew(monotonic_seconds() + 2)
        await until(lambda: app.lane.queued == 0)
        async with app.database.connection() as connection:
            while True:
                row = await connection.fetchrow(
                    "SELECT checkpoint_nanos, checkpoint_usage, renewed_at > now() - interval '1 s' AS fresh FROM holds"
                )
                assert row is not None
                if row["checkpoint_nanos"]:
                    break
                await asyncio.sleep(0.01)
        # Ten words are 74 bytes: 19 tokens by their size.
        assert row["checkpoint_nanos"] == 23 + 4 * 19
        assert orjson.loads(row["checkpoint_usage"]) == {"input": 23, "output": 19}
        assert row["fresh"]
        gate.open()
        await response.read()
    await hasty.resolved(EXACT, "reported", None, "completed")


async def test_connections_are_used_again_and_none_is_lost(shop: Shop) -> None:
    """Well-read ones go back to the pool, broken ones are closed."""
    connector = shop.farebox.app.gateway.relay.asker._connector
    for behaviour in (
        Completion(),
        Completion(end=End.CLOSE),
        failure(429),
        Completion(body_bytes_min=2**21),
        RawStream([EVENT * 100] * 100),
        Completion(),
    ):
        for form in FORMS:
            await shop.call(form, behaviour, max_tokens=20)
    assert not connector._acquired
    pooled = sum(len(connections) for connections in connector._conns.values())
    assert 1 <= pooled <= 2


async def test_first_byte_and_errors_are_measured(hasty: Shop) -> None:
    await hasty.call("json", Completion())
    status, _, _ = await hasty.call("json", Completion(gate=Gate()))
    assert status == 504
    assert hasty.count("farebox_upstream_first_byte_seconds_count", upstream="up0") == 1
    labels = {"upstream": "up0", "class": "first_byte_timeout"}
    assert hasty.count("farebox_upstream_errors_total", **labels) == 1
    assert hasty.count("farebox_added_first_byte_seconds_count") == 2
