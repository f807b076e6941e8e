"""Farebox beside a bare relay: `python -m tests.benchmarks.bench [--quick] [--pin]`.

Both stand in front of the same mock upstream and are measured in turns, so that a slow minute of the machine meets
both; figures are medians of the rounds. Ratios travel between machines, absolute figures do not.
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import asyncpg
import uvloop
from rich.console import Console

from tests.benchmarks import report
from tests.benchmarks.client import (
    Target,
    alternate,
    chat_body,
    close_streams,
    finish_replies,
    open_streams,
    paused_replies,
)
from tests.benchmarks.farebox import Farebox, start_farebox
from tests.benchmarks.ledger import GroupCommit, group_commits, lane_vs_single
from tests.benchmarks.load import Measured, check, measure_calls, measure_row, measure_streams
from tests.benchmarks.processes import cpu_seconds, descriptors, listening, rss_bytes, tree, wait_for_descriptors
from tests.benchmarks.rows import LARGE_BYTES, LARGE_MODEL, served_rows

ARTIFACTS = Path(".artifacts")
DESCRIPTORS_WANTED = 8_192
COMMITS = 200
SETTLE_SECONDS_MAX = 60.0
LARGE_REPLIES = 16
PAUSE_BYTES = 2_000_000
PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Options:
    """`seconds` are per measurement; `calls` are per round of the latency probe."""

    rounds: int
    seconds: float
    calls: int
    streams: int
    pin: bool
    output: Path
    database_url: str | None


@dataclass(frozen=True, slots=True)
class Subject:
    """A target and the processes behind it, asked for anew each time: workers come and go."""

    target: Target
    pids: Callable[[], list[int]]
    postgres_pids: Callable[[], list[int]] | None = None


class Load(Protocol):
    """One way of loading a target."""

    async def __call__(self, target: Target, *, connections: int, seconds: float) -> Measured: ...


def main() -> int:
    """0 where every call was answered well, 1 otherwise, 130 where it was interrupted."""
    options = _options()
    _raise_descriptor_limit()
    console = Console(stderr=True)
    # SIGTERM is taken like Ctrl-C, so that the children are ended; a shell's background job has Ctrl-C switched off.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        results = run(options, console)
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("interrupted; everything that was started has been ended")
        return 130
    except RuntimeError as error:
        console.print(f"[bold red]{error}[/]")
        return 1
    report.write(options.output, results)
    report.show(Console(), results)
    return 1 if results.errors else 0


def run(options: Options, console: Console) -> report.Results:
    """Start everything, measure everything, end everything."""
    options.output.parent.mkdir(parents=True, exist_ok=True)
    relay_core, rest_core = _cores() if options.pin else (None, None)
    if rest_core is not None:
        os.sched_setaffinity(0, {rest_core})
    with contextlib.ExitStack() as stack:
        # Beside the report and not in /tmp, which may be memory: a commit there would cost nothing.
        directory = Path(tempfile.mkdtemp(prefix="bench-", dir=options.output.parent)).resolve()
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        log = options.output.with_suffix(".log").resolve()
        log.unlink(missing_ok=True)
        console.print(f"starting; complaints go to {log}")
        mock = stack.enter_context(listening("mock_upstream", log=log, core=rest_core))
        upstream = f"http://127.0.0.1:{mock.port}"
        bare = stack.enter_context(listening("bare_relay", upstream, log=log, core=relay_core))
        farebox = stack.enter_context(
            start_farebox(directory, mock.port, log=log, database_url=options.database_url, core=relay_core)
        )
        if rest_core is not None:  # it inherited the gateway's core
            for pid in farebox.postgres_pids():
                os.sched_setaffinity(pid, {rest_core})
        subjects = [
            Subject(Target("bare", bare.port), lambda: tree(bare.pid)),
            Subject(farebox.target, farebox.gateway_pids, farebox.postgres_pids),
        ]
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(measure(options, console, subjects, farebox))


async def measure(options: Options, console: Console, subjects: list[Subject], farebox: Farebox) -> report.Results:
    """All measurements. Memory comes first: a heap that has grown under load would hide what streams need."""
    results = report.Results()
    targets = [subject.target for subject in subjects]
    rows = served_rows()
    for target in targets:
        check(target, rows)
    for subject in subjects:
        console.print(f"{options.streams} open streams, {subject.target.name}")
        results.kb_per_stream[subject.target.name] = await measure_memory(subject, options.streams)
    for subject in subjects:
        console.print(f"{LARGE_REPLIES} large replies at once, {subject.target.name}")
        results.large_reply_kb[subject.target.name] = await measure_large_replies(subject)
    for target in targets:
        await measure_calls(target, connections=16, seconds=1)
    with farebox.database() as dsn:
        async with group_commits(dsn) as commit:
            for number in range(options.rounds):
                await _round(options, console, subjects, number, commit, results)
        results.commit_ms, results.postgresql = await measure_commit(dsn)
        console.print("the lane against one statement per operation")
        lane, single = await lane_vs_single(dsn, seconds=options.seconds)
        console.print(f"one hot wallet, 64 callers: lane {lane:,.0f} calls/s, single {single:,.0f} calls/s")
        results.lane_vs_single = lane / single
    return results


async def _round(
    options: Options,
    console: Console,
    subjects: list[Subject],
    number: int,
    commit: GroupCommit,
    results: report.Results,
) -> None:
    """Every row once for each target."""
    # Who comes first has the machine as the other left it: a burst of writing, a clock that was slowed down.
    turns = subjects if number % 2 == 0 else subjects[::-1]
    for count in report.CHAT_CONNECTIONS:
        for subject in turns:
            console.print(f"round {number + 1}: chat, {count} at once, {subject.target.name}")
            sample = await _sample(subject, count, options.seconds, measure_calls)
            results.samples.setdefault((f"chat_c{count}", subject.target.name), []).append(sample)
    for (count, name), subject in itertools.product(report.STREAM_ROWS.items(), turns):
        console.print(f"round {number + 1}: streams, {count} at once, {subject.target.name}")
        sample = await _sample(subject, count, options.seconds, measure_streams)
        results.samples.setdefault((name, subject.target.name), []).append(sample)
    for row, subject in itertools.product(served_rows(), turns):
        console.print(f"round {number + 1}: {row.name}, {row.connections} at once, {subject.target.name}")
        sample = await _sample(subject, row.connections, options.seconds, partial(measure_row, row))
        results.samples.setdefault((row.name, subject.target.name), []).append(sample)
    console.print(f"round {number + 1}: {options.calls} single calls each, and group commits, taking turns")
    loop = asyncio.get_running_loop()

    def also() -> float:
        return asyncio.run_coroutine_threadsafe(commit(), loop).result()

    targets = [subject.target for subject in turns]
    latencies = await asyncio.to_thread(alternate, targets, options.calls, also)
    results.group_commits += latencies.pop("also")
    for name, took in latencies.items():
        results.latencies.setdefault(name, []).extend(took)


async def _sample(subject: Subject, connections: int, seconds: float, load: Load) -> report.Sample:
    """One measurement with what it cost the processes behind it."""
    cpu_before = cpu_seconds(subject.pids())
    postgres = subject.postgres_pids
    postgres_before = cpu_seconds(postgres()) if postgres else 0.0
    measured = await load(subject.target, connections=connections, seconds=seconds)
    pids = subject.pids()
    return report.Sample(
        measured=measured,
        cpu_s=cpu_seconds(pids) - cpu_before,
        postgres_cpu_s=cpu_seconds(postgres()) - postgres_before if postgres else None,
        rss_bytes=rss_bytes(pids),
    )


async def measure_memory(subject: Subject, count: int) -> float:
    """Kilobytes that one open stream adds to the resident memory."""
    pids = subject.pids()
    idle_bytes, idle_descriptors = rss_bytes(pids), descriptors(pids)
    streams = await open_streams(subject.target, count)
    held_bytes = rss_bytes(subject.pids())
    close_streams(streams)
    # A relay may go on reading for a while from an upstream whose client left: it must not be measured meanwhile.
    settled = await asyncio.to_thread(
        wait_for_descriptors, pids, idle_descriptors + count // 10, seconds=SETTLE_SECONDS_MAX
    )
    if not settled:
        raise RuntimeError(f"{subject.target.name} kept its connections after {count} clients had left")
    return (held_bytes - idle_bytes) / 1_024 / count


async def measure_large_replies(subject: Subject) -> float:
    """Kilobytes that a reply of LARGE_BYTES adds to the resident memory while its client does not read on."""
    request = subject.target.request(chat_body(model=LARGE_MODEL))
    # One by itself first: what a heap keeps once it has grown is no reply's.
    await finish_replies(subject.target, await paused_replies(subject.target, request, 1, PAUSE_BYTES), LARGE_BYTES)
    idle_bytes = rss_bytes(subject.pids())
    replies = await paused_replies(subject.target, request, LARGE_REPLIES, PAUSE_BYTES)
    await asyncio.sleep(PAUSE_SECONDS)
    held_bytes = rss_bytes(subject.pids())
    await finish_replies(subject.target, replies, LARGE_BYTES)
    return max(0.0, (held_bytes - idle_bytes) / 1_024 / LARGE_REPLIES)


async def measure_commit(dsn: str) -> tuple[float, str]:
    """The median milliseconds of one tiny durable UPDATE, and the server's version."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("CREATE TABLE bench_commit (one integer NOT NULL)")
        await connection.execute("INSERT INTO bench_commit VALUES (0)")
        times: list[float] = []
        for _ in range(COMMITS):
            started = time.perf_counter()
            await connection.execute("UPDATE bench_commit SET one = one + 1")
            times.append(time.perf_counter() - started)
        return statistics.median(times) * 1_000, str(await connection.fetchval("SHOW server_version"))
    finally:
        await connection.execute("DROP TABLE IF EXISTS bench_commit")
        await connection.close()


def _cores() -> tuple[int, int]:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise RuntimeError("--pin needs two cores")
    return cores[0], cores[1]


def _raise_descriptor_limit() -> None:
    """A thousand streams are two thousand sockets to a relay; children inherit the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(DESCRIPTORS_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _options() -> Options:
    parser = argparse.ArgumentParser(description="Measure Farebox beside a bare relay, on loopback.")
    parser.add_argument("--quick", action="store_true", help="short rounds: a look, not a measurement")
    parser.add_argument("--pin", action="store_true", help="the relay on one core, everything else on another")
    parser.add_argument("--rounds", type=int, default=5, choices=range(3, 21), metavar="3..20")
    parser.add_argument("--output", type=Path, default=ARTIFACTS / "bench.json")
    parser.add_argument("--database-url", help="measure on this PostgreSQL instead of Farebox's own")
    given = parser.parse_args()
    quick = given.quick
    return Options(
        rounds=given.rounds,
        seconds=1.0 if quick else 3.0,
        calls=200 if quick else 600,
        streams=200 if quick else 1_000,
        pin=given.pin,
        output=given.output,
        database_url=given.database_url,
    )


if __name__ == "__main__":
    sys.exit(main())
