"""Uploads while they arrive: small ones in memory, larger ones in a file that has no name.

A file without a name is gone with the process, however that ends. What all callers upload at once is bounded, since
any key can send half a form on as many connections as it likes, and nothing is held for it yet.
"""

import os
import tempfile
from pathlib import Path
from typing import BinaryIO

from gateway.errors import BodyTooLarge, Overloaded

MEMORY_BYTES_MAX = 65_536


class Spools:
    """Where uploads go. `form_bytes_max` bounds each, `disk_bytes_max` those of a process together."""

    def __init__(self, directory: Path | None, form_bytes_max: int, disk_bytes_max: int) -> None:
        self._directory = directory
        self.form_bytes_max = form_bytes_max
        self._disk_bytes_max = disk_bytes_max
        self.used_bytes = 0

    def take(self, size: int) -> None:
        """Room for so many more bytes. Raises Overloaded."""
        if self.used_bytes + size > self._disk_bytes_max:
            raise Overloaded
        self.used_bytes += size

    def file(self) -> BinaryIO:
        """A new file without a name. Raises OSError."""
        return tempfile.TemporaryFile(dir=self._directory, buffering=0)


class Spool:
    """One upload: appended to while it arrives, then read wherever it is asked for."""

    __slots__ = ("_file", "_memory", "_spools", "size_bytes")

    def __init__(self, spools: Spools) -> None:
        self._spools = spools
        self._memory = bytearray()
        self._file: BinaryIO | None = None
        self.size_bytes = 0

    def append(self, data: bytes) -> None:
        """Raises BodyTooLarge, Overloaded, where the limits or the disk are full."""
        if self.size_bytes + len(data) > self._spools.form_bytes_max:
            raise BodyTooLarge(f"The form is larger than {self._spools.form_bytes_max} bytes.")
        self._spools.take(len(data))
        self.size_bytes += len(data)
        if self._file is None and self.size_bytes <= MEMORY_BYTES_MAX:
            self._memory += data
            return
        try:
            if self._file is None:
                self._file = self._spools.file()
                self._write(bytes(self._memory))
                self._memory.clear()
            self._write(data)
        except OSError:
            raise Overloaded("There is no room for an upload. Try again shortly.") from None

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        while data:
            data = data[os.write(self._file.fileno(), data) :]

    def read(self, start: int, size: int) -> bytes:
        """Raises OSError."""
        if self._file is None:
            return bytes(self._memory[start : start + size])
        return os.pread(self._file.fileno(), size, start)

    def close(self) -> None:
        """Give the room back."""
        self._spools.used_bytes -= self.size_bytes
        self.size_bytes = 0
        self._memory = bytearray()
        if self._file is not None:
            self._file.close()
            self._file = None
