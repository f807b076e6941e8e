"""Counters and histograms for the request path: as prometheus-client's, without its locks.

prometheus-client takes a lock for every increment, three for an observation; measured, that was a tenth of a call.
One event loop writes these and the scrape reads them on the same loop, so there is nothing to lock.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Count:
    """One series of a counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        self.value += amount


class TallyCounter(Collector):
    """A counter with labels. `name` is without its _total."""

    def __init__(self, name: str, help_text: str, labels: Sequence[str] = (), *, registry: CollectorRegistry) -> None:
        self._name, self._help, self._labels = name, help_text, tuple(labels)
        self._series: dict[tuple[str, ...], Count] = {}
        self._plain = self.labels() if not labels else Count()
        registry.register(self)

    def labels(self, *values: str) -> Count:
        """The series of these label values, in the order of the names."""
        series = self._series.get(values)
        if series is None:
            assert len(values) == len(self._labels), f"{self._name} takes {self._labels}"
            series = self._series[values] = Count()
        return series

    def inc(self, amount: int = 1) -> None:
        """Count on a counter without labels."""
        self._plain.value += amount

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._help, labels=self._labels)
        for values, series in self._series.items():
            family.add_metric([str(value) for value in values], series.value)
        yield family


class Spread:
    """One series of a histogram."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class TallyHistogram(Collector):
    """A histogram with labels; `buckets` are ascending upper bounds."""

    def __init__(
        self,
        name: str,
        help_text: str,
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._name, self._help, self._labels, self._bounds = name, help_text, tuple(labels), tuple(buckets)
        self._series: dict[tuple[str, ...], Spread] = {}
        self._plain = self.labels() if not labels else Spread(self._bounds)
        self.observe = self._plain.observe
        registry.register(self)

    def labels(self, *values: str) -> Spread:
        """The series of these label values, in the order of the names."""
        series = self._series.get(values)
        if series is None:
            assert len(values) == len(self._labels), f"{self._name} takes {self._labels}"
            series = self._series[values] = Spread(self._bounds)
        return series

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._help, labels=self._labels)
        for values, series in self._series.items():
            total = 0
            buckets = []
            for bound, count in zip((*self._bounds, float("inf")), series.counts, strict=True):
                total += count
                buckets.append((str(floatToGoString(bound)), total))  # type: ignore[no-untyped-call]
            family.add_metric([str(value) for value in values], buckets, series.sum)
        yield family
