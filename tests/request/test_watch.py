"""One watch for all calls: who is too late, who is gone, who must renew. Time is what `look` is told."""

import asyncio

import pytest
from multidict import CIMultiDict

from gateway.clock import monotonic_seconds
from gateway.request.watch import TICK_SECONDS, Call, Watch
from gateway.tasks import spawn, stop


class Caller:
    """The client's side, as a test wants it."""

    def __init__(self) -> None:
        self.is_gone = False
        self.aborted = 0

    def gone(self) -> bool:
        return self.is_gone

    def abort(self) -> None:
        self.aborted += 1
        self.is_gone = True

    async def start(self, status: int, headers: CIMultiDict[str]) -> None:
        raise NotImplementedError

    async def write(self, data: bytes) -> None:
        raise NotImplementedError

    def missed(self, data: bytes) -> None:
        raise NotImplementedError


class Response:
    """What a call reads from."""

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def reading(caller: Caller | None = None, *, drain_seconds: float = 30.0) -> tuple[Call, Response, float]:
    """A call that reads a reply, silent for 10 s at most and 100 s in all; and the time."""
    call, response = Call(caller or Caller(), drain_seconds=drain_seconds), Response()
    call.begin_reading(response, idle_seconds=10, total_seconds=100)
    return call, response, monotonic_seconds()


async def test_a_silent_upstream_is_closed() -> None:
    call, response, now = reading()
    call.look(now + 9)
    assert (response.closed, call.is_over) == (0, False)
    call.look(now + 11)
    assert (response.closed, call.is_over, call.is_client_gone, call.is_stopped) == (1, True, False, False)


async def test_an_upstream_that_speaks_is_not_silent() -> None:
    call, response, now = reading()
    call.moved_at_seconds = now + 9
    call.look(now + 18)
    assert response.closed == 0
    call.touch()
    assert call.moved_at_seconds <= monotonic_seconds()


async def test_a_reply_without_end_is_closed() -> None:
    call, response, now = reading()
    call.moved_at_seconds = now + 100
    call.look(now + 99)
    assert response.closed == 0
    call.look(now + 101)
    assert response.closed == 1


async def test_a_client_that_left_is_drained_for() -> None:
    caller = Caller()
    call, response, now = reading(caller, drain_seconds=5)
    seen = []
    for seconds, is_gone in ((1, False), (1, True), (4, True), (6, True)):
        caller.is_gone = is_gone
        call.moved_at_seconds = now + seconds
        call.look(now + seconds)
        seen.append((call.is_client_gone, response.closed))
    assert seen == [(False, 0), (True, 0), (True, 0), (True, 1)]
    assert call.is_over


async def test_an_end_only_comes_nearer() -> None:
    call, _, now = reading()
    for seconds in (50, 80, 20, 30):
        call.end_within(seconds)
    assert call.ends_at_seconds == pytest.approx(now + 20, abs=1)
    call.begin_reading(Response(), idle_seconds=10, total_seconds=100)
    assert call.ends_at_seconds == pytest.approx(now + 20, abs=1)


async def test_a_client_that_takes_nothing_is_dropped_and_its_upstream_is_not_silent_meanwhile() -> None:
    caller = Caller()
    call, response, now = reading(caller)
    call.writing_since_seconds = now
    seen = []
    for seconds in (9, 11, 12):
        call.look(now + seconds)
        seen.append((caller.aborted > 0, response.closed, call.is_client_gone))
    assert seen == [(False, 0, False), (True, 0, False), (True, 0, True)]


async def test_a_hold_is_renewed_while_the_call_goes_on() -> None:
    call, _, now = reading()
    renewed: list[float] = []
    call.renew = renewed.append
    call.look(now + 1)
    call.look(now + 2)
    call.look(now + 11)
    assert renewed == [now + 1, now + 2]


@pytest.mark.parametrize(("is_gone", "at"), [(False, 10), (True, 5)])
async def test_a_first_byte_is_waited_for_so_long(is_gone: bool, at: float) -> None:
    caller = Caller()
    call = Call(caller, drain_seconds=5)
    caught: list[bool] = []

    async def wait() -> None:
        call.await_first_byte(10)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            caught.append(call.took_too_long())

    task = spawn(wait(), name="a call")
    await asyncio.sleep(0)
    now = monotonic_seconds()
    caller.is_gone = is_gone
    call.look(now)
    call.look(now + at - 1)
    await asyncio.sleep(0)
    assert not task.done()
    call.look(now + at + 1)
    await task
    assert (caught, call.is_late, task.cancelling()) == ([True], True, 0)


async def test_a_cancellation_from_elsewhere_is_not_a_deadline() -> None:
    call = Call(Caller(), drain_seconds=5)
    caught: list[bool] = []

    async def wait() -> None:
        call.await_first_byte(10)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            caught.append(call.took_too_long())
            raise

    for is_late_too in (False, True):
        task = spawn(wait(), name="a call")
        await asyncio.sleep(0)
        task.cancel()
        if is_late_too:
            call.look(monotonic_seconds() + 11)
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
    assert caught == [False, False]


async def test_stop_ends_whatever_a_call_does() -> None:
    watch = Watch()
    call, response, _ = reading()
    watch.enter(call)
    waiting = Call(Caller(), drain_seconds=5)

    async def wait() -> bool:
        waiting.await_first_byte(10)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return waiting.took_too_long()
        return False

    task = spawn(wait(), name="a call")
    await asyncio.sleep(0)
    watch.enter(waiting)
    watch.stop_all()
    assert await task
    assert (response.closed, call.is_stopped, waiting.is_stopped) == (1, True, True)


async def test_a_watch_is_empty_when_its_last_call_has_left() -> None:
    watch = Watch()
    await watch.emptied(within_seconds=5)
    calls = [reading()[0] for _ in range(2)]
    for call in calls:
        watch.enter(call)
    assert len(watch) == 2
    began = monotonic_seconds()
    await watch.emptied(within_seconds=0.02)
    assert monotonic_seconds() - began >= 0.02
    waiting = spawn(watch.emptied(within_seconds=5), name="a wait")
    watch.leave(calls[0])
    await asyncio.sleep(0)
    assert not waiting.done()
    watch.leave(calls[1])
    await waiting
    assert len(watch) == 0


async def test_a_call_that_cannot_be_looked_after_does_not_harm_the_others(caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch()
    bad, good = reading()[0], reading()[0]
    looks: list[float] = []

    def fail(_: float) -> None:
        raise RuntimeError("on purpose")

    bad.renew, good.renew = fail, looks.append
    for call in (bad, good):
        watch.enter(call)
    running = spawn(watch.run(), name="watch")
    await asyncio.sleep(2.5 * TICK_SECONDS)
    assert not running.done()
    assert len(looks) == 2
    assert "a call could not be looked after" in caplog.text
    await stop(running)
