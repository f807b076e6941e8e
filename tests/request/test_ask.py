"""Who is asked, and how: by kind of upstream, by lot, past those that are full, and after those that fail."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.request.ask import own_headers
from tests.support.behaviours import BROKEN, RATE_LIMITED, CloseBeforeHeaders, Completion, failure
from tests.support.call import Gate
from tests.support.gateway import MODEL
from tests.support.offers import upstream_of
from tests.support.postgres import ScratchPostgres
from tests.support.shop import EXACT, Shop, both_forms, open_shop, until, visit
from tests.support.upstream import FakeUpstream

SECRET = "sk-upstream-secret"


@dataclass(slots=True)
class Row:
    """A shop before several upstreams."""

    shop: Shop
    upstreams: Sequence[FakeUpstream]

    @property
    def asked(self) -> tuple[int, ...]:
        return tuple(len(upstream.log) for upstream in self.upstreams)

    async def status(self, **members: Any) -> int:
        async with self.shop.chat(**members) as response:
            await response.read()
            return int(response.status)

    async def check(self) -> tuple[str, str]:
        """What /healthz says of upstreams."""
        async with self.shop.farebox.session.get(f"{self.shop.farebox.ops_url}/healthz") as response:
            check = orjson.loads(await response.read())["checks"]["upstreams"]
        return check["status"], check["detail"]

    async def gauge(self, name: str, upstream: str) -> float | None:
        app = self.shop.farebox.app
        app.refresh()
        return app.metrics.registry.get_sample_value(name, {"upstream": upstream})


@asynccontextmanager
async def row(scratch: ScratchPostgres, *each: dict[str, Any], **settings: Any) -> AsyncIterator[Row]:
    """One upstream for each of `each`, its settings; two of no settings if there are none."""
    given = list(each) or [{}, {}]
    async with FakeUpstream() as first:
        urls = [first.base_url] * (len(given) - 1)
        if each and "base_url" in each[0]:
            given[0] = given[0] | {"base_url": first.url}
        async with open_shop(scratch, "row", urls=urls, each=given, **settings) as opened, visit(opened) as shop:
            yield Row(shop, [first, shop.upstream] if len(given) > 1 else [shop.upstream])


@both_forms
async def test_azure_is_asked_by_deployment_with_its_own_key_header(scratch: ScratchPostgres, form: str) -> None:
    azure = {
        "kind": "azure",
        "base_url": "the root",
        "api_version": "2024-10-21",
        "rename": {MODEL: "my deployment"},
        "headers": {"X-Title": "shop"},
    }
    async with row(scratch, azure, {}) as two:
        async with two.shop.chat(stream=form == "stream", user="me") as response:
            assert response.status == 200
            await response.read()
        served = two.upstreams[0].log[0]
        assert served.raw_path == "/openai/deployments/my%20deployment/chat/completions?api-version=2024-10-21"
        assert served.headers["api-key"] == SECRET
        assert served.headers["x-title"] == "shop"
        assert "authorization" not in served.headers
        sent = orjson.loads(served.body)
        assert (sent["model"], sent["user"]) == ("my deployment", "me")
        assert sent.get("stream_options") == ({"include_usage": True} if form == "stream" else None)
        event = await two.shop.resolved(EXACT, "reported", None, "completed")
        assert event["upstream"] == "up0"


async def test_mistral_is_not_sent_what_it_refuses(scratch: ScratchPostgres) -> None:
    async with row(scratch, {"kind": "mistral"}) as one:
        assert await one.status(stream=True) == 200
        sent = orjson.loads(one.shop.upstream.log[0].body)
        assert "stream_options" not in sent
        assert "max_completion_tokens" not in sent
        assert sent["max_tokens"] > 0


def test_the_keys_form() -> None:
    assert own_headers(upstream_of()) == (None, [])
    assert own_headers(upstream_of(api_key="k", headers={"X-A": "b"})) == ("Bearer k", [("X-A", "b")])
    assert own_headers(upstream_of(api_key="k", auth="api-key")) == (None, [("api-key", "k")])


async def test_a_full_upstream_is_passed_over_and_none_left_is_a_503(scratch: ScratchPostgres) -> None:
    async with row(scratch, {"calls_in_flight_max": 1}, {"calls_in_flight_max": 1}) as two:
        gates = Gate(), Gate()
        for upstream, gate in zip(two.upstreams, gates, strict=True):
            upstream.next(Completion(gate=gate))
        running = []
        for gate in gates:
            running.append(asyncio.ensure_future(two.status(stream=True)))
            await gate.arrived()
        assert two.asked == (1, 1)
        assert await two.gauge("farebox_upstream_in_flight_calls", "up0") == 1
        async with two.shop.chat() as response:
            body = orjson.loads(await response.read())
            assert (response.status, body["error"]["code"]) == (503, "upstreams_busy")
            assert response.headers["retry-after"] == "1"
        assert two.asked == (1, 1)
        assert two.shop.count("farebox_upstream_skipped_total", upstream="up0", reason="full") == 2
        assert two.shop.count("farebox_upstream_skipped_total", upstream="up1", reason="full") == 1
        for gate in gates:
            gate.open()
        assert [await one for one in running] == [200, 200]
        await until(lambda: two.shop.farebox.app.gateway.unsettled == 0)
        events = await two.shop.farebox.usage()
        assert sorted(event["charged_nanos"] for event in events) == [0, EXACT, EXACT]
        # What has ended makes room: by its whole reply, by a failure, by a client that left.
        two.upstreams[0].next(CloseBeforeHeaders())
        for _ in range(3):
            assert await two.status() == 200
        assert await two.gauge("farebox_upstream_in_flight_calls", "up0") == 0
        assert await two.gauge("farebox_upstream_in_flight_calls", "up1") == 0


async def test_a_refusal_is_passed_on_where_the_next_is_full(scratch: ScratchPostgres) -> None:
    """The reply of the last that can be asked is the client's."""
    async with row(scratch, {}, {"calls_in_flight_max": 1}) as two:
        gate = Gate()
        two.upstreams[0].next(failure(503))
        two.upstreams[1].next(Completion(gate=gate))
        running = asyncio.ensure_future(two.status())
        await gate.arrived()
        two.upstreams[0].next(RATE_LIMITED)
        assert await two.status() == 429
        gate.open()
        assert await running == 200
        assert two.asked == (2, 1)


