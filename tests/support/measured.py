"""The farebox command as a process of its own: what it says, and what it takes."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass


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
    command = [sys.executable, "-m", "gateway", *arguments]
    with (
        open(stdout or os.devnull, "wb") as file,
        subprocess.Popen(command, env=environment, stdout=file if stdout else subprocess.PIPE) as process,
    ):
        out = process.stdout.read() if process.stdout is not None else b""
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    # Linux counts in KiB, macOS in bytes.
    rss_bytes = used.ru_maxrss * (1 if sys.platform == "darwin" else 1_024)
    return Measured(process.returncode, out, rss_bytes, time.monotonic() - began)
