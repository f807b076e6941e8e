"""One exposition for all workers: counters and histograms are summed, gauges go by a rule of their own.

A snapshot is what one process counts, as JSON. What a worker had counted when it died stays in the sums: to Prometheus
a counter that falls is a restart, and would count everything again.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

# [family, help, type, [[sample, {label: value}, number], …]]
Snapshot = Sequence[Any]


class Across(StrEnum):
    """How a gauge of several processes becomes one."""

    SUM = "sum"
    MAX = "max"
    MIN = "min"
    LEAD = "lead"  # it is about the database, and only the worker that leads looks there


GAUGES: Mapping[str, Across] = {
    "farebox_unsettled_calls": Across.SUM,
    "farebox_lane_queue_operations": Across.SUM,
    "farebox_lane_stuck_seconds": Across.MAX,
    "farebox_journal_records": Across.SUM,
    # Files in the directory that all of them share.
    "farebox_journal_damaged": Across.MAX,
    "farebox_held_nanos": Across.LEAD,
    "farebox_open_holds": Across.LEAD,
    "farebox_oldest_open_hold_seconds": Across.LEAD,
    "farebox_invariant_failures": Across.LEAD,
    "farebox_seal_lag_seconds": Across.LEAD,
    "farebox_seal_mismatches": Across.LEAD,
    "farebox_background_responses": Across.LEAD,
    # The one that is furthest behind. Who does not lead has no series of the services that only the lead runs.
    "farebox_upkeep_last_success_seconds": Across.MIN,
    "farebox_build_info": Across.MAX,
    # Each worker finds out for itself; one that could not reach it is worth a look.
    "farebox_upstream_up": Across.MIN,
    "farebox_upstream_in_flight_calls": Across.SUM,
    "farebox_sessions": Across.SUM,
    "farebox_workers": Across.SUM,
    "farebox_worker_up": Across.SUM,
}
_Key = tuple[str, tuple[tuple[str, str], ...]]


def snapshot(registry: CollectorRegistry) -> Snapshot:
    """What this process counts, as JSON can carry it."""
    return [
        [family.name, family.documentation, family.type, [[s.name, s.labels, s.value] for s in family.samples]]
        for family in registry.collect()
    ]


class _Sums:
    """Samples by name and labels, in the order of their arrival."""

    def __init__(self) -> None:
        self._families: dict[str, tuple[str, str, dict[_Key, float]]] = {}

    def add(self, taken: Snapshot, *, is_lead: bool = False, with_gauges: bool = True) -> None:
        for name, help_text, kind, samples in taken:
            across = GAUGES.get(name, Across.MAX) if kind == "gauge" else Across.SUM
            if kind == "gauge" and not with_gauges:
                continue
            _, _, values = self._families.setdefault(name, (help_text, kind, {}))
            if across is Across.LEAD and not is_lead:
                continue
            for sample, labels, number in samples:
                key = (sample, tuple(labels.items()))
                before = values.get(key)
                values[key] = number if before is None else _one(across, before, number)

    def collect(self) -> Iterator[Metric]:
        for name, (help_text, kind, values) in self._families.items():
            family = Metric(name, help_text, kind)
            for (sample, labels), number in values.items():
                family.add_sample(sample, dict(labels), number)
            yield family

    def snapshot(self) -> Snapshot:
        return [
            [name, help_text, kind, [[sample, dict(labels), number] for (sample, labels), number in values.items()]]
            for name, (help_text, kind, values) in self._families.items()
        ]


def _one(across: Across, one: float, other: float) -> float:
    if across is Across.MAX:
        return max(one, other)
    return min(one, other) if across is Across.MIN else one + other


class Totals:
    """What all processes have counted, the dead ones included."""

    def __init__(self) -> None:
        self._dead = _Sums()

    def absorb(self, taken: Snapshot) -> None:
        """A worker has ended: its counts stay, its gauges do not."""
        self._dead.add(taken, with_gauges=False)

    def exposition(self, taken: Iterable[Snapshot], lead: Snapshot | None, *, stale: Iterable[Snapshot] = ()) -> bytes:
        """Everything as Prometheus reads it; `lead` is that one of `taken` whose word on the database counts.

        `stale` are the last of workers that do not answer: what they counted stays, what they measured is past.
        """
        sums = _Sums()
        for one in taken:
            sums.add(one, is_lead=one is lead)
        for one in (*stale, self._dead.snapshot()):
            sums.add(one, with_gauges=False)
        registry = CollectorRegistry()
        registry.register(_Once(sums))
        return generate_latest(registry)


class _Once(Collector):
    def __init__(self, sums: _Sums) -> None:
        self._sums = sums

    def collect(self) -> Iterator[Metric]:
        return self._sums.collect()
