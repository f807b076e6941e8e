"""A throw-away PostgreSQL for tests: one template database, and a clone of it per test."""

import asyncio
import inspect
import os
import re
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from gateway.db.embedded import EmbeddedPostgres

# A test's data need not outlive the machine.
FAST_SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "fsync": "off",
        "synchronous_commit": "off",
        "full_page_writes": "off",
        "autovacuum": "off",
        "logging_collector": "off",
        "dynamic_shared_memory_type": "mmap",  # in its own directory: one that is killed leaves nothing in /dev/shm
    }
)
ROOM_BYTES_MIN = 2 * 1024**3
TEMPLATE = "farebox_template"


class ScratchPostgres:
    """`with ScratchPostgres(prepare) as scratch: dsn = await scratch.clone("name")`.

    `prepare(dsn)`, plain or async, fills the template once. Enter and leave it outside of an event loop, as a session
    fixture does. With `server_url` it is somebody's server, where the account may make databases.
    """

    def __init__(
        self,
        prepare: Callable[[str], Awaitable[None] | None] | None = None,
        *,
        settings: Mapping[str, str] = FAST_SETTINGS,
        server_url: str | None = None,
    ) -> None:
        self._prepare = prepare
        self.directory = Path(tempfile.mkdtemp(prefix="farebox-tests-", dir=memory_directory()))
        self.server = EmbeddedPostgres(self.directory / "postgres", settings=settings)
        self._server_url = server_url
        self._dsn = ""

    def __enter__(self) -> "ScratchPostgres":
        try:
            self._dsn = self._server_url or self.server.start()
            asyncio.run(self._make_template())
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._server_url is None:
            self.server.stop(timeout_seconds=4.0)
        else:
            asyncio.run(self._drop_template())
        shutil.rmtree(self.directory, ignore_errors=True)

    def dsn(self, name: str) -> str:
        """The DSN of a database of this server."""
        return urlunsplit(urlsplit(self._dsn)._replace(path=f"/{name}"))

    async def clone(self, name: str) -> str:
        """A new database that equals the template; its DSN."""
        # With fsync off a checkpoint costs little; copying files takes half the time of logging each block.
        await self._command(f'CREATE DATABASE "{_checked(name)}" TEMPLATE {TEMPLATE} STRATEGY = FILE_COPY')
        return self.dsn(name)

    async def drop(self, name: str) -> None:
        """Remove a clone, whoever is still connected to it."""
        await self._command(f'DROP DATABASE IF EXISTS "{_checked(name)}" WITH (FORCE)')

    async def _drop_template(self) -> None:
        await self._command(f"UPDATE pg_database SET datistemplate = false WHERE datname = '{TEMPLATE}'")
        await self._command(f"DROP DATABASE IF EXISTS {TEMPLATE}")

    async def _make_template(self) -> None:
        await self._command(f"CREATE DATABASE {TEMPLATE}")
        if self._prepare is not None:
            done = self._prepare(self.dsn(TEMPLATE))
            if inspect.isawaitable(done):
                await done
        # A template that somebody is connected to cannot be cloned.
        await self._command(f"ALTER DATABASE {TEMPLATE} WITH ALLOW_CONNECTIONS false IS_TEMPLATE true")

    async def _command(self, statement: str) -> None:
        connection = await asyncpg.connect(self.dsn("postgres"))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


def memory_directory() -> str | None:
    """A file system in memory with room for a test run, where there is one: a clone then takes 20 ms and not 100."""
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK | os.X_OK) and shutil.disk_usage(memory).free > ROOM_BYTES_MIN:
        return str(memory)
    return None


def _checked(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name):
        raise ValueError(f"{name!r} is not a plain name for a database")
    return name
