"""Before the first byte a call may go to the next upstream; after it, never. It is paid once, whoever was asked."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import orjson
import pytest
import pytest_asyncio

from tests.support.behaviours import (
    BROKEN,
    ERROR_IN_200,
    HTML,
    RATE_LIMITED,
    UNAUTHORIZED,
    Behaviour,
    CloseBeforeHeaders,
    Completion,
    End,
    ResetBeforeHeaders,
    StallBeforeHeaders,
    Status,
    failure,
)
from tests.support.gateway import MODEL
from tests.support.postgres import ScratchPostgres
from tests.support.shop import EXACT, Shop, both_forms, open_shop, visit
from tests.support.upstream import FakeUpstream, closed_port

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALIAS, VENDOR_NAME = "best", "vendor/test-1"


@dataclass(slots=True)
class Pair:
    """A shop before two upstreams; its own is the second."""

    shop: Shop
    first: FakeUpstream

    @property
    def asked(self) -> tuple[int, int]:
        return len(self.first.log), len(self.shop.upstream.log)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair_all_day(scratch: ScratchPostgres) -> AsyncIterator[Pair]:
    async with (
        FakeUpstream() as first,
        open_shop(
            scratch,
            "pair",
            urls=[first.base_url],
            upstream={"first_byte_seconds": 0.5, "rename": {MODEL: VENDOR_NAME}},
            aliases={ALIAS: MODEL},
        ) as shop,
    ):
        yield Pair(shop, first)


@pytest_asyncio.fixture(loop_scope="module")
async def pair(pair_all_day: Pair) -> AsyncIterator[Pair]:
    pair_all_day.first.log.clear()
    pair_all_day.first._script.clear()
    pair_all_day.shop.farebox.app.gateway.relay.asker.forget()  # or its breaker would open in the end
    async with visit(pair_all_day.shop) as shop:
        yield Pair(shop, pair_all_day.first)


FAILING: Mapping[str, tuple[Behaviour, str]] = {
    "429": (RATE_LIMITED, "status_429"),
    "500": (BROKEN, "status_5xx"),
    "502 HTML": (HTML, "status_5xx"),
    "503": (failure(503), "status_5xx"),
    "reset": (ResetBeforeHeaders(), "reset"),
    "close": (CloseBeforeHeaders(), "reset"),
    "redirect": (Status(302, headers={"location": "http://127.0.0.1:1/"}), "redirect"),
}


@both_forms
@pytest.mark.parametrize("name", FAILING)
async def test_the_next_upstream_is_asked(pair: Pair, form: str, name: str) -> None:
    behaviour, kind = FAILING[name]
    pair.first.next(behaviour)
    status, _, body = await pair.shop.call(form, Completion())
    assert status == 200
    assert b"Say" in body
    assert pair.asked == (1, 1)
    assert pair.first.log[0].body == pair.shop.upstream.log[0].body
    event = await pair.shop.resolved(EXACT, "reported", None, "completed")
    assert event["upstream"] == "up1"
    for upstream in ("up0", "up1"):
        assert pair.shop.count("farebox_upstream_calls_total", upstream=upstream) == 1
    assert pair.shop.count("farebox_upstream_errors_total", **{"upstream": "up0", "class": kind}) == 1


@pytest.mark.parametrize(
    "behaviour",
    [failure(400), UNAUTHORIZED, failure(404), failure(422), ERROR_IN_200],
    ids=["400", "401", "404", "422", "error in 200"],
)
async def test_a_refusal_of_the_request_is_final(pair: Pair, behaviour: Status) -> None:
    pair.first.next(behaviour)
    async with pair.shop.chat() as response:
        assert (response.status, await response.read()) == (behaviour.status, behaviour.body)
    assert pair.asked == (1, 0)
    assert (await pair.shop.event())["charged_nanos"] == 0


async def test_a_timeout_is_final(pair: Pair) -> None:
    """The upstream may be working on it, and would be paid twice."""
    pair.first.next(StallBeforeHeaders())
    async with pair.shop.chat() as response:
        assert response.status == 504
    assert pair.asked == (1, 0)
    await pair.shop.resolved(0, "none", "upstream_refused", "refused")


@pytest.mark.parametrize("events", [0, 1, 3])
async def test_nothing_is_asked_twice_after_the_first_byte(pair: Pair, events: int) -> None:
    """Or two answers would be spliced into one."""
    pair.first.next(Completion(end=End.RESET, end_after_events=events))
    async with pair.shop.chat(stream=True) as response:
        body = await response.read()
    assert body.count(b"data: ") == events + 2
    assert pair.asked == (1, 0)
    assert (await pair.shop.event())["reason"] == "upstream_broke"


async def test_half_a_json_reply_is_not_asked_again(pair: Pair) -> None:
    pair.first.next(Completion(end=End.CLOSE))
    async with pair.shop.chat() as response:
        assert response.status == 502
    assert pair.asked == (1, 0)


@pytest.mark.parametrize("last", [RATE_LIMITED, BROKEN], ids=["429", "500"])
async def test_the_last_upstreams_refusal_is_passed_on(pair: Pair, last: Status) -> None:
    pair.first.next(failure(503))
    status, _, body = await pair.shop.call("json", last)
    assert (status, body) == (last.status, last.body)
    assert pair.asked == (1, 1)
    await pair.shop.resolved(0, "none", "upstream_refused", "refused")


async def test_no_answer_of_all_is_a_502(pair: Pair) -> None:
    pair.first.next(ResetBeforeHeaders())
    status, _, body = await pair.shop.call("json", ResetBeforeHeaders())
    assert (status, orjson.loads(body)["error"]["code"]) == (502, "upstream_unreachable")
    assert pair.asked == (1, 1)
    await pair.shop.resolved(0, "none", "upstream_refused", "refused")


async def test_an_upstream_that_is_down_costs_nothing(scratch: ScratchPostgres) -> None:
    with closed_port() as port:
        async with open_shop(scratch, "down", urls=[f"http://127.0.0.1:{port}/v1"]) as opened:
            async with visit(opened) as shop:
                status, _, _ = await shop.call("stream", Completion())
                assert status == 200
                event = await shop.resolved(EXACT, "reported", None, "completed")
                assert event["upstream"] == "up1"
            async with visit(opened) as shop:
                errors: list[Behaviour] = [failure(500)]
                assert (await shop.call("json", *errors))[0] == 500
                labels = {"upstream": "up0", "class": "connect"}
                assert shop.count("farebox_upstream_errors_total", **labels) == 1


@both_forms
@pytest.mark.parametrize("asked", [MODEL, ALIAS])
async def test_a_model_goes_by_the_name_that_the_upstream_knows(pair: Pair, form: str, asked: str) -> None:
    """The name is all that changes in the body, and the reply keeps the upstream's."""
    async with pair.shop.chat(
        **({"stream": True} if form == "stream" else {}), model=asked, user="test-model"
    ) as response:
        body = await response.read()
    assert b'"model":"vendor/test-1"' in body
    sent = orjson.loads(pair.first.log[0].body)
    sent.pop("stream_options", None)
    messages = [{"role": "user", "content": "Say something."}]
    assert {name: sent[name] for name in ("model", "user", "messages")} == {
        "model": VENDOR_NAME,
        "user": "test-model",
        "messages": messages,
    }
    event = await pair.shop.resolved(EXACT, "reported", None, "completed")
    assert event["upstream"] == "up0"
