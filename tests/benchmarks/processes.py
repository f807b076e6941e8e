"""The processes of a benchmark: started one by one, measured through /proc, and ended whatever happens. Linux only."""

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 15.0
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Child:
    """A process of ours and the port it listens on."""

    pid: int
    port: int


@contextlib.contextmanager
def running(
    command: list[str], *, log: Path, env: Mapping[str, str] | None = None, core: int | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """A child in a session of its own, so that Ctrl-C reaches only us, and we end it: by request, then by force."""
    with log.open("ab") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    try:
        if core is not None:
            os.sched_setaffinity(process.pid, {core})
        yield process
    finally:
        _end(process)


@contextlib.contextmanager
def listening(module: str, *arguments: str, log: Path, core: int | None = None) -> Iterator[Child]:
    """A benchmark module that says `listening PORT` once it does. Raises RuntimeError."""
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", *arguments]
    with running(command, log=log, core=core) as process:
        words = _first_line(process).split()
        if len(words) != 2 or words[0] != "listening":
            raise RuntimeError(f"{module} did not start; see {log}")
        yield Child(process.pid, int(words[1]))


def _first_line(process: "subprocess.Popen[bytes]") -> str:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(START_SECONDS_MAX):
            raise RuntimeError("a child said nothing for too long")
    return process.stdout.readline().decode()


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.stdout is not None:
        process.stdout.close()
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        # The group is the child's own; its own children go with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS_MAX)


# /proc ---------------------------------------------------------------------------------------------------------------


def tree(root: int) -> list[int]:
    """`root` and all its descendants that live."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                children.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:  # grows while it is walked; the tree of processes has an end
        found.extend(children.get(pid, []))
    return found


def name(pid: int) -> str:
    """The program's name, or nothing where it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def cpu_seconds(pids: list[int]) -> float:
    """User and system time so far."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = _stat(pid)
            ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_SECOND


def rss_bytes(pids: list[int]) -> int:
    """Resident memory now; pages that processes share count for each."""
    pages = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * PAGE_BYTES


def descriptors(pids: list[int]) -> int:
    """Open files and sockets."""
    count = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            count += len(os.listdir(f"/proc/{pid}/fd"))
    return count


def wait_for_descriptors(pids: list[int], most: int, *, seconds: float) -> bool:
    """Wait until no more than `most` are open; False where that takes too long."""
    deadline = time.monotonic() + seconds
    while descriptors(pids) > most:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _stat(pid: int) -> list[str]:
    """The fields after the program's name: state, parent, … utime at 11, stime at 12."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
