import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from gateway.db.embedded import EmbeddedPostgres, EmbeddedPostgresFailed, Programs, find_programs
from gateway.db.embedded_programs import Account, run, server_account
from tests.support.embedded import FAST, WAIT_SECONDS_MAX, new_home, postmaster_pid, sql

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give processes to other accounts")


@pytest.fixture
def home() -> Iterator[Path]:
    with new_home() as directory:
        yield directory


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_new_directory_becomes_a_safe_and_private_server(home: Path) -> None:
    with EmbeddedPostgres(home) as dsn:
        wanted = {
            **dict.fromkeys(("fsync", "full_page_writes", "synchronous_commit", "data_checksums"), "on"),
            **dict.fromkeys(("jit", "wal_compression"), "off"),
            "listen_addresses": "",
            "server_encoding": "UTF8",
            "TimeZone": "UTC",
            "wal_level": "replica",
            "max_connections": "100",
            "shared_buffers": "128MB",
            "unix_socket_permissions": "0700",
        }
        for name, value in wanted.items():
            assert (name, sql(dsn, f"SHOW {name}")) == (name, value)
        assert sql(dsn, "SELECT current_database()") == "farebox"
        assert (
            sql(dsn, "SELECT datlocprovider::text || datlocale FROM pg_database WHERE datname = 'farebox'")
            == "bC.UTF-8"
        )
        assert (mode(home / "cluster"), mode(home / "socket"), mode(home / "password")) == (
            0o700,
            0o700,
            0o600,
        )
        assert mode(home) & 0o007 == 0
        assert [path.name for path in (home / "log").iterdir()] == [
            f"postgres-{time.strftime('%a', time.gmtime())}.log"
        ]


def test_it_opens_only_to_its_password(home: Path) -> None:
    with EmbeddedPostgres(home, settings=FAST) as dsn:
        password = (home / "password").read_text()
        assert password in dsn
        assert len(bytes.fromhex(password)) == 32
        for wrong in (dsn.replace(password, "0" * 64), dsn.replace(f":{password}", "")):
            with pytest.raises(asyncpg.InvalidPasswordError):
                sql(wrong, "SELECT 1")
        stored = "SELECT bool_and(rolpassword LIKE 'SCRAM-SHA-256$%') FROM pg_authid WHERE rolcanlogin"
        assert sql(dsn, stored) is True
        assert sql(dsn, "SELECT count(*) FROM pg_hba_file_rules WHERE auth_method <> 'scram-sha-256'") == 0


def test_start_and_stop_may_be_repeated(home: Path) -> None:
    server = EmbeddedPostgres(home, settings=FAST)
    server.stop()
    dsn = server.start()
    first = postmaster_pid(home)
    assert (server.start(), postmaster_pid(home)) == (dsn, first)
    server.kill()
    assert not server.is_running()
    assert (server.start(), server.is_running()) == (dsn, True)
    server.stop()
    server.stop()
    assert not server.is_running()
    # A clean stop leaves nothing to recover from.
    assert not (home / "cluster" / "postmaster.pid").exists()


