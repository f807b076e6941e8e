"""What a benchmark says in the end: medians, ratios, `.artifacts/bench.json` and a table for people."""

import json
import os
import platform
import statistics
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks.load import Measured
from tests.benchmarks.rows import served_rows

CHAT_CONNECTIONS = (1, 16, 64)
# As many as calls; and 16, where a stream that waits for its two commits leaves the relay less else to do.
STREAM_CONNECTIONS = (16, 64)
_FIGURES = (
    "added_p50_ms",
    "added_p99_ms",
    "commit_ms",
    "group_commit_ms",
    "kb_per_stream",
    "kb_per_stream_bare",
    "large_reply_kb",
    "large_reply_kb_bare",
)
STREAM_ROWS = {count: f"stream_c{count}" for count in STREAM_CONNECTIONS}


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one row. `postgres_cpu_s` is None for a target without PostgreSQL."""

    measured: Measured
    cpu_s: float
    postgres_cpu_s: float | None
    rss_bytes: int


@dataclass(slots=True)
class Results:
    """Everything measured, before it is summed up. Keys of `samples` are (row, target)."""

    samples: dict[tuple[str, str], list[Sample]] = field(default_factory=dict)
    latencies: dict[str, list[float]] = field(default_factory=dict)
    kb_per_stream: dict[str, float] = field(default_factory=dict)
    large_reply_kb: dict[str, float] = field(default_factory=dict)
    commit_ms: float | None = None
    group_commits: list[float] = field(default_factory=list)  # seconds, beside the latencies
    lane_vs_single: float | None = None
    postgresql: str = "not asked"

    @property
    def errors(self) -> int:
        return sum(sample.measured.errors for samples in self.samples.values() for sample in samples)


def versions(postgresql: str) -> dict[str, str]:
    """What was measured, on what. The build of the interpreter is worth a fifth of the speed: it is named."""
    options = str(sysconfig.get_config_var("CONFIG_ARGS") or "")
    build = "optimised (PGO)" if "--enable-optimizations" in options else "plain build"
    return {
        "python": platform.python_version(),
        "interpreter": f"{platform.python_implementation()} {platform.python_compiler()}, {build}",
        "aiohttp": version("aiohttp"),
        "uvloop": version("uvloop"),
        "asyncpg": version("asyncpg"),
        "orjson": version("orjson"),
        "postgresql": postgresql,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} cores",
    }


def document(results: Results) -> dict[str, object]:
    """The contents of bench.json. Every figure is a median of rounds; a ratio is Farebox over bare."""
    added = {name: _added(results.latencies, share) for name, share in (("p50", 0.50), ("p99", 0.99))}
    return {
        "versions": versions(results.postgresql),
        "rows": [_row(name, target, samples) for (name, target), samples in results.samples.items()],
        "ratios": {
            **{f"chat_c{count}": _ratio(results, f"chat_c{count}", _rps) for count in CHAT_CONNECTIONS},
            **{row.name: _ratio(results, row.name, _rps) for row in served_rows()},
            "stream_events": _ratio(results, STREAM_ROWS[64], _events),
            "stream_events_c16": _ratio(results, STREAM_ROWS[16], _events),
            "lane_vs_single": _rounded(results.lane_vs_single),
        },
        "added_p50_ms": added["p50"],
        "added_p99_ms": added["p99"],
        "commit_ms": _rounded(results.commit_ms),
        "group_commit_ms": _median_ms(results.group_commits),
        "kb_per_stream": _rounded(results.kb_per_stream.get("farebox")),
        "kb_per_stream_bare": _rounded(results.kb_per_stream.get("bare")),
        "large_reply_kb": _rounded(results.large_reply_kb.get("farebox")),
        "large_reply_kb_bare": _rounded(results.large_reply_kb.get("bare")),
        "errors": results.errors,
    }


def write(path: Path, results: Results) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document(results), indent=2) + "\n", encoding="utf-8")


def show(console: Console, results: Results) -> None:
    # Seconds are CPU time per thousand calls; PG is PostgreSQL's.
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("what", "target", "calls/s", "events/s", "p50 ms", "p99 ms", "CPU s/1k", "PG s/1k", "MB"):
        table.add_column(heading, justify="left" if heading in ("what", "target") else "right", no_wrap=True)
    for (name, target), samples in results.samples.items():
        row = _row(name, target, samples)
        figures = ("rps", "events_per_s", "p50_ms", "p99_ms", "cpu_s_per_1k", "postgres_cpu_s_per_1k", "rss_mb")
        table.add_row(name, target, *(_figure(row.get(figure)) for figure in figures))
    console.print(table)
    contents = document(results)
    ratios = contents["ratios"]
    assert isinstance(ratios, dict)
    console.print("Farebox over bare: " + ", ".join(f"{name} {_figure(ratio)}" for name, ratio in ratios.items()))
    for name in _FIGURES:
        console.print(f"{name} {_figure(contents[name])}")
    if results.errors:
        console.print(f"[bold red]{results.errors} calls failed: these figures mean nothing[/]")


def _row(name: str, target: str, samples: list[Sample]) -> dict[str, object]:
    def median(figure: Callable[[Sample], float]) -> float | None:
        return _rounded(statistics.median(figure(sample) for sample in samples))

    row: dict[str, object] = {
        "name": name,
        "target": target,
        "rps": median(_rps),
        "p50_ms": median(lambda sample: sample.measured.p50_ms),
        "p99_ms": median(lambda sample: sample.measured.p99_ms),
        "cpu_s_per_1k": median(lambda sample: sample.cpu_s / sample.measured.calls * 1_000),
        "rss_mb": median(lambda sample: sample.rss_bytes / 1e6),
    }
    if name in STREAM_ROWS.values():
        row["events_per_s"] = median(_events)
    if all(sample.postgres_cpu_s is not None for sample in samples):
        row["postgres_cpu_s_per_1k"] = median(
            lambda sample: (sample.postgres_cpu_s or 0.0) / sample.measured.calls * 1_000
        )
    return row


def _rps(sample: Sample) -> float:
    return sample.measured.rps


def _events(sample: Sample) -> float:
    return sample.measured.events_per_s


def _ratio(results: Results, name: str, figure: Callable[[Sample], float]) -> float | None:
    medians = [
        statistics.median(figure(sample) for sample in results.samples[(name, target)])
        for target in ("farebox", "bare")
        if (name, target) in results.samples
    ]
    return _rounded(medians[0] / medians[1]) if len(medians) == 2 else None


def _added(latencies: dict[str, list[float]], share: float) -> float | None:
    """The difference of the two percentiles, in milliseconds."""
    if not {"farebox", "bare"} <= set(latencies):
        return None
    ranks = [sorted(latencies[target])[int(share * len(latencies[target]))] for target in ("farebox", "bare")]
    return _rounded((ranks[0] - ranks[1]) * 1_000)


def _median_ms(seconds: list[float]) -> float | None:
    return _rounded(statistics.median(seconds) * 1_000) if seconds else None


def _rounded(value: float | None) -> float | None:
    """Four significant digits: more would be a claim."""
    return None if value is None else float(f"{value:.4g}")


def _figure(value: object) -> str:
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    return f"{value:,.0f}" if value >= 1_000 else f"{value:.4g}"