async def test_an_upstream_that_fails_is_asked_last_until_a_probe_is_answered(scratch: ScratchPostgres) -> None:
    async with row(scratch, {"open_after_failures": 3, "open_seconds": 0.6}, {}) as two:
        assert await two.check() == ("ok", "ok")
        two.upstreams[0].next(*[BROKEN] * 4)
        for _ in range(3):
            assert await two.status() == 200
        assert two.asked == (3, 3)
        assert await two.check() == ("failing", "failing: up0")
        assert await two.gauge("farebox_upstream_up", "up0") == 0
        assert await two.gauge("farebox_upstream_up", "up1") == 1
        breaker = two.shop.farebox.app.gateway.relay.asker.standings["up0"].breaker
        breaker.probe_at_seconds += 60
        assert await two.status() == 200
        assert two.asked == (3, 4)
        breaker.probe_at_seconds -= 61
        # One call is the probe, and it fails; then another, and it is answered.
        assert [await two.status(), two.asked] == [200, (4, 5)]
        assert str(breaker.state) == "open"
        breaker.probe_at_seconds -= 61
        assert [await two.status(), two.asked] == [200, (5, 5)]
        assert [await two.status(), two.asked] == [200, (6, 5)]
        assert await two.gauge("farebox_upstream_up", "up0") == 1


async def test_open_breakers_never_stop_a_call(scratch: ScratchPostgres) -> None:
    async with row(scratch, {"open_after_failures": 1}, {"open_after_failures": 1}) as two:
        for upstream in two.upstreams:
            upstream.next(BROKEN)
        assert await two.status() == 500
        standings = two.shop.farebox.app.gateway.relay.asker.standings
        assert {str(one.breaker.state) for one in standings.values()} == {"open"}
        assert await two.status() == 200
        assert two.asked == (2, 1)


async def test_a_probe_whose_client_leaves_is_not_held_against_anybody(scratch: ScratchPostgres) -> None:
    async with row(scratch, {"open_after_failures": 1}, {}, drain_seconds=0.1) as two:
        gate = Gate()
        two.upstreams[0].next(BROKEN, Completion(gate=gate))
        assert await two.status() == 200
        breaker = two.shop.farebox.app.gateway.relay.asker.standings["up0"].breaker
        breaker.probe_at_seconds -= 60
        leaving = asyncio.ensure_future(two.status())
        await gate.arrived()
        assert str(breaker.state) == "probing"
        leaving.cancel()
        await until(lambda: two.shop.farebox.app.gateway.unsettled == 0)
        assert str(breaker.state) == "open"
        assert await two.status() == 200
        assert two.asked[0] == 3
        assert str(breaker.state) == "closed"


async def test_weights_share_calls_and_each_pays_its_own_price(scratch: ScratchPostgres) -> None:
    async with row(scratch, {"weight": 1, "price_bp": 20_000}, {"weight": 1}) as two:
        for _ in range(40):
            assert await two.status() == 200
        await until(lambda: two.shop.farebox.app.gateway.unsettled == 0)
        paid = {(event["upstream"], event["charged_nanos"]) for event in await two.shop.farebox.usage()}
        assert paid == {("up0", 2 * EXACT), ("up1", EXACT)}
        assert sum(two.asked) == 40
        assert all(18 <= count <= 22 for count in two.asked), "an even lot shares evenly"


async def test_a_reload_gives_every_upstream_a_new_chance(scratch: ScratchPostgres) -> None:
    async with row(scratch, {"open_after_failures": 1}, {}) as two:
        two.upstreams[0].next(failure(502))
        assert await two.status() == 200
        asker = two.shop.farebox.app.gateway.relay.asker
        assert asker.ill == ["up0"]
        asker.forget()
        assert asker.ill == []
        assert await two.status() == 200
        assert two.asked == (2, 1)
