"""`make bench-ledger`: what the ledger does by itself. A table, and .artifacts/bench_ledger.json.

A statement per operation beside the lane, on one hot wallet and on many, in the same run; then the cost of a call as
`ledger_entries` grows, beside an empty database measured in the same minute.
"""

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import uvloop
from rich.console import Console
from rich.table import Table

from gateway.core.catalogue import Meter, Model, Rates
from gateway.db import prices
from gateway.db.embedded import EmbeddedPostgres
from gateway.db.migrate import migrate
from gateway.db.pool import Database
from tests.benchmarks.ledger import Ledger, Rate, funded_wallets, group_commit_ms, ledger_at
from tests.benchmarks.report import versions

ARTIFACTS = Path(".artifacts")
CALLERS = (1, 8, 64, 256, 512)
MANY_WALLETS = 10_000
ROWS = (1_000_000, 3_000_000, 10_000_000)
GROWN_CALLERS = 64
ROUNDS = 3


@dataclass(slots=True)
class Results:
    """Medians of interleaved rounds. `growth` is (rows, calls/s there, calls/s of an empty database beside it)."""

    group_commit_ms: float = 0.0
    rates: list[tuple[str, int, str, Rate]] = field(default_factory=list)
    growth: list[tuple[int, float, float]] = field(default_factory=list)
    postgresql: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the ledger by itself.")
    parser.add_argument("--quick", action="store_true", help="short rounds, a million rows: a look, no measurement")
    parser.add_argument("--output", type=Path, default=ARTIFACTS / "bench_ledger.json")
    given = parser.parse_args()
    given.output.parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="bench-ledger-", dir=given.output.parent)).resolve()
    server = EmbeddedPostgres(directory / "postgres")
    console = Console(stderr=True)
    try:
        dsn = server.start()
        seconds, rows = (0.5, ROWS[:1]) if given.quick else (3.0, ROWS)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            results = runner.run(measure(dsn, seconds, rows, console))
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)
    document = {"versions": versions(results.postgresql), **asdict(results)}
    given.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    show(Console(), results)
    return 0


async def measure(dsn: str, seconds: float, rows: Sequence[int], console: Console) -> Results:
    results = Results()
    await prepare(dsn)
    console.print("one operation at rest")
    results.group_commit_ms = await group_commit_ms(dsn)
    hot = await funded_wallets(dsn, 1)
    console.print(f"{MANY_WALLETS} wallets")
    many = await funded_wallets(dsn, MANY_WALLETS)
    async with ledger_at(dsn) as ledger:
        for name, wallet_ids in (("one wallet", hot), (f"{MANY_WALLETS:,} wallets", many)):
            for callers in CALLERS:
                console.print(f"{name}, {callers} callers")
                results.rates += await compare(ledger, name, wallet_ids, callers, seconds)
    empty, grown = await copy(dsn, "bench_empty"), await copy(dsn, "bench_grown")
    for database in (empty, grown):
        await prepare(database)
    for count in rows:
        console.print(f"{count:,} ledger entries")
        await grow(grown, count)
        results.growth.append((count, *await beside(grown, empty, seconds)))
    connection = await asyncpg.connect(dsn)
    results.postgresql = str(await connection.fetchval("SHOW server_version"))
    await connection.close()
    return results


async def prepare(dsn: str) -> None:
    """Tables and a price."""
    await migrate(dsn)
    database = Database(dsn)
    await prices.save_models(database, [Model("bench", 128_000, 4_096)])
    rates: Rates = {Meter.INPUT: 100_000, Meter.OUTPUT: 400_000}
    await prices.add_prices(database, [prices.PriceVersion("bench", datetime.now(UTC), rates, (), "bench")])
    await database.close()


async def copy(dsn: str, name: str) -> str:
    """Another, empty database on the same server."""
    connection = await asyncpg.connect(dsn)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{name}"))


async def compare(
    ledger: Ledger, name: str, wallet_ids: Sequence[str], callers: int, seconds: float
) -> list[tuple[str, int, str, Rate]]:
    """The lane and a statement per operation, interleaved."""
    rounds: dict[str, list[Rate]] = {"lane": [], "single": []}
    for _ in range(ROUNDS):
        for way, apply in (("lane", ledger.by_lane), ("single", ledger.by_statement)):
            rounds[way].append(await ledger.rate(apply, wallet_ids, callers=callers, seconds=seconds))
    return [(name, callers, way, _median(rates)) for way, rates in rounds.items()]


def _median(rates: Sequence[Rate]) -> Rate:
    return Rate(
        statistics.median(rate.calls_per_s for rate in rates),
        statistics.median(rate.hold_p50_ms for rate in rates),
        statistics.median(rate.hold_p99_ms for rate in rates),
    )


async def grow(dsn: str, entries: int) -> None:
    """Fill `ledger_entries` up to so many rows, over a thousand wallets, as calls would have."""
    connection = await asyncpg.connect(dsn)
    have = int(await connection.fetchval("SELECT count(*) FROM ledger_entries"))
    first, last = have // 1_000 + 1, entries // 1_000
    await connection.execute(
        """
        INSERT INTO wallets (wallet_id, name) SELECT md5(n::text)::uuid, 'grown' FROM generate_series(1, 1000) AS n
        ON CONFLICT DO NOTHING
        """
    )
    await connection.execute(
        """
        INSERT INTO ledger_entries (wallet_id, seq, kind, contra, amount_nanos, balance_after_nanos, hold_id)
        SELECT md5(n::text)::uuid, seq, 'charge', 'revenue', -500, -500 * seq, gen_random_uuid()
        FROM generate_series($1::bigint, $2::bigint) AS seq, generate_series(1, 1000) AS n
        """,
        first,
        last,
        timeout=3_600,
    )
    await connection.execute("VACUUM ANALYZE ledger_entries", timeout=3_600)
    await connection.execute("CHECKPOINT", timeout=3_600)
    await connection.close()


async def beside(grown: str, empty: str, seconds: float) -> tuple[float, float]:
    """Calls/s on either database, interleaved: (grown, empty)."""
    rates: dict[str, list[float]] = {grown: [], empty: []}
    hot = {dsn: await funded_wallets(dsn, 1) for dsn in rates}
    async with ledger_at(grown) as one, ledger_at(empty) as other:
        for _ in range(2 * ROUNDS):
            for dsn, ledger in ((grown, one), (empty, other)):
                rate = await ledger.rate(ledger.by_lane, hot[dsn], callers=GROWN_CALLERS, seconds=seconds)
                rates[dsn].append(rate.calls_per_s)
    return statistics.median(rates[grown]), statistics.median(rates[empty])


def show(console: Console, results: Results) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("wallets", "callers", "way", "calls/s", "hold p50 ms", "hold p99 ms", "x single"):
        table.add_column(heading, justify="left" if heading in ("wallets", "way") else "right", no_wrap=True)
    single = {(name, callers): rate.calls_per_s for name, callers, way, rate in results.rates if way == "single"}
    for name, callers, way, rate in results.rates:
        times = rate.calls_per_s / single[name, callers]
        figures = (f"{rate.calls_per_s:,.0f}", f"{rate.hold_p50_ms:.2f}", f"{rate.hold_p99_ms:.2f}", f"{times:.1f}")
        table.add_row(name, str(callers), way, *figures)
    console.print(table)
    console.print(f"one operation through a lane at rest: {results.group_commit_ms:.2f} ms")
    for rows, grown, empty in results.growth:
        console.print(f"{rows:,} entries: {grown:,.0f} calls/s; none: {empty:,.0f}; ratio {grown / empty:.2f}")


if __name__ == "__main__":
    sys.exit(main())
