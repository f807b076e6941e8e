"""PgBouncer in transaction mode before a database, where the machine has it."""

import asyncio
import contextlib
import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.support.ledger_proxy import ledger_proxy
from tests.support.processes import eventually
from tests.support.tools import tool

# With this version it learnt to keep prepared statements in transaction mode.
PREPARES_SINCE = (1, 21)


@dataclass(frozen=True, slots=True)
class PgBouncer:
    """`dsn` leads through it, as `direct_dsn` does not."""

    dsn: str
    direct_dsn: str


@asynccontextmanager
async def pgbouncer(dsn: str, *, connections_max: int = 2, mode: str = "transaction") -> AsyncIterator[PgBouncer]:
    """Skipped aloud where it is not installed."""
    program = tool("pgbouncer", "apt install pgbouncer")
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
    version = re.search(r"(\d+)\.(\d+)", said)
    assert version is not None, said
    prepares = (int(version[1]), int(version[2])) >= PREPARES_SINCE
    directory = Path(tempfile.mkdtemp(prefix="farebox-pgbouncer-"))
    async with ledger_proxy(dsn) as proxy:  # the embedded server has no port, and its socket is its own account's
        port = _free_port()
        _configure(directory, proxy.dsn, port, mode, connections_max, prepares)
        command = [program, str(directory / "pgbouncer.ini")]
        if os.geteuid() == 0:  # which it refuses to run as
            account = pwd.getpwnam("nobody")
            for path in (directory, *directory.iterdir()):
                os.chown(path, account.pw_uid, account.pw_gid)
            command += ["-u", "nobody"]
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            await eventually(lambda: _listens(port))
            through = f"postgresql://farebox@127.0.0.1:{port}/through?sslmode=disable"
            yield PgBouncer(through if prepares else f"{through}&statement_cache_size=0", dsn)
        finally:
            process.kill()
            await asyncio.to_thread(process.wait)
            shutil.rmtree(directory, ignore_errors=True)


def _configure(directory: Path, dsn: str, port: int, mode: str, connections_max: int, prepares: bool) -> None:
    parts = urlsplit(dsn)
    place = f"host=127.0.0.1 port={parts.port} dbname={parts.path[1:]}"
    account = f"user={unquote(parts.username or '')} password={unquote(parts.password or '')}"
    lines = [
        "[databases]",
        f"through = {place} {account}",
        "[pgbouncer]",
        "listen_addr = 127.0.0.1",
        f"listen_port = {port}",
        "unix_socket_dir =",
        "auth_type = any",
        f"pool_mode = {mode}",
        f"default_pool_size = {connections_max}",
        "server_tls_sslmode = disable",
        *(["max_prepared_statements = 100"] if prepares else []),
    ]
    (directory / "pgbouncer.ini").write_text("\n".join(lines) + "\n")


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        return True
    return False
