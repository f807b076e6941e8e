"""The postmaster as a process: who it is, whether it lives, and how it ends. Linux by /proc, others by `ps`.

A process id in a file proves nothing: the process may be long gone, a zombie that nobody reaps, or a stranger that was
given the number since. A postmaster of ours says on its command line which directory it serves.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gateway.db.embedded_programs import EmbeddedPostgresFailed, run

PROC = Path("/proc/self/stat").exists()
POLL_SECONDS = 0.01
PS_SECONDS_MAX = 10.0
PID_FILE_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Postmaster:
    """A live server. `ready`: it has said that it accepts connections."""

    pid: int
    ready: bool


def mark(cluster: Path) -> str:
    """What a postmaster of `cluster` carries on its command line. The inode survives a rename of the directory."""
    return f"cluster_name=farebox-{cluster.stat().st_ino}"


def live_postmaster(cluster: Path) -> Postmaster | None:
    """The server that runs on `cluster` now, or None whatever its pid file says."""
    try:
        with (cluster / "postmaster.pid").open("rb") as file:
            lines = file.read(PID_FILE_BYTES_MAX).decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return None
    pid = int(lines[0]) if lines and lines[0].strip().isdecimal() else 0
    if pid < 1 or not _is_postmaster(pid, mark(cluster)):
        return None
    # The eighth line is the state: starting, ready, stopping, standby.
    return Postmaster(pid, ready=len(lines) > 7 and lines[7].strip() == "ready")


def command_line(pid: int) -> str | None:
    """The command line of a live process; None when it is gone, or is a zombie."""
    if not PROC:
        return command_line_by_ps(pid)
    try:
        # The state follows the name, which is in brackets and may itself hold any character.
        state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, IndexError):
        return None
    return None if state in "ZX" else arguments.replace(b"\0", b" ").decode("utf-8", "replace").strip()


def command_line_by_ps(pid: int) -> str | None:
    listed = _ps("-p", str(pid), "-o", "stat=", "-o", "command=").split(None, 1)
    return None if not listed or listed[0].startswith("Z") else listed[-1].strip()


def children(parent: int) -> list[int]:
    """The processes whose parent is `parent`."""
    if not PROC:
        return children_by_ps(parent)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:
                continue
            if fields[1:2] == [str(parent)]:
                found.append(int(entry.name))
    return found


def children_by_ps(parent: int) -> list[int]:
    pairs = [line.split() for line in _ps("-A", "-o", "pid=", "-o", "ppid=").splitlines()]
    return [int(pid) for pid, ppid in pairs if int(ppid) == parent]


def end(cluster: Path, pid: int, process: "subprocess.Popen[bytes] | None", *, timeout_seconds: float) -> None:
    """Fast shutdown, then immediate, then SIGKILL; returns once the process is gone. Raises EmbeddedPostgresFailed.

    `process` is our handle, if it is our child, and is reaped. Each way ends in a consistent cluster: the later ones
    only cost a recovery at the next start.
    """
    own_mark = mark(cluster)
    steps = ((signal.SIGINT, 0.7), (signal.SIGQUIT, 0.2), (signal.SIGKILL, 0.1))
    for number, share in steps:
        if not _is_postmaster(pid, own_mark):
            break
        _send(pid, number)
        if wait_until(lambda: _gone(pid, own_mark, process), timeout_seconds * share):
            return
    if not wait_until(lambda: _gone(pid, own_mark, process), 2.0):
        raise EmbeddedPostgresFailed(
            f"PostgreSQL (process {pid}) does not end, not even by SIGKILL: is its disk hanging?"
        )


def kill(cluster: Path, pid: int, process: "subprocess.Popen[bytes] | None", *, timeout_seconds: float) -> None:
    """SIGKILL the postmaster, and wait until its backends have noticed; those that have not by then are killed too."""
    own_mark = mark(cluster)
    backends = children(pid)
    _send(pid, signal.SIGKILL)
    wait_until(lambda: _gone(pid, own_mark, process), timeout_seconds)

    def left() -> list[int]:
        return [backend for backend in backends if "postgres" in (command_line(backend) or "")]

    if not wait_until(lambda: not left(), timeout_seconds):
        for backend in left():
            _send(backend, signal.SIGKILL)
        wait_until(lambda: not left(), timeout_seconds)


def wait_until(condition: Callable[[], bool], timeout_seconds: float) -> bool:
    """Poll `condition`; False when it did not come true in time."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _ps(*arguments: str) -> str:
    return run(["ps", "-ww", *arguments], timeout_seconds=PS_SECONDS_MAX).stdout


def _is_postmaster(pid: int, own_mark: str) -> bool:
    command = command_line(pid) or ""
    return own_mark in command.split() and "postgres" in command


def _gone(pid: int, own_mark: str, process: "subprocess.Popen[bytes] | None") -> bool:
    if process is not None and process.pid == pid:
        return process.poll() is not None
    return not _is_postmaster(pid, own_mark)


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
    except PermissionError:
        raise EmbeddedPostgresFailed(
            f"PostgreSQL (process {pid}) belongs to another user: stop it as that user"
        ) from None
