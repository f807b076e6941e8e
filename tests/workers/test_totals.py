"""Many processes, one exposition: sums that never fall, and a rule for every gauge."""

import orjson
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from gateway.metrics import CrewMetrics, Metrics
from gateway.workers.totals import GAUGES, Across, Snapshot, Totals, snapshot

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def carried(metrics: Metrics) -> Snapshot:
    """A snapshot as it comes out of the link."""
    taken: Snapshot = orjson.loads(orjson.dumps(snapshot(metrics.registry)))
    return taken


def samples(exposition: bytes) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(exposition.decode())
        for sample in family.samples
    }


def busy(calls: int, seconds: float) -> Metrics:
    metrics = Metrics()
    metrics.calls.labels("chat.completions", "m", "completed", "reported").inc(calls)
    metrics.charged_nanos.labels("m").inc(2**40 + 1)
    for _ in range(calls):
        metrics.hold_seconds.observe(seconds)
        metrics.upstream_first_byte.labels("up0").observe(seconds)
    return metrics


CALLS = (
    "farebox_calls_total",
    (("basis", "reported"), ("endpoint", "chat.completions"), ("model", "m"), ("outcome", "completed")),
)


def test_counters_and_histograms_are_summed() -> None:
    taken = [carried(busy(2, 0.0003)), carried(busy(5, 0.3))]
    found = samples(Totals().exposition(taken, taken[0]))
    assert found[CALLS] == 7
    assert found["farebox_charged_nanos_total", (("model", "m"),)] == 2 * (2**40 + 1)
    for name, labels in (("farebox_hold_seconds", ()), ("farebox_upstream_first_byte_seconds", (("upstream", "up0"),))):
        buckets = [
            value for (sample, of), value in found.items() if sample == f"{name}_bucket" and set(labels) <= {*of}
        ]
        assert buckets == sorted(buckets)
        assert (buckets[0], buckets[-1]) == (0 if name == "farebox_hold_seconds" else 2, 7)
        assert found[f"{name}_count", labels] == 7
        assert found[f"{name}_sum", labels] == pytest.approx(2 * 0.0003 + 5 * 0.3)


def test_what_one_process_exposes_alone_is_what_it_exposes_among_none() -> None:
    metrics = busy(3, 0.02)
    metrics.upkeep_seconds.labels("sweep").set(5)
    metrics.invariant_failures.labels("drift").set(1)
    taken = carried(metrics)
    registry = CollectorRegistry()
    own = samples(Totals().exposition([taken], taken))
    for family in metrics.registry.collect():
        for sample in family.samples:
            assert own[sample.name, tuple(sorted(sample.labels.items()))] == sample.value, sample
    assert len(own) == sum(len(family.samples) for family in metrics.registry.collect())
    assert list(registry.collect()) == []


@pytest.mark.parametrize(
    ("across", "expected"), [(Across.SUM, 7.0), (Across.MAX, 4.0), (Across.MIN, 1.0), (Across.LEAD, 2.0)]
)
def test_a_gauge_goes_by_its_rule(across: Across, expected: float) -> None:
    name = next(name for name, rule in GAUGES.items() if rule is across)
    taken: list[Snapshot] = [[[name, "Help.", "gauge", [[name, {"of": "x"}, value]]]] for value in (4.0, 2.0, 1.0)]
    totals = Totals()
    assert samples(totals.exposition(taken, taken[1]))[name, (("of", "x"),)] == expected
    if across is Across.LEAD:
        assert samples(totals.exposition(taken, None)) == {}


def test_every_gauge_has_a_rule_and_every_rule_a_gauge() -> None:
    """A new gauge must say how it adds up: see GAUGES."""
    metrics = Metrics()
    CrewMetrics(metrics.registry)
    assert {family.name for family in metrics.registry.collect() if family.type == "gauge"} == set(GAUGES)


def test_the_counts_of_the_dead_stay_and_their_gauges_go() -> None:
    totals, dying, living = Totals(), busy(3, 0.1), busy(1, 0.1)
    dying.unsettled.set(3)
    before = samples(totals.exposition([carried(dying), carried(living)], None))
    totals.absorb(carried(dying))
    after = samples(totals.exposition([carried(living)], None))
    assert (before[CALLS], after[CALLS]) == (4, 4)
    assert (before["farebox_unsettled_calls", ()], after["farebox_unsettled_calls", ()]) == (3, 0)
    totals.absorb(carried(busy(10, 0.1)))
    assert samples(totals.exposition([carried(living)], None))[CALLS] == 14
    frozen = samples(totals.exposition([carried(living)], None, stale=[carried(dying)]))
    assert (frozen[CALLS], frozen["farebox_unsettled_calls", ()]) == (17, 0)
    falls = [key for key, value in before.items() if after[key] < value and key[0] not in GAUGES]
    assert falls == []
