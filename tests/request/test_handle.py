"""The six steps as one: whatever fails, wherever it fails, a hold is resolved exactly once."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import aiohttp
import orjson
import pytest
import pytest_asyncio

from gateway import points
from gateway.core.usage import Limits, Reading
from gateway.endpoints.chat import ChatEndpoint
from gateway.endpoints.chat_stream import ChatStream
from gateway.endpoints.endpoint import CallRequest, Changes, ReplySeen
from gateway.web import routes
from tests.support.behaviours import Completion
from tests.support.postgres import ScratchPostgres
from tests.support.shop import EXACT, FORMS, Shop, both_forms, open_shop, settled, visit

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def try_call(shop: Shop, form: str, events: int = 20) -> tuple[int | None, bytes]:
    """(status, bytes) of a call that may well end badly; None where not even a head came."""
    shop.upstream.next(Completion(output_tokens=events, pause_seconds=0.002))
    got = bytearray()
    status = None
    try:
        async with shop.chat(**FORMS[form]) as response:
            status = response.status
            async for data in response.content.iter_any():
                got += data
    except aiohttp.ClientError:
        pass
    await settled(shop.farebox)
    await shop.farebox.app.gateway.settler.finished()
    return status, bytes(got)


async def resolutions(shop: Shop) -> list[tuple[str, str | None]]:
    """How this test's calls were resolved; none of them may be open still."""
    async with asyncio.timeout(5):
        while await shop.farebox.open_holds():
            await asyncio.sleep(0.01)
    return [(event["resolution"], event["reason"]) for event in await shop.farebox.usage()]


def at(monkeypatch: pytest.MonkeyPatch, name: str, action: Callable[[], object]) -> list[str]:
    """Do something where a call passes a point, once; gives the points passed."""
    passed: list[str] = []

    def reach(reached: str) -> None:
        passed.append(reached)
        if reached == name and passed.count(name) == 1:
            action()

    monkeypatch.setattr(points, "armed", True)
    monkeypatch.setattr(points, "reach", reach)
    return passed


def cancel_this_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


# Where the task of a call is cancelled -> how its hold is resolved. A hold that was asked for may be undone, or never
# have been sent.
WHOLE: list[tuple[str, str | None]] = [("settled", None)]
CANCELLED: Mapping[str, list[tuple[str, str | None]]] = {
    "authenticate.done": [("voided", "abandoned")],
    "admit.done": [("voided", "abandoned")],
    "hold.placed": [("voided", "gateway_failed")],
    "relay.connected": [("voided", "gateway_failed")],
    "relay.first_byte": [("voided", "gateway_failed")],
    "relay.mid_stream": [("settled", "gateway_failed")],
    "relay.done": WHOLE,
    "meter.done": WHOLE,
    "settle.durable": WHOLE,
    "finish.sent": WHOLE,
}


@both_forms
@pytest.mark.parametrize("name", points.NAMES)
async def test_a_call_that_is_cancelled_anywhere_is_resolved_once(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, form: str, name: str
) -> None:
    if form == "json" and name == "relay.mid_stream":
        return
    passed = at(monkeypatch, name, cancel_this_task)
    await try_call(shop, form)
    assert name in passed
    found = await resolutions(shop)
    allowed = [CANCELLED[name]]
    if name in ("authenticate.done", "admit.done"):
        allowed.append([])
    elif form == "json" and name.startswith("relay."):
        # A reply that is there already is read without a wait: the cancellation finds the call at its settle.
        allowed.append(WHOLE)
    assert found in allowed
    if found == WHOLE:
        assert (await shop.event())["charged_nanos"] == EXACT


def fail() -> None:
    raise RuntimeError("on purpose")


@both_forms
@pytest.mark.parametrize("name", ["relay.connected", "relay.first_byte", "relay.mid_stream"])
async def test_a_call_that_crashes_in_the_relay_is_resolved_once(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, form: str, name: str
) -> None:
    if form == "json" and name == "relay.mid_stream":
        return
    at(monkeypatch, name, fail)
    status, got = await try_call(shop, form)
    assert await resolutions(shop) == CANCELLED[name]
    assert shop.count("farebox_crashes_total") == 1
    if name == "relay.mid_stream":
        assert status == 200
        # Nothing that is no event may follow, and no end that would make it look whole.
        assert b"HTTP/1.1" not in got
        assert b"[DONE]" not in got
        event = await shop.event()
        assert event["charged_nanos"] == 23 + 4 * event["usage"]["output"] < EXACT
    else:
        assert status == 500
        assert orjson.loads(got)["error"]["code"] == "internal_error"
        assert (await shop.event())["charged_nanos"] == 0


