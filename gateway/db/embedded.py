"""A private PostgreSQL under the data directory, for machines that have only Python.

    <directory>/            given by the caller, Farebox's alone
        gate                lock: held while someone starts or stops the server
        users               lock: shared by every process that uses the server; the last one out stops it
        password            256 random bits, 0600
        cluster/            PostgreSQL's data; farebox.conf in it is ours and is rewritten at each start
        socket/  log/       a unix socket, and a log file per weekday
        start.log           what the server said before its log was open

Locks end with the process that holds them, however it ends. After `kill -9` of the last gateway the server lives on,
and keeps what was committed; the next start finds it, and adopts it if it is sound and has the settings of today.
It does not end by itself.

As root the server runs under another account, which may be unable to pass a parent such as /root. Parents are never
opened to it: the server is started inside its directory and calls it /proc/self/cwd, a name that passes no parent.
"""

import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from urllib.parse import quote

from gateway.db.embedded_directory import (
    PASSWORD_HEX_DIGITS,
    SOCKET_NAME,
    Lock,
    admit_account,
    check_home,
    default_directory,
    forget_short_name,
    plainly,
    private_directory,
    read_password,
    settings_text,
    socket_for_clients,
    sync_directory,
    write_private,
)
from gateway.db.embedded_process import end, kill, live_postmaster, mark, wait_until
from gateway.db.embedded_programs import (
    ENVIRONMENT,
    MAJOR_VERSION,
    Account,
    EmbeddedPostgresFailed,
    Programs,
    can_reach,
    find_programs,
    reachable_programs,
    run,
    server_account,
    shelters,
    spawn,
)

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresFailed", "Programs", "default_directory", "find_programs"]

NAME = "farebox"  # of the role and of the database
INITDB_SECONDS_MAX = 120.0
START_SECONDS_MAX = 300.0  # a recovery replays up to max_wal_size
GATE_SECONDS_MAX = INITDB_SECONDS_MAX + START_SECONDS_MAX
# After a crash, backends of the dead server may still be at work; PostgreSQL then refuses to start beside them.
AFTERMATH_SECONDS_MAX = 15.0
CLIENT_SECONDS_MAX = 30.0
END_SECONDS_MAX = 8.0
KILL_SECONDS_MAX = 5.0
LOG_BYTES_MAX = 16 * 1024 * 1024
NO_SETTINGS: Mapping[str, str] = MappingProxyType({})


