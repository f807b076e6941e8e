"""Settles that could not reach the ledger, on local disk until they can.

One file per process, fsynced before an append is acknowledged, locked while its process lives. Records are replayed
with the same ids, so replaying twice is harmless. A file whose process died is taken over by the next one.
"""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gateway.core.journal_record import Record, decode, encode

# What one call may need: its record, with every kind of usage, is a third of this.
CALL_BYTES_MAX = 2_048
_PROBE_BYTES = 4_096


class JournalUnwritable(Exception):
    """The journal cannot take a record: the disk or the directory refuses, or it has reached its size limit."""


@dataclass(frozen=True, slots=True)
class JournalFile:
    """One file of a journal directory, as it was read. `owner` is "alive", "dead" or, of one set aside, "none"."""

    path: Path
    owner: str
    bytes: int
    records: list[Record]
    damaged: int


class Journal:
    """The journal of this process, and the ones that others left behind, under one directory."""

    def __init__(self, directory: Path, *, bytes_max: int) -> None:
        self._directory = directory
        self._bytes_max = bytes_max
        self._file: int | None = None
        self._path: Path | None = None
        self._lock = asyncio.Lock()
        self._pending: list[bytes] = []
        self.bytes_written = 0
        self.records = 0
        self.unwritable: str | None = None

    def open(self, name: str) -> None:
        """Make this process's file. Raises JournalUnwritable."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            path = self._directory / f"{name}.journal"
            # Locked before it has the name by which others find files to take over.
            fresh = path.with_suffix(".new")
            file = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fresh.rename(path)
                _sync_directory(self._directory)
            except OSError:
                os.close(file)
                raise
        except OSError as error:
            raise JournalUnwritable(f"{self._directory}: {error.strerror}") from error
        self._path, self._file = path, file

    def close(self) -> None:
        """Give up the file; an empty one is removed."""
        if self._file is not None and self._path is not None:
            if os.fstat(self._file).st_size == 0:
                self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None

    async def append(self, record: Record) -> None:
        """Return once `record` is on disk. Appends that wait together share one fsync. Raises JournalUnwritable."""
        line = encode(record)
        self._pending.append(line)
        async with self._lock:
            if line not in self._pending:
                return  # an append before us wrote it along
            lines, self._pending = self._pending, []
            try:
                await asyncio.to_thread(self._write, b"".join(lines))
            except OSError as error:
                self.unwritable = error.strerror or type(error).__name__
                # Those who shared this write are still waiting for the lock: let each try, and fail, for itself.
                self._pending = [other for other in lines if other is not line] + self._pending
                raise JournalUnwritable(self.unwritable) from error
            self.unwritable = None
            self.records += len(lines)

    def _write(self, data: bytes) -> None:
        assert self._file is not None, "the journal is open while calls are served"
        if os.fstat(self._file).st_size != self.bytes_written:
            os.ftruncate(self._file, self.bytes_written)  # a failed write could not be taken back before
        if self.bytes_written + len(data) > self._bytes_max:
            raise OSError(0, f"the journal has reached {self._bytes_max} bytes")
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._file, view) :]
            os.fsync(self._file)
        except OSError:
            # Half a record must not swallow the one that follows it.
            os.ftruncate(self._file, self.bytes_written)
            raise
        self.bytes_written += len(data)

    def probe(self, calls: int = 0) -> None:
        """Try whether an append could succeed now, and whether there is room for `calls` in flight; readiness remembers
        the answer. One caller at a time."""
        room_bytes = calls * CALL_BYTES_MAX
        try:
            probe = self._directory / f".probe-{os.getpid()}"
            try:
                with probe.open("wb") as file:
                    file.write(b"\n" * _PROBE_BYTES)
                    file.flush()
                    os.fsync(file.fileno())
            finally:
                probe.unlink(missing_ok=True)
            disk = os.statvfs(self._directory)
            if disk.f_bavail * disk.f_frsize < room_bytes:
                self.unwritable = "the disk has no room for the calls in flight"
            elif self.bytes_written >= self._bytes_max:
                self.unwritable = f"the journal has reached {self._bytes_max} bytes"
            elif self.bytes_written + room_bytes > self._bytes_max:
                self.unwritable = f"the journal's {self._bytes_max} bytes have no room for the calls in flight"
            else:
                self.unwritable = None
        except OSError as error:
            self.unwritable = error.strerror or type(error).__name__

    def set_aside_files(self) -> list[Path]:
        """The files that were set aside because not all of them could be given to the ledger."""
        return sorted(self._directory.glob("*.damaged"))

    def files(self) -> list[JournalFile]:
        """Every file of the directory, whoever owns it. Raises OSError."""
        found = []
        for path in sorted(self._directory.glob("*.journal")):
            lock = _lock(path)
            with contextlib.suppress(FileNotFoundError):  # replayed and gone meanwhile
                found.append(_file(path, "alive" if lock is None else "dead"))
            if lock is not None:
                os.close(lock)
        return [*found, *(_file(path, "none") for path in self.set_aside_files())]

    @contextlib.contextmanager
    def taken_over(self) -> Iterator[list[Path]]:
        """The files of processes that have died, locked while the context lasts."""
        others = [path for path in sorted(self._directory.glob("*.journal")) if path != self._path]
        held = [(file, path) for path in others if (file := _lock(path)) is not None]
        try:
            yield [path for _, path in held]
        finally:
            for file, _ in held:
                os.close(file)

    def read_own(self) -> tuple[list[Record], int]:
        """What this process has journaled and not yet cleared, and how many lines are damaged."""
        return decode(self._path.read_bytes()) if self._path is not None else ([], 0)

    async def set_aside(self, records: int) -> bool:
        """Keep this process's file for a person to see, and go on with a new one, if nothing was appended since
        `records` were read from it. Raises JournalUnwritable, and the file stays the one in use."""
        async with self._lock:
            if self._file is None or self._path is None or self.records != records:
                return False
            path, file = self._path, self._file
            aside = path.with_name(f"{path.stem}-{self.bytes_written}.damaged")
            path.rename(aside)
            try:
                self.open(path.stem)
            except JournalUnwritable:
                aside.rename(path)
                raise
            os.close(file)
            self.bytes_written = self.records = 0
            return True

    async def clear_own(self, records: int) -> bool:
        """Empty this process's file, if nothing was appended since `records` were read from it."""
        async with self._lock:
            if self._file is None or self.records != records:
                return False
            os.ftruncate(self._file, 0)
            os.fsync(self._file)
            self.bytes_written = self.records = 0
            return True


def read_file(path: Path) -> tuple[list[Record], int]:
    """The whole records of one journal file, and how many lines are damaged."""
    return decode(path.read_bytes())


def _file(path: Path, owner: str) -> JournalFile:
    data = path.read_bytes()
    records, damaged = decode(data)
    return JournalFile(path, owner, len(data), records, damaged)


def _lock(path: Path) -> int | None:
    """The file, open and locked; None where its process lives, or another one has dealt with it."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file), path.stat()):
            return file
    except OSError:
        pass
    os.close(file)
    return None


def _sync_directory(directory: Path) -> None:
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
