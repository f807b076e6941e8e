"""The points at which a test may kill: nothing happens unless asked, then SIGKILL at the very visit that was named."""

import os
import signal
import subprocess
import sys

import pytest

from gateway import points

PROGRAM = """
from gateway import points
print(points.armed, flush=True)
for visit in range(1, 6):
    for name in points.NAMES + points.KEYED_NAMES:
        points.reach(name)
    print(visit, flush=True)
"""


def run(kill_at: str | None) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name != "FAREBOX_KILL_AT"}
    if kill_at is not None:
        environment["FAREBOX_KILL_AT"] = kill_at
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=20, check=False
    )


@pytest.mark.parametrize(
    ("kill_at", "visits"),
    [
        ("hold.placed:3", 2),
        ("settle.durable", 0),
        ("finish.sent:5", 4),
        ("relay.done:1", 0),
        ("idempotency.stored:2", 1),
    ],
)
def test_the_process_is_killed_at_the_named_visit(kill_at: str, visits: int) -> None:
    ended = run(kill_at)
    assert ended.returncode == -signal.SIGKILL
    assert ended.stdout.splitlines() == ["True", *map(str, range(1, visits + 1))]


@pytest.mark.parametrize("kill_at", [None, "", "hold.placed:6"])
def test_nothing_happens_otherwise(kill_at: str | None) -> None:
    ended = run(kill_at)
    assert (ended.returncode, ended.stdout.splitlines()[-1]) == (0, "5")


@pytest.mark.parametrize("kill_at", ["hold.place", "nothing:3", "hold.placed:many"])
def test_what_is_no_point_is_refused(kill_at: str) -> None:
    ended = run(kill_at)
    assert ended.returncode == 1
    assert kill_at.partition(":")[2] in ended.stderr if "many" in kill_at else "FAREBOX_KILL_AT" in ended.stderr


def test_points_are_unarmed_here() -> None:
    assert not points.armed
    assert len(set(points.NAMES)) == len(points.NAMES)
