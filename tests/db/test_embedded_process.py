import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.db.embedded_process import (
    PROC,
    children,
    children_by_ps,
    command_line,
    command_line_by_ps,
    end,
    live_postmaster,
    mark,
    wait_until,
)

# Any program will do as a postmaster that has the right words on its command line.
PRETENDER = "import signal, sys, time; {}; print(1, flush=True); time.sleep(60)"


def pretend(cluster: Path, code: str = "pass", *, own_mark: str | None = None) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(
        [sys.executable, "-c", PRETENDER.format(code), "postgres", own_mark or mark(cluster)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def finish(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.communicate()


def sleeper() -> "subprocess.Popen[bytes]":
    """A process with its words on its command line: for a moment after it was started a kernel shows none."""
    process = subprocess.Popen(["sleep", "60"])
    assert wait_until(lambda: command_line(process.pid) == "sleep 60", 10)
    return process


def test_a_command_line_is_that_of_a_live_process_only() -> None:
    process = sleeper()
    assert process.pid in children(os.getpid())
    process.kill()
    # Nobody has waited for it yet: a zombie.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert command_line(process.pid) is None
    process.wait()
    assert command_line(process.pid) is None


@pytest.mark.skipif(not PROC or not Path("/bin/ps").exists(), reason="there are not both /proc and ps to compare")
def test_ps_and_proc_agree() -> None:
    process = sleeper()
    assert command_line_by_ps(process.pid) == command_line(process.pid) == "sleep 60"
    assert process.pid in children_by_ps(os.getpid())
    assert children_by_ps(1) == children(1)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert command_line_by_ps(process.pid) is None
    process.wait()
    assert command_line_by_ps(process.pid) is None


@pytest.mark.parametrize(
    ("lines", "state"),
    [
        (["{pid}", "/d", "1", "5432", "../socket", "", "1 2", "ready   "], True),
        (["{pid}", "/d", "1", "5432", "../socket", "", "1 2", "starting"], False),
        (["{pid}"], False),
        (["0"], None),
        (["-1"], None),
        (["999999999"], None),
        ([str(os.getpid())], None),
        (["one"], None),
        ([], None),
    ],
)
def test_a_pid_file_is_believed_only_of_a_server_of_the_same_directory(
    tmp_path: Path, lines: list[str], state: bool | None
) -> None:
    process = pretend(tmp_path)
    text = "\n".join(lines).replace("{pid}", str(process.pid))
    (tmp_path / "postmaster.pid").write_text(text)
    server = live_postmaster(tmp_path)
    assert (server and server.ready) == state
    finish(process)
    assert live_postmaster(tmp_path) is None
    (tmp_path / "postmaster.pid").unlink()
    assert live_postmaster(tmp_path) is None


def test_another_directorys_server_is_left_alone(tmp_path: Path) -> None:
    process = pretend(tmp_path, own_mark="cluster_name=farebox-1")
    (tmp_path / "postmaster.pid").write_text(f"{process.pid}\n")
    assert live_postmaster(tmp_path) is None
    end(tmp_path, process.pid, None, timeout_seconds=1.0)
    assert process.poll() is None
    finish(process)


@pytest.mark.parametrize(
    ("deaf_to", "ended_by"),
    [([], signal.SIGINT), (["SIGINT"], signal.SIGQUIT), (["SIGINT", "SIGQUIT"], signal.SIGKILL)],
)
def test_a_server_is_asked_ever_less_kindly_until_it_ends(
    tmp_path: Path, deaf_to: list[str], ended_by: signal.Signals
) -> None:
    kind = "; ".join(
        f"signal.signal(signal.{name}, signal.{'SIG_IGN' if name in deaf_to else 'SIG_DFL'})"
        for name in ("SIGINT", "SIGQUIT")
    )
    for ours in (True, False):
        process = pretend(tmp_path, kind)
        began = time.monotonic()
        end(tmp_path, process.pid, process if ours else None, timeout_seconds=0.5)
        assert time.monotonic() - began < 1.5
        assert process.wait(1) == -ended_by
        finish(process)


def test_waiting_ends() -> None:
    assert wait_until(lambda: True, 0)
    assert not wait_until(lambda: False, 0.02)
