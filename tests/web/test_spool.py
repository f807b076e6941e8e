"""An upload is kept in bounded memory, in a file that nobody else can find, and within what all may use together."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from gateway.errors import BodyTooLarge, Overloaded
from gateway.web.spool import MEMORY_BYTES_MAX, SPARE_BYTES_MAX, SPARE_FILES_MAX, Spool, Spools


class Make(Protocol):
    def __call__(self, path: Path | None, form: int = 10**6, disk: int = 10**6) -> Spools: ...


@pytest.fixture
def spools_at() -> Iterator[Make]:
    made: list[Spools] = []

    def make(path: Path | None, form: int = 10**6, disk: int = 10**6) -> Spools:
        made.append(Spools(path, form_bytes_max=form, disk_bytes_max=disk))
        return made[-1]

    yield make
    for spools in made:
        spools.close()


@pytest.mark.parametrize("size", [0, 1, MEMORY_BYTES_MAX, MEMORY_BYTES_MAX + 1, 300_000])
def test_what_was_appended_is_read_anywhere(spools_at: Make, tmp_path: Path, size: int) -> None:
    spools = spools_at(tmp_path)
    spool = Spool(spools)
    content = os.urandom(size)
    for at in range(0, size, 10_000):
        spool.append(content[at : at + 10_000])
    assert (spool.size_bytes, spools.used_bytes) == (size, size)
    assert spool.read(0, size + 1) == content
    assert spool.read(size // 2, 7) == content[size // 2 : size // 2 + 7]
    assert os.listdir(tmp_path) == []
    spool.close()
    assert spools.used_bytes == 0


def test_limits(spools_at: Make, tmp_path: Path) -> None:
    spools = spools_at(tmp_path, form=100, disk=150)
    one, two = Spool(spools), Spool(spools)
    one.append(b"x" * 100)
    with pytest.raises(BodyTooLarge):
        one.append(b"x")
    with pytest.raises(Overloaded):
        two.append(b"x" * 51)
    one.close()
    one.close()
    two.append(b"x" * 51)
    assert spools.used_bytes == 51


def test_a_disk_that_takes_nothing_is_no_crash(spools_at: Make, tmp_path: Path) -> None:
    spool = Spool(spools_at(tmp_path / "gone"))
    with pytest.raises(Overloaded):
        spool.append(b"x" * (MEMORY_BYTES_MAX + 1))
    spool.close()


def test_a_file_is_used_again_and_nothing_of_the_upload_before_is_read(spools_at: Make, tmp_path: Path) -> None:
    spools = spools_at(tmp_path)
    before = Spool(spools)
    before.append(b"secret " * 100_000)
    before.close()
    descriptors = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None
    after = Spool(spools)
    content = os.urandom(MEMORY_BYTES_MAX + 10)
    after.append(content)
    if descriptors is not None:
        assert len(os.listdir("/proc/self/fd")) == descriptors, "the same file"
    assert after.read(0, 10**6) == content
    assert after.read(len(content) - 3, 100) == content[-3:]
    assert after.read(len(content), 100) == after.read(len(content) + 50, 100) == b""
    after.close()


def test_few_files_are_kept_and_no_large_ones(spools_at: Make, tmp_path: Path) -> None:
    spools = spools_at(tmp_path, form=10**8, disk=10**8)
    together = [Spool(spools) for _ in range(SPARE_FILES_MAX + 2)]
    for spool in together:
        spool.append(b"x" * (MEMORY_BYTES_MAX + 1))
    for spool in together:
        spool.close()
    assert len(spools._spare) == SPARE_FILES_MAX
    spools._spare.pop().close()
    large = Spool(spools)
    for _ in range(SPARE_BYTES_MAX // 2**20 + 1):
        large.append(bytes(2**20))
    file = large._file
    large.close()
    assert file is not None
    assert file.closed
    assert len(spools._spare) == SPARE_FILES_MAX - 2
