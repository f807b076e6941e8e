"""The directory of a private PostgreSQL: its files, its locks, its settings, and the name of its socket."""

import fcntl
import hashlib
import os
import re
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

from gateway.db.embedded_programs import Account, EmbeddedPostgresFailed

POLL_SECONDS = 0.02
PASSWORD_HEX_DIGITS = 64  # 256 bits
SOCKET_NAME = ".s.PGSQL.5432"
# The room for a name in sockaddr_un, less its closing zero.
SOCKET_PATH_BYTES_MAX = 103 if sys.platform == "darwin" else 107
# What a new volume holds before anybody has put anything there.
NOTHING = frozenset({"lost+found", ".DS_Store"})

# For a small machine that must lose nothing. Relative names are relative to the cluster.
SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "listen_addresses": "",
        "port": "5432",
        "unix_socket_directories": "../socket",
        "unix_socket_permissions": "0700",
        "password_encryption": "scram-sha-256",
        "max_connections": "100",
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "wal_level": "replica",
        "wal_compression": "off",
        "shared_buffers": "128MB",
        "max_wal_size": "2GB",
        "checkpoint_timeout": "15min",
        "jit": "off",
        # The wallets are a few hot rows: their dead versions must go before they cost reads.
        "autovacuum_naptime": "10s",
        "autovacuum_vacuum_cost_delay": "1ms",
        "timezone": "UTC",
        "log_timezone": "UTC",
        # Seven files, each emptied when its weekday comes round.
        "logging_collector": "on",
        "log_directory": "../log",
        "log_filename": "postgres-%a.log",
        "log_rotation_age": "1d",
        "log_rotation_size": "0",
        "log_truncate_on_rotation": "on",
        "log_checkpoints": "off",
    }
)


def default_directory() -> Path:
    """Farebox's data directory unless told otherwise: the same from every working directory, or ledgers get lost."""
    if os.geteuid() == 0:
        return Path("/var/lib/farebox")
    base = Path(os.environ.get("XDG_DATA_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".local" / "share") / "farebox"


def settings_text(overrides: Mapping[str, str]) -> str:
    """The text of farebox.conf. Raises EmbeddedPostgresFailed on a setting that cannot be written."""
    lines = ["# Written by Farebox at each start; changes made here are lost.\n"]
    for name, value in {**SETTINGS, **overrides}.items():
        if not re.fullmatch(r"[a-z_][a-z0-9_]*(\.[a-z0-9_]+)?", name) or re.search(r"[\0\r\n]", value):
            raise EmbeddedPostgresFailed(f"{name!r} = {value!r} is not a PostgreSQL setting")
        quoted = value.replace("\\", "\\\\").replace("'", "''")
        lines.append(f"{name} = '{quoted}'\n")
    return "".join(lines)


@contextmanager
def plainly(directory: Path) -> Iterator[None]:
    """Say in one line what the file system refused."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise EmbeddedPostgresFailed(
            f"cannot use {error.filename or directory}: {reason};"
            " put that right, or give Farebox another place with FAREBOX_DATA_DIRECTORY"
        ) from error


def check_home(home: Path) -> None:
    """Refuse to move into somebody else's directory. Raises EmbeddedPostgresFailed, OSError."""
    names = {entry.name for entry in home.iterdir()} - NOTHING if home.exists() else set()
    if names and not names & {"gate", "cluster"}:
        what = "is a PostgreSQL data directory" if "PG_VERSION" in names else "holds other files"
        raise EmbeddedPostgresFailed(
            f"{home} {what} and was not made by Farebox: name an empty directory with FAREBOX_DATA_DIRECTORY"
        )


def admit_account(home: Path, account: Account | None) -> None:
    """Let the server's account pass through `home`, and nothing more, if `home` is root's. Raises OSError."""
    status = home.stat()
    if account is not None and status.st_uid == 0 and not status.st_mode & 0o001:
        os.chown(home, -1, account.gid)
        home.chmod(0o710)


def private_directory(path: Path, account: Account | None) -> Path:
    """`path`, made if absent; only its owner, the server's account, may enter. Raises OSError."""
    path.mkdir(mode=0o700, exist_ok=True)
    if account is not None and path.lstat().st_uid == 0:
        os.chown(path, account.uid, account.gid, follow_symlinks=False)
    return path


def read_password(home: Path) -> str:
    """The password of the server's one role. Raises EmbeddedPostgresFailed, OSError."""
    path = home / "password"
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), encoding="ascii", errors="replace") as file:
            password = file.read(PASSWORD_HEX_DIGITS + 1).strip()
    except FileNotFoundError:
        password = ""
    if not re.fullmatch(f"[0-9a-f]{{{PASSWORD_HEX_DIGITS}}}", password):
        raise EmbeddedPostgresFailed(f"{path} is gone or damaged: restore it from the backup of {home}")
    return password


