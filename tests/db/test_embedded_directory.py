import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from gateway.db.embedded_directory import (
    SETTINGS,
    Lock,
    check_home,
    default_directory,
    forget_short_name,
    read_password,
    settings_text,
    socket_for_clients,
    write_private,
)
from gateway.db.embedded_programs import EmbeddedPostgresFailed


def locked(lock: Lock) -> bool:
    with lock.exclusive(timeout_seconds=0) as entered:
        return entered


def test_settings_are_quoted_and_overrides_win() -> None:
    text = settings_text({"fsync": "off", "search_path": "it's", "a.b": "c\\d"})
    assert "fsync = 'off'\n" in text
    assert "fsync = 'on'" not in text
    assert "search_path = 'it''s'\n" in text
    assert "a.b = 'c\\\\d'\n" in text
    assert len(text.splitlines()) == len(SETTINGS) + 3
    for name, value in (("x y", "1"), ("", "1"), ("include 'x'\na", "1"), ("a", "1\nfsync = off"), ("a", "1\0")):
        with pytest.raises(EmbeddedPostgresFailed, match="is not a PostgreSQL setting"):
            settings_text({name: value})


def test_the_default_directory_does_not_follow_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    for given in ("", "relative"):
        monkeypatch.setenv("XDG_DATA_HOME", given)
        wanted = "/var/lib/farebox" if os.geteuid() == 0 else "/home/someone/.local/share/farebox"
        assert default_directory() == Path(wanted)


def test_an_exclusive_lock_excludes_and_a_share_knows_whether_it_is_the_last(tmp_path: Path) -> None:
    one, two, three = (Lock(tmp_path / "users") for _ in range(3))
    assert one.share()
    assert not two.share()
    assert not locked(three)
    assert not one.share()  # again, with another about
    assert not two.leave()
    assert one.share()  # again, with nobody about
    assert one.leave()
    assert [lock.held for lock in (one, two, three)] == [False] * 3
    with one.exclusive(timeout_seconds=0) as entered:
        assert entered
        assert not locked(two)
    assert locked(two)


def test_a_lock_ends_with_its_holder(tmp_path: Path) -> None:
    hold = (
        "import sys, time; from pathlib import Path; from gateway.db.embedded_directory import Lock\n"
        "lock = Lock(Path(sys.argv[1])); lock.share(); print(1, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold, str(tmp_path / "users")], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        lock = Lock(tmp_path / "users")
        assert not locked(lock)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert locked(lock)


def test_a_lock_is_not_taken_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "gate").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="gate"):
        locked(Lock(tmp_path / "gate"))
    assert not (tmp_path / "elsewhere").exists()


def test_a_private_file_is_whole_and_private_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "password"
    for text in ("0" * 64, "f" * 64):
        write_private(path, text)
        assert read_password(tmp_path) == text
        assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["password"]
    for damaged in ("", "f" * 63, "F" * 64, "f" * 65, "é" * 64):
        path.write_text(damaged)
        with pytest.raises(EmbeddedPostgresFailed, match="gone or damaged"):
            read_password(tmp_path)
    path.unlink()
    with pytest.raises(EmbeddedPostgresFailed, match="gone or damaged"):
        read_password(tmp_path)


def test_only_an_empty_directory_or_our_own_is_moved_into(tmp_path: Path) -> None:
    home = tmp_path / "home"
    check_home(home)
    home.mkdir()
    check_home(home)
    (home / "lost+found").mkdir()
    check_home(home)
    (home / "letter").touch()
    with pytest.raises(EmbeddedPostgresFailed, match="holds other files"):
        check_home(home)
    (home / "gate").touch()
    check_home(home)


def test_a_long_name_gets_a_short_one_that_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert socket_for_clients(Path("/short/socket")) == Path("/short/socket")
    long = tmp_path / ("x" * 110)
    long.mkdir()
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:
        monkeypatch.setattr(tempfile, "tempdir", temporary)
        short = socket_for_clients(long)
        assert socket_for_clients(long) == short
        assert short.samefile(long)
        assert short.parent.stat().st_mode & 0o777 == 0o700
        short.parent.chmod(0o755)
        with pytest.raises(EmbeddedPostgresFailed, match="not a private directory of ours"):
            socket_for_clients(long)
        forget_short_name(long, short)
        assert list(Path(temporary).iterdir()) == []
        if os.geteuid() == 0:
            short.parent.mkdir(mode=0o700)
            os.chown(short.parent, 12345, 12345)
            with pytest.raises(EmbeddedPostgresFailed, match="not a private directory of ours"):
                socket_for_clients(long)
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with pytest.raises(EmbeddedPostgresFailed, match="too long a name"):
        socket_for_clients(long)
