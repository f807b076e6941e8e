"""`make campaign`: many seeds, a table of what was drawn and reached, and an exit code that a script can trust.

Each worker process has a cluster of its own and lives one seed after the other. The report is written to
`.artifacts/campaign.{json,md}`. Exit code 1: a difference, or with so many seeds that it must not happen, a fault that
was never reached.
"""

import argparse
import asyncio
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing.util import Finalize

from tests.adversity.campaign.checks import CHECKS
from tests.adversity.campaign.faults import FAULTS, KILLS
from tests.adversity.campaign.seed import ARTIFACTS, Report, draw, run_seed
from tests.adversity.campaign.world import make_template
from tests.support.cluster import Cluster

SEEDS, JOBS = 20, 2
ALL_REACHED_SEEDS = 200
# What else is part of the campaign, each in a process of pytest's.
PARTS = {
    "every pair of operations, either committed first or undone": ("tests/adversity/test_ledger_races.py",),
    "random lives of the ledger beside its model": ("tests/properties/test_ledger_life.py",),
    "bugs planted in the ledger are found by lives and races": ("tests/adversity/test_planted_bugs.py",),
    "bugs planted in the gateway are found by seeds": ("tests/adversity/campaign/test_planted.py",),
}
PART_ENVIRONMENT = {"FAREBOX_LEDGER_EXAMPLES": "1000", "FAREBOX_CAMPAIGN_PLANTED": "all"}
PART_SECONDS_MAX = 3_600.0

_cluster: list[Cluster] = []


@dataclass(slots=True)
class Campaign:
    """All reports so far, summed."""

    seeds: int = 0
    drawn: Counter[str] = field(default_factory=Counter)
    reached: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    wrong: dict[int, list[str]] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)
    failed_parts: list[str] = field(default_factory=list)

    def add(self, report: Report) -> None:
        self.seeds += 1
        self.drawn += report.drawn
        self.reached += report.reached
        self.seen += report.seen
        if report.differences:
            self.wrong[report.seed] = report.differences

    @property
    def never_reached(self) -> list[str]:
        return [name for name in (*FAULTS, *KILLS) if not self.reached[name]]


def live(seed: int) -> Report:
    """One seed in this process, on its cluster, which is made for the first and after a failure of the campaign."""
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # an upstream that breaks off says so there
    try:
        return asyncio.run(run_seed(_own_cluster(), seed))
    except Exception:
        _let_go()
        report = Report(seed, draw(seed))
        report.differences.append(f"the campaign itself failed: {traceback.format_exc()[-2000:]}")
        return report


def _own_cluster() -> Cluster:
    if not _cluster:
        cluster = Cluster()
        _cluster.append(cluster)
        cluster.__enter__()
        asyncio.run(make_template(cluster))
        Finalize(None, _let_go, exitpriority=10)
    return _cluster[0]


def _let_go() -> None:
    while _cluster:
        _cluster.pop().__exit__(None, None, None)


def live_all(seeds: Sequence[int], jobs: int) -> Iterator[Report]:
    """Reports as they come."""
    if jobs == 1 or len(seeds) == 1:
        try:
            yield from map(live, seeds)
        finally:
            _let_go()
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            for future in as_completed([pool.submit(live, seed) for seed in seeds]):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # what runs is ended well; what waits is not begun
            raise


def run_parts(campaign: Campaign) -> None:
    """The parts that pytest runs."""
    for name, files in PARTS.items():
        print(f"{name} …", flush=True)
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *files],
            env=os.environ | PART_ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=PART_SECONDS_MAX,
            check=False,
        )
        said = [line for line in done.stdout.splitlines() if line.strip()]
        campaign.parts[name] = f"{said[-1] if said else 'nothing was said'} ({time.monotonic() - began:.0f} s)"
        print(f"  {campaign.parts[name]}", flush=True)
        if done.returncode:
            campaign.failed_parts.append(name)
            print(done.stdout[-4000:], flush=True)


def table(campaign: Campaign) -> str:
    """The report as Markdown."""
    lines = [f"# Campaign of {campaign.seeds} seeds", "", "| fault | drawn | reached |", "|---|---:|---:|"]
    lines += [f"| {name} | {campaign.drawn[name]} | {campaign.reached[name]} |" for name in (*FAULTS, *KILLS)]
    lines += ["", "| what happened | count |", "|---|---:|"]
    lines += [f"| {name} | {count} |" for name, count in campaign.seen.items()]
    lines += ["", f"After each seed: {', '.join(check.__name__ for check in CHECKS)}, nothing held or journaled."]
    if campaign.parts:
        lines += ["", "| part | result |", "|---|---|"]
        lines += [f"| {name} | {result} |" for name, result in campaign.parts.items()]
    for seed, differences in sorted(campaign.wrong.items()):
        lines += ["", f"Seed {seed} differs; `make campaign SEED={seed}` repeats it:", ""]
        lines += [f"- {difference}" for difference in differences]
    return "\n".join(lines) + "\n"


def write(campaign: Campaign) -> None:
    """The two artifacts."""
    ARTIFACTS.mkdir(exist_ok=True)
    document = {
        "seeds": campaign.seeds,
        "faults": {name: {"drawn": campaign.drawn[name], "reached": campaign.reached[name]} for name in campaign.drawn},
        "seen": dict(campaign.seen),
        "parts": campaign.parts,
        "differences": {str(seed): found for seed, found in campaign.wrong.items()},
        "never_reached": campaign.never_reached,
    }
    (ARTIFACTS / "campaign.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    (ARTIFACTS / "campaign.md").write_text(table(campaign), encoding="utf-8")


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description="Live many seeds of adversity.")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many, from --first on")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--seed", type=int, help="this one only")
    parser.add_argument("--jobs", type=int, default=JOBS, help="how many at once")
    parser.add_argument("--no-parts", action="store_true", help="seeds only")
    chosen = parser.parse_args()
    seeds = [chosen.seed] if chosen.seed is not None else list(range(chosen.first, chosen.first + chosen.seeds))
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    campaign = Campaign()
    for report in live_all(seeds, chosen.jobs):
        campaign.add(report)
        faults = ", ".join(
            f"{one.fault}{'' if report.reached[one.fault] else ' (not reached)'}" for one in report.draws
        )
        print(f"seed {report.seed}: {faults}; {report.seen['calls']} calls, {report.seconds:.1f} s", flush=True)
        for difference in report.differences:
            print(f"  DIFFERENCE {difference}", flush=True)
    if chosen.seed is None and not chosen.no_parts:
        run_parts(campaign)
    write(campaign)
    print(table(campaign))
    if len(seeds) >= ALL_REACHED_SEEDS and campaign.never_reached:
        print(f"never reached: {', '.join(campaign.never_reached)}")
        return 1
    return 1 if campaign.wrong or campaign.failed_parts else 0


if __name__ == "__main__":
    sys.exit(main())
