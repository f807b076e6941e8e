"""The farebox command as a process of its own: what it says, and what it takes."""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Measured:
    """How a command ended, and the most memory that it had."""

    exit_code: int
    out: bytes
    rss_bytes: int
    seconds: float


def run_measured(dsn: str, *arguments: str, stdout: str | None = None) -> Measured:
    """Run `farebox` on a database, without the settings of the surroundings; `stdout` is a file for its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FAREBOX_")}
    environment["FAREBOX_DATABASE_URL"] = dsn
    began = time.monotonic()
    with (
        tempfile.NamedTemporaryFile() as rss,
        open(stdout or os.devnull, "wb") as file,
        subprocess.Popen(
            [sys.executable, __file__, rss.name, sys.executable, "-m", "gateway", *arguments],
            env=environment,
            stdout=file if stdout else subprocess.PIPE,
        ) as process,
    ):
        out = process.stdout.read() if process.stdout is not None else b""
        exit_code = process.wait()
        rss_bytes = int(rss.read())
    return Measured(exit_code, out, rss_bytes, time.monotonic() - began)


def _measure(rss_file: str, command: list[str]) -> int:
    """Run `command` to its end, and write the most bytes that it had.

    A process of its own, because Linux carries the most that a process had over exec: a child of the tests'
    process is said to have had at least as much as that one.
    """
    with subprocess.Popen(command) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    # Linux counts in KiB, macOS in bytes.
    Path(rss_file).write_text(str(used.ru_maxrss * (1 if sys.platform == "darwin" else 1_024)), encoding="ascii")
    return process.returncode


if __name__ == "__main__":
    sys.exit(_measure(sys.argv[1], sys.argv[2:]))
