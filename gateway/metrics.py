"""Every metric, in one place. Labels come from configuration and enums only, never from a client.

Amounts are exported in nanos, times in seconds. A model that is not in the catalogue never gets this far.
"""

from prometheus_client import CollectorRegistry, Gauge

from gateway import __version__
from gateway.tally import TallyCounter, TallyHistogram

_FAST = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_SLOW = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """One registry, and every metric in it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._add_calls()
        self._add_ledger()
        self._add_seals()
        self._add_money()
        self._add_upstreams()
        self._add_process()

    def _add_calls(self) -> None:
        self.calls = self._counter("calls", "Resolved calls.", "endpoint", "model", "outcome", "basis")
        self.refused = self._counter("refused", "Calls refused before the upstream, by kind.", "step", "code")
        self.idempotency = self._counter("idempotency", "Idempotency keys, by what became of them.", "outcome")
        self.passed = self._counter("passed", "Requests of paths that the operator allows.", "path", "price")
        self.unowned = self._counter("unowned_responses", "Responses whose owner could not be written down.")
        self.passed_by_id = self._counter("passed_calls", "Calls about kept responses, which are free.", "what")
        self.background = self._gauge("background_responses", "Responses that work in the background, unsettled.")
        self.crashes = self._counter("crashes", "Unexpected failures: each is a bug.")
        self.added_seconds = self._histogram(
            "added_first_byte_seconds", "Time that passes here before the upstream is asked.", _FAST
        )
        self.unsettled = self._gauge("unsettled_calls", "Calls of this process that hold money.")
        self.sessions = self._gauge("sessions", "Realtime sessions that are open.")

    def _add_ledger(self) -> None:
        self.hold_decisions = self._counter("hold_decisions", "Holds by decision.", "outcome")
        self.recounts = self._counter(
            "recounts", "Calls refused for funds whose input was counted by a tokenizer, by outcome.", "outcome"
        )
        self.hold_extensions = self._counter("hold_extensions", "Extensions of holds that grow, by answer.", "outcome")
        self.hold_seconds = self._histogram("hold_seconds", "From asking for a hold to its answer.", _FAST)
        self.settle_seconds = self._histogram("settle_seconds", "From the end of a reply to its durable settle.", _FAST)
        self.settles = self._counter("settles", "Settles and voids by outcome.", "outcome")
        self.lane_batch = self._histogram("lane_batch_operations", "Operations per statement.", _BATCH)
        self.lane_failures = self._counter("lane_failures", "Statements without an answer, by kind.", "kind")
        self.lane_queue = self._gauge("lane_queue_operations", "Operations waiting.")
        self.lane_stuck = self._gauge("lane_stuck_seconds", "How long operations have waited without an answer.")
        self.journal_records = self._gauge("journal_records", "Settles journaled and not yet replayed.")
        self.journal_damaged = self._gauge("journal_damaged", "Journal files set aside: not all could be replayed.")
        self.journal_failures = self._counter("journal_failures", "Appends to the journal that failed.")
        self.held_nanos = self._gauge("held_nanos", "Held over all wallets.")
        self.open_holds = self._gauge("open_holds", "Open holds over all wallets.")
        self.oldest_hold = self._gauge("oldest_open_hold_seconds", "Age of the oldest open hold since it was renewed.")
        self.swept = self._counter("swept_holds", "Open holds resolved by the sweep: their gateways died.")
        self.invariant_failures = self._gauge(
            "invariant_failures", "Rows that an invariant found at its last run.", "invariant"
        )

    def _add_seals(self) -> None:
        self.seal_lag = self._gauge("seal_lag_seconds", "Age of the oldest ledger entry that is not sealed yet.")
        self.sealed_entries = self._counter("sealed_entries", "Ledger entries sealed by this process.")
        self.seal_mismatches = self._gauge(
            "seal_mismatches", "Wallets or blocks whose entries are not what they must be, as last looked at.", "kind"
        )

    def _add_money(self) -> None:
        self.charged_nanos = self._counter("charged_nanos", "Charged to wallets.", "model")
        self.cost_nanos = self._counter("cost_nanos", "What calls cost; capture is charged over this.", "model")
        self.shortfall_nanos = self._counter("shortfall_nanos", "Cost that funds did not cover.", "model")
        self.over_ceiling = self._counter(
            "over_ceiling", "Calls that cost more than their ceiling: a bound is wrong.", "model"
        )
        self.unpriced_tiers = self._counter(
            "unpriced_tiers", "Replies of a tier of service that has no price: charged as it was asked for.", "model"
        )
        self.over_hold = self._counter(
            "over_hold", "Calls that cost more than their hold had grown to: their output was counted low.", "model"
        )
        self.estimates = self._counter("estimates", "Charges by estimate.", "reason")

    def _add_upstreams(self) -> None:
        self.upstream_calls = self._counter("upstream_calls", "Calls sent upstream.", "upstream")
        self.upstream_errors = self._counter("upstream_errors", "Upstream failures by class.", "upstream", "class")
        self.upstream_skipped = self._counter(
            "upstream_skipped", "Times that an upstream was passed over, by why.", "upstream", "reason"
        )
        self.upstream_up = self._gauge(
            "upstream_up", "Whether an upstream that was asked is taken to be well: its breaker is closed.", "upstream"
        )
        self.upstream_in_flight = self._gauge(
            "upstream_in_flight_calls", "Calls that an upstream works on.", "upstream"
        )
        self.upstream_first_byte = self._histogram(
            "upstream_first_byte_seconds", "From asking the upstream to its headers.", _SLOW, "upstream"
        )

    def _add_process(self) -> None:
        self.upkeep_seconds = self._gauge(
            "upkeep_last_success_seconds", "Unix time of a service's last success.", "service"
        )
        self.loop_lag = self._histogram("event_loop_lag_seconds", "How late the event loop wakes a timer.", _FAST)
        self.build = self._gauge("build_info", "The running version.", "version")
        self.build.labels(__version__).set(1)

    def _counter(self, name: str, help_text: str, *labels: str) -> TallyCounter:
        return TallyCounter(f"farebox_{name}", help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...], *labels: str) -> TallyHistogram:
        return TallyHistogram(f"farebox_{name}", help_text, labels, buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return Gauge(f"farebox_{name}", help_text, labels, registry=self.registry)


class LaneMetrics:
    """Who hears what a lane does."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def batch_sent(self, operations: int) -> None:
        """A statement with so many."""
        self._metrics.lane_batch.observe(operations)

    def statement_failed(self, kind: str) -> None:
        """A statement that had no answer."""
        self._metrics.lane_failures.labels(kind).inc()


class CrewMetrics:
    """What only a supervisor knows (`farebox serve --workers`), in the registry of its own Metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.workers = Gauge("farebox_workers", "Worker processes by state.", ["state"], registry=registry)
        self.worker_up = Gauge(
            "farebox_worker_up",
            "Whether this worker is ready and answers its supervisor.",
            ["worker"],
            registry=registry,
        )
        self.worker_restarts = TallyCounter(
            "farebox_worker_restarts", "Workers that died, or did not start, and were started again.", registry=registry
        )
