"""Measures of one target: calls per second, SSE events per second, latency. `wrk` where it is installed, else ours."""

import asyncio
import re
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.client import Target, blocking_connection, call_once, chat_body, run_callers
from tests.benchmarks.mock_upstream import STREAM_EVENTS
from tests.benchmarks.rows import Row

_UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1_000.0, "m": 60_000.0}


@dataclass(frozen=True, slots=True)
class Measured:
    """`calls` were answered well; `errors` were not. `events_per_s` is 0 for calls that are no streams."""

    rps: float
    p50_ms: float
    p99_ms: float
    errors: int
    calls: int
    events_per_s: float = 0.0


def percentile(values: list[float], share: float) -> float:
    """By nearest rank; raises ValueError for no values."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def measure_calls(target: Target, *, connections: int, seconds: float) -> Measured:
    """Non-streaming chat calls in a closed loop."""
    if wrk := shutil.which("wrk"):
        return await asyncio.to_thread(_measure_by_wrk, wrk, target, connections, seconds)
    return await _measure_by_callers(target, target.request(chat_body()), connections, seconds)


async def measure_streams(target: Target, *, connections: int, seconds: float) -> Measured:
    """Streams of STREAM_EVENTS events in a closed loop, one after the other on each connection."""
    return await _measure_by_callers(target, target.request(chat_body(stream=True)), connections, seconds)


async def measure_row(row: Row, target: Target, *, connections: int, seconds: float) -> Measured:
    """Calls of a row in a closed loop."""
    return await _measure_by_callers(target, _row_request(row, target), connections, seconds)


def _row_request(row: Row, target: Target) -> bytes:
    return target.request(row.body, row.path, row.content_type)


async def _measure_by_callers(target: Target, request: bytes, connections: int, seconds: float) -> Measured:
    counted = await run_callers(target.port, request, connections=connections, seconds=seconds)
    if not counted.latencies:
        raise RuntimeError(f"{target.name}: no call was answered, {counted.errors} failed")
    return Measured(
        rps=len(counted.latencies) / counted.seconds,
        p50_ms=statistics.median(counted.latencies) * 1_000,
        p99_ms=percentile(counted.latencies, 0.99) * 1_000,
        errors=counted.errors,
        calls=len(counted.latencies),
        events_per_s=counted.events / counted.seconds,
    )


def check(target: Target, rows: Sequence[Row]) -> None:
    """One call and one stream, and one of each row, read and verified. Raises RuntimeError."""
    for row in rows:
        with blocking_connection(target) as connection:
            reply = call_once(connection, _row_request(row, target))
            if row.marker not in reply or len(reply) < row.reply_bytes_min:
                raise RuntimeError(f"{target.name} lost the reply of {row.name}: {reply[-300:]!r}")
    with blocking_connection(target) as connection:
        reply = call_once(connection, target.request(chat_body()))
        if b'"usage":{' not in reply:
            raise RuntimeError(f"{target.name} lost the reply: {reply[-300:]!r}")
        stream = call_once(connection, target.request(chat_body(stream=True)))
    # A chunk with a choice per event; a usage chunk that nobody asked for is no event.
    if stream.count(b'"choices":[{') != STREAM_EVENTS or b"data: [DONE]\n\n" not in stream:
        raise RuntimeError(f"{target.name} lost events: {stream[-300:]!r}")


def _measure_by_wrk(wrk: str, target: Target, connections: int, seconds: float) -> Measured:
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory) / "post.lua"
        script.write_text(_wrk_script(target, chat_body()), encoding="utf-8")
        url = f"http://127.0.0.1:{target.port}/v1/chat/completions"
        whole_seconds = max(1, round(seconds))
        command = [wrk, "-t1", f"-c{connections}", f"-d{whole_seconds}s", "--latency", "-s", str(script), url]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=whole_seconds + 30)
    return parse_wrk(done.stdout)


def _wrk_script(target: Target, body: bytes) -> str:
    # %q of Lua: our bodies are ASCII JSON, and need only these two escapes.
    text = body.decode("ascii").replace("\\", "\\\\").replace('"', '\\"')
    return (
        'wrk.method = "POST"\n'
        'wrk.headers["content-type"] = "application/json"\n'
        f'wrk.headers["authorization"] = "{target.authorization}"\n'
        f'wrk.body = "{text}"\n'
    )


def parse_wrk(output: str) -> Measured:
    """The report of `wrk --latency`. Raises RuntimeError where it answered nothing."""
    calls = int(_first(r"(\d+) requests in", output) or 0)
    refused = int(_first(r"Non-2xx or 3xx responses: (\d+)", output) or 0)
    socket_errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    errors = refused + (sum(map(int, socket_errors.groups())) if socket_errors else 0)
    if calls <= refused:
        raise RuntimeError(f"wrk had no good answer:\n{output}")
    return Measured(
        rps=float(_first(r"Requests/sec:\s+([\d.]+)", output) or 0),
        p50_ms=_milliseconds(_first(r"\n +50% +(\S+)", output)),
        p99_ms=_milliseconds(_first(r"\n +99% +(\S+)", output)),
        errors=errors,
        calls=calls,
    )


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found.group(1) if found else None


def _milliseconds(text: str | None) -> float:
    found = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text or "")
    if found is None:
        raise RuntimeError(f"wrk: {text!r} is no duration")
    return float(found.group(1)) * _UNITS_MS[found.group(2)]