# An endpoint with a bug ----------------------------------------------------------------------------------------------


class _FaultyStream(ChatStream):
    def __init__(self, fault: str, *, remove_usage: bool) -> None:
        super().__init__(remove_usage=remove_usage)
        self._fault, self._feeds = fault, 0

    __slots__ = ("_fault", "_feeds")

    def feed(self, data: bytes) -> bytes:
        self._feeds += 1
        if self._fault == "feed" or (self._fault == "later feed" and self._feeds == 4):
            fail()
        return super().feed(data)

    def finish(self) -> bytes:
        if self._fault == "finish":
            fail()
        return super().finish()


class _Faulty(ChatEndpoint):
    """Fails where it is told to."""

    fault = ""

    def upstream_body(self, body: bytes, changes: Changes) -> bytes:
        if self.fault == "upstream_body":
            fail()
        return super().upstream_body(body, changes)

    def reply_reader(self, content_type: str, request: CallRequest) -> ChatStream | None:
        if not request.stream:
            return super().reply_reader(content_type, request)
        if self.fault == "reply_reader":
            fail()
        return _FaultyStream(self.fault, remove_usage=not request.wants_usage)

    def read_reply(self, body: bytes) -> ReplySeen:
        if self.fault == "read_reply":
            fail()
        return super().read_reply(body)

    def read_usage(self, usage: Mapping[str, object], limits: Limits) -> Reading | None:
        if self.fault == "read_usage":
            fail()
        return super().read_usage(usage, limits)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def faulty_all_day(scratch: ScratchPostgres) -> AsyncIterator[tuple[_Faulty, Shop]]:
    endpoint = _Faulty()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(routes, "METERED", {"/chat/completions": endpoint})
        async with open_shop(scratch, "faulty") as opened:
            yield endpoint, opened


@pytest.mark.parametrize(
    ("fault", "form", "status", "resolution"),
    [
        ("upstream_body", "json", 500, ("voided", "gateway_failed")),
        ("upstream_body", "stream", 500, ("voided", "gateway_failed")),
        ("reply_reader", "stream", 500, ("voided", "gateway_failed")),
        ("read_reply", "json", 500, ("voided", "gateway_failed")),
        ("feed", "stream", 200, ("voided", "gateway_failed")),
        ("later feed", "stream", 200, ("settled", "gateway_failed")),
        ("finish", "stream", 200, ("settled", "gateway_failed")),
        ("read_usage", "json", 200, ("settled", "meter_failed")),
        ("read_usage", "stream", 200, ("settled", "meter_failed")),
    ],
)
async def test_a_bug_in_an_endpoint_leaves_no_hold(
    faulty_all_day: tuple[_Faulty, Shop], fault: str, form: str, status: int, resolution: tuple[str, str]
) -> None:
    endpoint, opened = faulty_all_day
    async with visit(opened) as shop:
        endpoint.fault = fault
        try:
            answered, got = await try_call(shop, form)
            assert (answered, await resolutions(shop)) == (status, [resolution])
            assert shop.count("farebox_crashes_total") == 1
            if fault != "read_usage":
                assert b"HTTP/1.1" not in got
                assert b"[DONE]" not in got
        finally:
            endpoint.fault = ""
        assert (await try_call(shop, form))[0] == 200


# Refused before there is a hold --------------------------------------------------------------------------------------


async def test_a_gateway_that_stops_takes_no_calls(shop: Shop) -> None:
    gateway = shop.farebox.app.gateway
    gateway.stopping = True
    try:
        async with shop.chat() as response:
            assert (response.status, (await response.json())["error"]["code"]) == (503, "stopping")
    finally:
        gateway.stopping = False
    await shop.untouched()


async def test_more_calls_than_allowed_are_refused(shop: Shop) -> None:
    gateway = shop.farebox.app.gateway
    allowed, gateway.calls_in_flight_max = gateway.calls_in_flight_max, 0
    try:
        async with shop.chat() as response:
            assert (response.status, (await response.json())["error"]["code"]) == (503, "overloaded")
    finally:
        gateway.calls_in_flight_max = allowed
    await shop.untouched()
