"""Our counters must read as prometheus-client's do."""

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from gateway.tally import TallyCounter, TallyHistogram


def lines(registry: CollectorRegistry) -> list[str]:
    text = generate_latest(registry).decode()
    return [line for line in text.splitlines() if "_created" not in line]


def test_counter_reads_as_the_librarys() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally = TallyCounter("calls", "Calls.", ("model", "outcome"), registry=ours)
    counter = Counter("calls", "Calls.", ("model", "outcome"), registry=theirs)
    plain, plain_counter = TallyCounter("plain", "Plain.", registry=ours), Counter("plain", "Plain.", registry=theirs)
    for series in (tally, counter):
        series.labels("a", "ok").inc()
        series.labels("a", "ok").inc(41)
        series.labels('quo"te', "x").inc(0)
    for single in (plain, plain_counter):
        single.inc(3)
    assert sorted(lines(ours)) == sorted(lines(theirs))


def test_histogram_reads_as_the_librarys() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally = TallyHistogram("seconds", "Seconds.", ("up",), buckets=(0.1, 1, 2.5), registry=ours)
    histogram = Histogram("seconds", "Seconds.", ("up",), buckets=(0.1, 1, 2.5), registry=theirs)
    for value in (0.0, 0.1, 0.10001, 1, 2.4, 2.5, 2.6, 1000):
        tally.labels("a").observe(value)
        histogram.labels("a").observe(value)
    assert sorted(lines(ours)) == sorted(lines(theirs))


def test_plain_histogram_starts_at_zero() -> None:
    registry = CollectorRegistry()
    tally = TallyHistogram("seconds", "Seconds.", buckets=(1,), registry=registry)
    assert 'seconds_bucket{le="+Inf"} 0.0' in lines(registry)
    tally.observe(2)
    assert 'seconds_bucket{le="1.0"} 0.0' in lines(registry)
    assert "seconds_sum 2.0" in lines(registry)