@pytest.mark.parametrize("name", ["x" * 120, "a b%20?&#", "one,two"])
def test_any_name_of_a_directory_will_do(home: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = home.parent / "t"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    server = EmbeddedPostgres(home.parent / name / "postgres", settings=FAST)
    try:
        assert sql(server.start(), "SELECT 1") == 1
        shorts = list(temporary.iterdir())
        assert len(shorts) == (0 if "%" in name else 1)
        server.stop()
        assert list(temporary.iterdir()) == []
        for short in shorts:
            short.symlink_to(home.parent)
            with pytest.raises(EmbeddedPostgresFailed, match="is not a private directory of ours"):
                server.start()
    finally:
        server.kill()


def failure(directory: Path) -> str:
    with pytest.raises(EmbeddedPostgresFailed) as failed:
        EmbeddedPostgres(directory, settings=FAST).start()
    message = str(failed.value)
    assert "\n" not in message
    assert str(directory.parent) in message
    return message


def test_what_it_cannot_use_it_says_in_one_line(home: Path) -> None:
    server = EmbeddedPostgres(home, settings=FAST)
    server.start()
    server.stop()
    cluster, control = home / "cluster", home / "cluster" / "global" / "pg_control"

    control.rename(home / "away")
    assert "did not start: could not open file" in failure(home)
    (home / "away").rename(control)
    (cluster / "PG_VERSION").write_text("16\n")
    assert "was made by PostgreSQL 16" in failure(home)
    (cluster / "PG_VERSION").unlink()
    assert "is not a PostgreSQL data directory" in failure(home)
    (cluster / "PG_VERSION").write_text("18\n")
    (home / "password").rename(home / "away")
    assert "is gone or damaged" in failure(home)
    (home / "password").write_text("0" * 64)
    assert "refuses the password" in failure(home)
    assert not server.is_running()
    (home / "away").rename(home / "password")
    assert sql(server.start(), "SELECT 1") == 1
    server.stop()

    assert "is a PostgreSQL data directory" in failure(cluster)
    assert "holds other files" in failure(cluster / "base")
    assert "Not a directory" in failure(home / "password" / "postgres")
    assert "cannot use /proc/" in failure(Path("/proc/farebox/postgres")) or sys.platform != "linux"
    with pytest.raises(EmbeddedPostgresFailed, match="cannot run"):
        EmbeddedPostgres(home, programs=Programs(home / "nowhere")).start()
    with pytest.raises(EmbeddedPostgresFailed, match="did not start"):
        EmbeddedPostgres(home, settings={"no_such_setting": "1"}).start()


def test_a_full_disk_at_the_first_start_is_said_and_can_be_mended(home: Path) -> None:
    # The limit on a file's size refuses writes as a full disk does, on any system and without root.
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40960, 40960));"
        "from pathlib import Path; from gateway.db.embedded import *\n"
        "try: EmbeddedPostgres(Path(sys.argv[1])).start()\n"
        "except EmbeddedPostgresFailed as error: print(error)"
    )
    said_once = subprocess.run(
        [sys.executable, "-c", limited, str(home)],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS_MAX,
        check=True,
    ).stdout
    assert f"cannot make a database in {home}: " in said_once
    assert said_once.count("\n") == 1
    with EmbeddedPostgres(home, settings=FAST) as dsn:
        assert sql(dsn, "SELECT 1") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written_is_said(home: Path) -> None:
    home.mkdir(mode=0o500)
    assert "Permission denied" in failure(home)


@needs_root
def test_root_serves_from_behind_a_closed_parent_and_opens_nothing(home: Path) -> None:
    closed = home.parent / "root"
    closed.mkdir(mode=0o700)
    found = find_programs().directory
    package = found.parent.parent
    for part in (found.parent, package.parent / f"{package.name}.libs"):
        shutil.copytree(part, closed / part.relative_to(package.parent), symlinks=True)
    programs = Programs(closed / found.relative_to(package.parent))
    account = server_account()
    assert isinstance(account, Account)

    # The data behind it, then the programs, which are copied beside data that can be reached.
    for directory, given in ((closed / "data" / "postgres", find_programs()), (home, programs)):
        server = EmbeddedPostgres(directory, programs=given, settings=FAST)
        try:
            dsn = server.start()
            sql(dsn, "CREATE TABLE kept AS SELECT 7 AS value")
            pid = postmaster_pid(directory)
            assert Path(f"/proc/{pid}").stat().st_uid == account.uid
            server.kill()
            assert sql(server.start(), "SELECT value FROM kept") == 7
            server.stop()
        finally:
            server.kill()
        assert len(list(directory.glob("programs-*"))) == (given is programs)
    assert (mode(closed), closed.stat().st_uid, closed.stat().st_gid) == (0o700, 0, 0)
    assert ((closed / "data").stat().st_uid, (closed / "data").stat().st_gid) == (0, 0)
    assert run(["/bin/ls", str(closed)], account=account, timeout_seconds=5).returncode != 0
