"""What is exported: our names only, and no label that a client could choose."""

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gateway import __version__
from gateway.db.lanes import Outcome
from gateway.db.queries import invariants
from gateway.metrics import Metrics
from gateway.request.idempotency import Fate
from gateway.request.meter import Ending
from gateway.request.recount import Recounted
from tests.support.behaviours import BROKEN, RATE_LIMITED, Completion, ResetBeforeHeaders
from tests.support.gateway import FREE_MODEL, MODEL
from tests.support.keyed import ask
from tests.support.rawhttp import exchange, request
from tests.support.shop import ENDPOINT, Shop, open_all_day, shop
from tests.test_errors import EXPECTED

__all__ = ["open_all_day", "shop"]

HOSTILE = 'hostile"}\nx'
MORE_CODES = {"missing_required_parameter", "invalid_type", "invalid_value", "output_cap_too_large", "invalid_http"}
# Every value that a label may have, from configuration, enums and our own words.
KNOWN = {
    "endpoint": {ENDPOINT},
    "model": {MODEL, FREE_MODEL},
    "outcome": {*map(str, Ending), *map(str, Outcome), "journaled", *map(str, Fate), *map(str, Recounted)},
    "basis": {"reported", "estimated", "none"},
    "step": {"refused", "upstreamfailed", "unavailable"},
    "code": {code for _, code, *_ in EXPECTED.values()} | MORE_CODES,
    "kind": {"unknown", "retried", "split", "refused", "checkpoint_dropped", "unsealable", "changed"},
    "upstream": {"up0"},
    "class": {"connect", "connect_timeout", "reset", "redirect", "broke", "idle_timeout", "first_byte_timeout",
              "error_broke", "look", "status_429", "status_4xx", "status_5xx"},
    "reason": {*map(str, Ending), "usage_missing", "usage_invalid", "meter_failed"},
    "service": {"sweep", "replay", "invariants", "catalogue", "held", "partitions", "forget_keys", "seal", "chain",
        "background", "forget_responses", "keep_database"},
    "invariant": set(invariants()),
    "version": {__version__},
}  # fmt: skip


@pytest.mark.asyncio(loop_scope="module")
async def test_a_busy_gateway_has_only_labels_that_are_known(shop: Shop) -> None:
    app = shop.farebox.app
    shop.upstream.next(Completion(), BROKEN, RATE_LIMITED, ResetBeforeHeaders(), Completion(usage=lambda usage: ()))
    for _ in range(5):
        async with shop.chat() as response:
            await response.read()
    assert [(await ask(shop.farebox, HOSTILE[:7])).status for _ in range(2)] == [200, 200]
    async with shop.chat(stream=True, model=FREE_MODEL) as response:
        await response.read()
    for members in ({"model": HOSTILE}, {"n": HOSTILE}, {HOSTILE: 1}, {"max_tokens": 10**9}, {"stream": HOSTILE}):
        async with shop.chat(**members) as response:
            await response.read()
    for port in (app.port, app.ops_port):
        for method, path in (("GET", "/hostile"), ("DELETE", "/v1/models"), ("POST", "/metrics")):
            assert (await exchange(port, request(method, path, "User-Agent: hostile", key="hostile"))).status >= 400
    async with shop.farebox.session.get(shop.farebox.ops_url + "/metrics") as response:
        text = await response.text()
    assert "hostile" not in text
    seen: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        assert family.name.startswith("farebox_")
        assert family.documentation.endswith(".")
        for sample in family.samples:
            for name, value in sample.labels.items():
                seen.setdefault(name, set()).add(value)
    del seen["le"]
    for name, values in seen.items():
        assert values <= KNOWN[name], name


def test_a_registry_is_its_own() -> None:
    """Two gateways in one process do not share counters, and nothing lands in the library's global registry."""
    first, second = Metrics(), Metrics()
    first.crashes.inc()
    assert first.registry.get_sample_value("farebox_crashes_total") == 1
    assert second.registry.get_sample_value("farebox_crashes_total") == 0
    assert b"farebox_build_info" in generate_latest(first.registry)