class EmbeddedPostgres:
    """The server of one directory, as one process uses it. `directory` is for it alone: it is made, or it is empty.

    Any number of processes may use one directory: the first starts the server, the last stops it. Not for
    concurrent use by several threads.
    """

    def __init__(
        self, directory: Path, *, programs: Programs | None = None, settings: Mapping[str, str] = NO_SETTINGS
    ) -> None:
        self._home = Path(os.path.abspath(directory))
        self._cluster = self._home / "cluster"
        self._socket = self._home / "socket"
        self._given_programs = programs
        self._settings = dict(settings)
        self._gate = Lock(self._home / "gate")
        self._users = Lock(self._home / "users")
        self._account: Account | None = None
        self._short_socket = self._socket
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> str:
        """The DSN of a server that accepts connections, started unless it runs already. Raises EmbeddedPostgresFailed.

        The DSN holds the password: it is not for logs.
        """
        programs = self._given_programs or find_programs()
        with plainly(self._home):
            check_home(self._home)
            if not self._home.exists():
                self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._account = server_account(self._cluster, self._home)
            admit_account(self._home, self._account)
            with self._gate.exclusive(timeout_seconds=GATE_SECONDS_MAX) as entered:
                if not entered:
                    raise EmbeddedPostgresFailed(
                        f"another process has been starting the server in {self._home} too long"
                    )
                alone = self._users.share()
                try:
                    self._ensure_running(programs, alone)
                    return self._dsn(programs)
                except BaseException:
                    self._give_up(alone)
                    raise

    def stop(self, *, timeout_seconds: float = END_SECONDS_MAX) -> None:
        """Leave the server; stop it if no other process uses it. May be repeated. Raises EmbeddedPostgresFailed."""
        if self._users.held:
            with plainly(self._home), self._gate.exclusive(timeout_seconds=timeout_seconds) as entered:
                # Where the gate stays shut somebody is starting: the server is theirs to stop.
                if self._users.leave() and entered:
                    if server := live_postmaster(self._cluster):
                        end(self._cluster, server.pid, self._process, timeout_seconds=timeout_seconds)
                    forget_short_name(self._socket, self._short_socket)
        self._let_go()

    def is_running(self) -> bool:
        """Whether the server's process lives."""
        if self._process is not None:
            self._process.poll()
        return live_postmaster(self._cluster) is not None

    def kill(self) -> None:
        """SIGKILL the server, as a crash would, and wait until its backends are gone. For tests."""
        if server := live_postmaster(self._cluster):
            kill(self._cluster, server.pid, self._process, timeout_seconds=KILL_SECONDS_MAX)

    def __enter__(self) -> str:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _ensure_running(self, programs: Programs, alone: bool) -> None:
        self._check_cluster()
        self._short_socket = socket_for_clients(self._socket)
        settings = settings_text(self._settings)
        if not self._cluster.exists():
            self._initialise(self._programs_for_server(programs))
        if server := live_postmaster(self._cluster):
            # It may be recovering or stopping: either ends.
            wait_until(lambda: (now := live_postmaster(self._cluster)) is None or now.ready, START_SECONDS_MAX)
            answers = live_postmaster(self._cluster) is not None and self._databases(programs) is not None
            if answers and (not alone or self._has_settings(settings)):
                return
            if not alone and live_postmaster(self._cluster) is not None:
                raise EmbeddedPostgresFailed(
                    f"the server in {self._home} is in use and does not answer: try again, or stop the other processes"
                )
            end(self._cluster, server.pid, self._process, timeout_seconds=END_SECONDS_MAX)
        elif (self._cluster / "postmaster.pid").exists() and self._databases(programs) is not None:
            # Its process is nowhere to be seen, yet it answers: two servers on one cluster would destroy it.
            raise EmbeddedPostgresFailed(f"{self._home} is served from another container: stop that one first")
        self._launch(self._programs_for_server(programs), settings)

    def _check_cluster(self) -> None:
        """Raises EmbeddedPostgresFailed unless the cluster is absent, or whole and ours."""
        for leftover in self._home.glob("*.new-*"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink()
        if not self._cluster.exists():
            return
        try:
            version = (self._cluster / "PG_VERSION").read_text(errors="replace").strip()
        except FileNotFoundError:
            raise EmbeddedPostgresFailed(
                f"{self._cluster} is not a PostgreSQL data directory (it has no PG_VERSION):"
                " restore it from a backup, or move it away to begin with an empty ledger"
            ) from None
        if version != MAJOR_VERSION:
            raise EmbeddedPostgresFailed(
                f"{self._cluster} was made by PostgreSQL {version[:20]} and this Farebox carries {MAJOR_VERSION}:"
                " start it with the Farebox that made it, or upgrade it with pg_upgrade"
            )
        owner = self._cluster.stat().st_uid
        if self._account is None and owner != os.geteuid():
            raise EmbeddedPostgresFailed(f"{self._cluster} belongs to uid {owner}: start Farebox as that user")
        read_password(self._home)

    def _programs_for_server(self, programs: Programs) -> Programs:
        return reachable_programs(programs, self._account, shelters(self._home))

    def _name_for_server(self, directory: Path) -> str:
        """What the server calls a directory that it is started in."""
        if can_reach(self._account, directory):
            return str(directory)
        if Path("/proc/self/cwd").exists():
            return "/proc/self/cwd"
        raise EmbeddedPostgresFailed(
            f"the account that runs PostgreSQL cannot reach {directory}:"
            f" set FAREBOX_DATA_DIRECTORY to a place outside of root's home, such as {default_directory()}"
        )

    def _initialise(self, programs: Programs) -> None:
        """Make the cluster beside its place and rename it, so that an interrupted attempt is never taken for one."""
        password = self._home / "password"
        if not password.exists():
            write_private(password, secrets.token_hex(PASSWORD_HEX_DIGITS // 2))
        fresh = private_directory(Path(tempfile.mkdtemp(prefix="cluster.new-", dir=self._home)), self._account)
        # Root's own file is out of the server's reach.
        handed_over = self._home / f"{fresh.name}.password"
        try:
            write_private(handed_over, read_password(self._home), self._account)
            made = run(
                [
                    programs.path("initdb"),
                    f"--pgdata={self._name_for_server(fresh)}",
                    f"--username={NAME}",
                    f"--pwfile=../{handed_over.name}",
                    *("--auth=scram-sha-256", "--encoding=UTF8", "--data-checksums", "--no-instructions"),
                    *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
                    *(("--no-sync",) if self._settings.get("fsync") == "off" else ()),
                ],
                account=self._account,
                cwd=fresh,
                timeout_seconds=INITDB_SECONDS_MAX,
            )
            if made.returncode != 0:
                raise EmbeddedPostgresFailed(f"cannot make a database in {self._home}: {_reason(made.stderr)}")
            with open(os.open(fresh / "postgresql.conf", os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW), "a") as file:
                file.write("include 'farebox.conf'\n")
                file.flush()
                os.fsync(file.fileno())
            fresh.rename(self._cluster)
            sync_directory(self._home)
        finally:
            handed_over.unlink(missing_ok=True)
            shutil.rmtree(fresh, ignore_errors=True)

    def _launch(self, programs: Programs, settings: str) -> None:
        """Start the server and wait until it is ready. Raises EmbeddedPostgresFailed."""
        private_directory(self._socket, self._account)
        for log in private_directory(self._home / "log", self._account).iterdir():
            if log.lstat().st_size > LOG_BYTES_MAX:
                log.unlink()
        write_private(self._cluster / "farebox.conf", settings, self._account)
        crashed = (self._cluster / "postmaster.pid").exists()
        deadline = time.monotonic() + (AFTERMATH_SECONDS_MAX if crashed else 0)
        while complaint := self._launch_once(programs):
            if time.monotonic() >= deadline:
                raise EmbeddedPostgresFailed(
                    f"PostgreSQL did not start: {complaint}; its log is in {self._home / 'log'}"
                )
            time.sleep(0.2)

    def _launch_once(self, programs: Programs) -> str | None:
        """None when the server is ready, else why it ended."""
        # Nobody serves the cluster. PostgreSQL itself would trust a process id that has been given to a stranger;
        # should a backend of the dead server live, it still knows by the shared memory, and refuses.
        for stale in (
            self._cluster / "postmaster.pid",
            self._socket / SOCKET_NAME,
            self._socket / f"{SOCKET_NAME}.lock",
        ):
            stale.unlink(missing_ok=True)
        self._let_go()
        logs = {path: path.stat().st_size for path in (self._home / "log").iterdir()}
        started_log = self._home / "start.log"
        with open(os.open(started_log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as output:
            process = self._process = spawn(
                [programs.path("postgres"), "-D", self._name_for_server(self._cluster), "-c", mark(self._cluster)],
                account=self._account,
                cwd=self._cluster,
                output=output,
            )

        def settled() -> bool:
            if process.poll() is not None:
                return True
            server = live_postmaster(self._cluster)
            return server is not None and server.pid == process.pid and server.ready

        if not wait_until(settled, START_SECONDS_MAX):
            end(self._cluster, process.pid, process, timeout_seconds=END_SECONDS_MAX)
            return f"it was not ready within {START_SECONDS_MAX:.0f} s"
        if process.returncode is None:
            return None
        said = [_since(path, logs.get(path, 0)) for path in (self._home / "log").iterdir()]
        return _reason("\n".join([*said, _since(started_log, 0)])) or f"it ended with status {process.returncode}"

    def _has_settings(self, settings: str) -> bool:
        try:
            return (self._cluster / "farebox.conf").read_text() == settings
        except FileNotFoundError:
            return False

    def _databases(self, programs: Programs) -> frozenset[str] | None:
        """The names of the databases; None when the server does not answer to our password."""
        listed = self._client(
            programs, "psql", "--list", "--tuples-only", "--no-align", "--no-psqlrc", "--dbname=postgres"
        )
        if listed.returncode != 0:
            return None
        return frozenset(line.partition("|")[0] for line in listed.stdout.splitlines())

    def _client(self, programs: Programs, name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        environment = {
            **ENVIRONMENT,
            "PGHOST": str(self._short_socket),
            "PGUSER": NAME,
            "PGPASSWORD": read_password(self._home),
            "PGREQUIREAUTH": "scram-sha-256",
            "PGCONNECT_TIMEOUT": "5",
        }
        return run(
            [programs.path(name), "--no-password", *arguments],
            environment=environment,
            timeout_seconds=CLIENT_SECONDS_MAX,
        )

    def _dsn(self, programs: Programs) -> str:
        databases = self._databases(programs)
        if databases is None:
            raise EmbeddedPostgresFailed(
                f"PostgreSQL in {self._home} runs but refuses the password in {self._home / 'password'}:"
                " restore that file from its backup"
            )
        if NAME not in databases:
            made = self._client(programs, "createdb", NAME)
            if made.returncode != 0:
                raise EmbeddedPostgresFailed(f"cannot make the database {NAME}: {_reason(made.stderr)}")
        return f"postgresql://{NAME}:{read_password(self._home)}@/{NAME}?host={quote(str(self._short_socket), safe='')}"

    def _give_up(self, alone: bool) -> None:
        """Undo a start that failed or was interrupted."""
        self._users.release()
        if alone and self._process is not None and self._process.poll() is None:
            end(self._cluster, self._process.pid, self._process, timeout_seconds=KILL_SECONDS_MAX)
        self._let_go()

    def _let_go(self) -> None:
        """Forget the process: it has ended, or others use it and the last of them will end it."""
        if self._process is not None and self._process.poll() is None:
            self._process.returncode = 0
        self._process = None


def _reason(text: str) -> str:
    """The first complaint in what a program of PostgreSQL's said: the others follow from it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in lines:
        for label in ("PANIC:", "FATAL:", "ERROR:", "error:"):
            # Clients that come too early are refused with "the database system is starting up".
            if label in line and "the database system is" not in line:
                return line.partition(label)[2].strip()
    return lines[-1].removeprefix("but ") if lines else ""


def _since(path: Path, offset_bytes: int) -> str:
    """What was added to a log since it had `offset_bytes`, at most its last 64 KiB."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(max(offset_bytes if offset_bytes <= length else 0, length - 65536))
        return file.read(65536).decode("utf-8", "replace")