def write_private(path: Path, text: str, account: Account | None = None) -> None:
    """Write a file that only its owner may read, whole or not at all. Raises OSError."""
    descriptor, fresh = tempfile.mkstemp(prefix=f"{path.name}.new-", dir=path.parent)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if account is not None:
                os.fchown(descriptor, account.uid, account.gid)
            os.fsync(descriptor)
        os.rename(fresh, path)
    except BaseException:
        os.unlink(fresh)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in `path` durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Lock:
    """An advisory lock on a file; the system releases it when its holder ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        return self._descriptor is not None

    @contextmanager
    def exclusive(self, *, timeout_seconds: float) -> Iterator[bool]:
        """Hold it alone; False where others have held it for so long. Raises OSError."""
        deadline = time.monotonic() + timeout_seconds
        try:
            while not (locked := self._try_exclusive()) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
            yield locked
        finally:
            self.release()

    def share(self) -> bool:
        """Hold it together with others; whether there are none. Raises OSError."""
        alone = self._try_exclusive()
        # Nobody takes it alone but behind the gate, where we are: this does not wait.
        fcntl.flock(self._open(), fcntl.LOCK_SH)
        return alone

    def leave(self) -> bool:
        """Give up a share; whether it was the last. Raises OSError."""
        try:
            return self._try_exclusive()
        finally:
            self.release()

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _try_exclusive(self) -> bool:
        try:
            fcntl.flock(self._open(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _open(self) -> int:
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            owner = self._path.parent.stat()
            if os.geteuid() == 0 and owner.st_uid != 0:
                os.fchown(self._descriptor, owner.st_uid, owner.st_gid)
        return self._descriptor


def socket_for_clients(socket: Path) -> Path:
    """A name for the directory `socket` that fits a socket's address: itself, or a link in the temporary directory.

    Only clients need the short name; the server says `../socket`. Raises EmbeddedPostgresFailed, OSError.
    """
    # A comma separates hosts in a DSN.
    if len(os.fsencode(socket / SOCKET_NAME)) <= SOCKET_PATH_BYTES_MAX and "," not in str(socket):
        return socket
    digest = hashlib.sha256(os.fsencode(socket.resolve())).hexdigest()[:16]
    short = Path(tempfile.gettempdir()) / f"farebox-{os.geteuid()}-{digest}"
    try:
        short.mkdir(mode=0o700)
    except FileExistsError:
        status = short.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise EmbeddedPostgresFailed(
                f"{short} is not a private directory of ours:"
                " remove it, or give Farebox a place with a shorter name with FAREBOX_DATA_DIRECTORY"
            ) from None
    link = short / "s"
    if len(os.fsencode(link / SOCKET_NAME)) > SOCKET_PATH_BYTES_MAX or "," in str(link):
        raise EmbeddedPostgresFailed(
            f"{socket} is too long a name for a socket, and so is {link}:"
            " give Farebox a place with a shorter name with FAREBOX_DATA_DIRECTORY"
        )
    if not link.is_symlink():
        link.symlink_to(socket)
    return link


def forget_short_name(socket: Path, name: Path) -> None:
    """Remove the link that `socket_for_clients` made, if it made one."""
    if name != socket:
        # Whoever tidies the temporary directory may have been before us.
        with suppress(OSError):
            name.unlink()
            name.parent.rmdir()
