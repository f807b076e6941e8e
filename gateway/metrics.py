"""Every metric, in one place. Labels come from configuration and enums only, never from a client.

Amounts are exported in nanos, times in seconds. A model that is not in the catalogue is labelled `other`.
"""

from prometheus_client import CollectorRegistry, Gauge

from gateway import __version__
from gateway.tally import TallyCounter, TallyHistogram

_FAST = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """One registry and its metrics, named by the six verbs of a call."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.calls = TallyCounter(
            "farebox_calls", "Resolved calls.", ("endpoint", "model", "outcome", "basis"), registry=registry
        )
        self.refused = TallyCounter(
            "farebox_refused", "Calls refused before the upstream, by step.", ("step", "code"), registry=registry
        )
        self.crashes = TallyCounter("farebox_crashes", "Unexpected failures: each is a bug.", registry=registry)
        self.hold_decisions = TallyCounter(
            "farebox_hold_decisions", "Holds by decision.", ("outcome",), registry=registry
        )
        self.hold_seconds = TallyHistogram(
            "farebox_hold_seconds", "From asking for a hold to its answer.", buckets=_FAST, registry=registry
        )
        self.settle_seconds = TallyHistogram(
            "farebox_settle_seconds", "From the end of a reply to its durable settle.", buckets=_FAST, registry=registry
        )
        self.settles = TallyCounter("farebox_settles", "Settles and voids by outcome.", ("outcome",), registry=registry)
        self.added_seconds = TallyHistogram(
            "farebox_added_first_byte_seconds",
            "Time that the gateway adds before the upstream is asked.",
            buckets=_FAST,
            registry=registry,
        )
        self.lane_batch = TallyHistogram(
            "farebox_lane_batch_operations", "Operations per statement.", buckets=_BATCH, registry=registry
        )
        self.lane_failures = TallyCounter(
            "farebox_lane_failures", "Statements without an answer, by kind.", ("kind",), registry=registry
        )
        self.lane_queue = Gauge("farebox_lane_queue_operations", "Operations waiting.", registry=registry)
        self.lane_stuck = Gauge(
            "farebox_lane_stuck_seconds", "How long operations have waited without an answer.", registry=registry
        )
        self.unsettled = Gauge("farebox_unsettled_calls", "Calls of this process that hold money.", registry=registry)
        self.journal_records = Gauge(
            "farebox_journal_records", "Settles journaled and not yet replayed.", registry=registry
        )
        self.journal_failures = TallyCounter(
            "farebox_journal_failures", "Appends to the journal that failed.", registry=registry
        )
        self.held_nanos = Gauge("farebox_held_nanos", "Held over all wallets.", registry=registry)
        self.open_holds = Gauge("farebox_open_holds", "Open holds over all wallets.", registry=registry)
        self.oldest_hold = Gauge(
            "farebox_oldest_open_hold_seconds", "Age of the oldest open hold since it was renewed.", registry=registry
        )
        self.swept = TallyCounter("farebox_swept_holds", "Holds resolved by the sweep.", registry=registry)
        self.charged_nanos = TallyCounter("farebox_charged_nanos", "Charged to wallets.", ("model",), registry=registry)
        self.cost_nanos = TallyCounter(
            "farebox_cost_nanos", "What calls cost; capture is charged over this.", ("model",), registry=registry
        )
        self.shortfall_nanos = TallyCounter(
            "farebox_shortfall_nanos", "Cost that funds did not cover.", ("model",), registry=registry
        )
        self.over_ceiling = TallyCounter(
            "farebox_over_ceiling",
            "Calls that cost more than their ceiling: a bound is wrong.",
            ("model",),
            registry=registry,
        )
        self.estimates = TallyCounter("farebox_estimates", "Charges by estimate.", ("reason",), registry=registry)
        self.upstream_calls = TallyCounter(
            "farebox_upstream_calls", "Calls sent upstream.", ("upstream",), registry=registry
        )
        self.upstream_errors = TallyCounter(
            "farebox_upstream_errors", "Upstream failures by class.", ("upstream", "class"), registry=registry
        )
        self.upstream_first_byte = TallyHistogram(
            "farebox_upstream_first_byte_seconds",
            "From asking the upstream to its headers.",
            ("upstream",),
            buckets=(0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
            registry=registry,
        )
        self.invariant_failures = Gauge(
            "farebox_invariant_failures",
            "Rows that an invariant found at its last run.",
            ("invariant",),
            registry=registry,
        )
        self.upkeep_seconds = Gauge(
            "farebox_upkeep_last_success_seconds",
            "Unix time of a service's last success.",
            ("service",),
            registry=registry,
        )
        self.loop_lag = TallyHistogram(
            "farebox_event_loop_lag_seconds", "How late the event loop wakes a timer.", buckets=_FAST, registry=registry
        )
        self.build = Gauge("farebox_build_info", "The running version.", ("version",), registry=registry)
        self.build.labels(__version__).set(1)
