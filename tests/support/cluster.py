"""A PostgreSQL primary and its synchronous standby, from the wheel's programs, on loopback ports of their own.

    with Cluster() as cluster:                  # about two seconds
        await migrate(cluster.dsn)
        cluster.primary.kill()                  # -9; or freeze() and thaw(), which stop and continue all of it
        cluster.promote()                       # the standby is the primary now, and commits alone
        cluster.rejoin()                        # the other one is made anew from it, and is its synchronous standby

While a standby belongs to it a commit of the primary is only answered once the standby has it on disk: with the standby
away commits wait, unless `stand_alone()` says otherwise. Methods block; from a test's loop use asyncio.to_thread.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType

from gateway.db.embedded_directory import private_directory, write_private
from gateway.db.embedded_process import children, kill, live_postmaster, mark, wait_until
from gateway.db.embedded_programs import (
    ENVIRONMENT,
    Account,
    Programs,
    find_programs,
    reachable_programs,
    run,
    server_account,
    shelters,
    spawn,
)
from tests.support.postgres import memory_directory

ROLE = "farebox"
STEP_SECONDS_MAX = 60.0
NO_SETTINGS: Mapping[str, str] = MappingProxyType({})
# Every promise about durability is kept; what is left out only costs time in a test.
SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "max_connections": "60",
        "fsync": "on",
        "full_page_writes": "on",
        "synchronous_commit": "on",
        "shared_buffers": "32MB",
        "min_wal_size": "32MB",
        "max_wal_size": "256MB",
        "wal_level": "replica",
        "wal_keep_size": "64MB",
        "hot_standby": "on",
        "wal_retrieve_retry_interval": "100ms",
        "autovacuum": "off",
        "deadlock_timeout": "100ms",
        "dynamic_shared_memory_type": "mmap",  # in its own directory: one that is killed leaves nothing in /dev/shm
        "timezone": "UTC",
        "log_timezone": "UTC",
    }
)


class Node:
    """One server of a cluster: its data, its port, and its process while it runs."""

    def __init__(self, cluster: "Cluster", name: str) -> None:
        self.name = name
        self.port = _free_port()
        self.data = cluster.directory / name
        self.log = cluster.directory / f"{name}.log"
        self._cluster = cluster
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        """Its database by TCP."""
        return self.dsn_at("127.0.0.1", self.port)

    def dsn_at(self, host: str, port: int, database: str = "postgres") -> str:
        """The same account somewhere else, such as behind a proxy."""
        return f"postgresql://{ROLE}:{self._cluster.password}@{host}:{port}/{database}?sslmode=disable"

    @property
    def pids(self) -> list[int]:
        """The postmaster and its children; empty where it does not run."""
        server = live_postmaster(self.data) if self.data.exists() else None
        return [server.pid, *children(server.pid)] if server is not None else []

    def start(self) -> None:
        """Start it, and wait until it takes connections. Raises AssertionError with the end of its log."""
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        with self.log.open("ab") as output:
            self._process = spawn(
                [self._cluster.programs.path("postgres"), "-D", str(self.data), "-c", mark(self.data)],
                account=self._cluster.account,
                cwd=self.data,
                output=output,
            )
        process = self._process

        def is_ready() -> bool:
            server = live_postmaster(self.data)
            return process.poll() is not None or (server is not None and server.pid == process.pid and server.ready)

        assert wait_until(is_ready, STEP_SECONDS_MAX), self._said()
        assert process.returncode is None, self._said()

    def kill(self) -> None:
        """`kill -9` of the postmaster, frozen or not; its backends are gone when this returns."""
        if pids := self.pids:
            kill(self.data, pids[0], self._process, timeout_seconds=1.0)
        if self._process is not None:
            self._process.wait(STEP_SECONDS_MAX)
            self._process = None

    def freeze(self) -> None:
        """SIGSTOP every process of it: connections stay open, and nobody answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Undo `freeze`."""
        self._signal(signal.SIGCONT)

    def reload(self, **settings: str) -> None:
        """Change settings that take effect without a restart."""
        self.configure(**settings)
        self._signal(signal.SIGHUP, only_postmaster=True)

    def configure(self, **settings: str) -> None:
        """Write the settings of today, with `settings` on top for good."""
        account, text = self._cluster.account, ""
        self._cluster.settings[self.name] |= settings
        for name, value in {**SETTINGS, "port": str(self.port), **self._cluster.settings[self.name]}.items():
            text += f"{name} = '{value}'\n"
        write_private(self.data / "cluster.conf", text, account)

    def _signal(self, number: signal.Signals, *, only_postmaster: bool = False) -> None:
        for pid in self.pids[: 1 if only_postmaster else None]:
            with contextlib.suppress(ProcessLookupError):  # a backend that ended meanwhile
                os.kill(pid, number)

    def _said(self) -> str:
        return f"{self.name} did not start: {self.log.read_text(encoding='utf-8')[-2000:]}"


class Cluster:
    """See the module. `primary` and `standby` are the nodes by what they are now."""

    def __init__(self, *, settings: Mapping[str, str] = NO_SETTINGS, programs: Programs | None = None) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="farebox-cluster-", dir=memory_directory()))
        self.directory.chmod(0o755)  # the account of the servers must reach what it owns in it
        self.password = secrets.token_hex(16)
        self.account: Account | None = server_account()
        self.programs: Programs = reachable_programs(
            programs or find_programs(), self.account, shelters(self.directory)[::-1]
        )
        self.settings: dict[str, dict[str, str]] = {"one": dict(settings), "two": dict(settings)}
        self.primary = Node(self, "one")
        self.standby = Node(self, "two")

    def __enter__(self) -> "Cluster":
        try:
            self._make_primary()
            self.rejoin()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for node in (self.standby, self.primary):
            node.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def dsn(self) -> str:
        """The primary's."""
        return self.primary.dsn

    @property
    def multihost_dsn(self) -> str:
        """Both servers, of which the client is to find the one that takes writes."""
        hosts = ",".join(
            f"127.0.0.1:{node.port}" for node in sorted((self.primary, self.standby), key=lambda n: n.name)
        )
        return f"postgresql://{ROLE}:{self.password}@{hosts}/postgres?sslmode=disable&target_session_attrs=read-write"

    def promote(self) -> None:
        """Make the standby the primary, whatever became of the other, which is not touched.

        It commits alone until `rejoin`. Whoever fails over for real makes sure that the old primary takes no writes:
        with its standby gone its commits wait for ever, unless somebody cancels the wait.
        """
        new, old = self.standby, self.primary
        new.reload(synchronous_standby_names="")
        self._run("pg_ctl", "promote", "--pgdata", str(new.data), "--wait", "--silent", "--timeout", "60")
        self.primary, self.standby = new, old

    def stand_alone(self) -> None:
        """Let the primary commit without its standby."""
        self.primary.reload(synchronous_standby_names="")

    def rejoin(self) -> None:
        """Make the standby anew from the primary, wait until it streams; commits wait for it from then on."""
        primary, standby = self.primary, self.standby
        standby.kill()
        shutil.rmtree(standby.data, ignore_errors=True)
        private_directory(standby.data, self.account)
        source = f"host=127.0.0.1 port={primary.port} user={ROLE} application_name={standby.name}"
        backup = ("--wal-method=stream", "--checkpoint=fast", "--no-sync", "--write-recovery-conf", "--no-manifest")
        self._run("pg_basebackup", f"--pgdata={standby.data}", f"--dbname={source}", *backup)
        standby.configure(synchronous_standby_names="")
        standby.start()
        self.stand_together()

    def stand_together(self) -> None:
        """Wait until the standby streams; from then on no commit is answered before the standby has it."""
        asked = f"SELECT count(*) FROM pg_stat_replication WHERE application_name = '{self.standby.name}'"
        assert wait_until(lambda: self.finds_one(f"{asked} AND state = 'streaming'"), STEP_SECONDS_MAX), "no stream"
        self.primary.reload(synchronous_standby_names=self.standby.name)
        assert wait_until(lambda: self.finds_one(f"{asked} AND sync_state = 'sync'"), STEP_SECONDS_MAX), "not sync"

    def finds_one(self, statement: str) -> bool:
        """Whether a count is 1; a server that cannot be asked now, such as one without a free connection, says no."""
        try:
            return self.ask(statement) == "1"
        except AssertionError:
            return False

    def ask(self, statement: str, node: Node | None = None) -> str:
        """What one statement returns on a node, the primary unless named, as psql writes it."""
        port = str((node or self.primary).port)
        asked = ("--no-psqlrc", "--tuples-only", "--no-align", "--quiet", "--command", statement)
        return self._run("psql", "--host=127.0.0.1", "--port", port, "--username", ROLE, "--dbname=postgres", *asked)

    def _make_primary(self) -> None:
        node = self.primary
        private_directory(node.data, self.account)
        handed_over = self.directory / "password"
        write_private(handed_over, self.password, self.account)
        made = ("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions")
        self._run("initdb", f"--pgdata={node.data}", f"--username={ROLE}", f"--pwfile={handed_over}", *made)
        with (node.data / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.write("include 'cluster.conf'\n")
        node.configure()
        node.start()

    def _run(self, program: str, *arguments: str) -> str:
        """Run one of PostgreSQL's programs to its end. Raises AssertionError with what it said."""
        done = run(
            [self.programs.path(program), *arguments],
            account=self.account,
            cwd=self.directory,
            environment={**ENVIRONMENT, "PGPASSWORD": self.password, "PGSSLMODE": "disable"},
            timeout_seconds=STEP_SECONDS_MAX,
        )
        assert done.returncode == 0, f"{program}: {done.stderr[-1000:]}"
        return done.stdout.strip()


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])
