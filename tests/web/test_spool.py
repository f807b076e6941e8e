"""An upload is kept in bounded memory, in a file that nobody else can find, and within what all may use together."""

import os
from pathlib import Path

import pytest

from gateway.errors import BodyTooLarge, Overloaded
from gateway.web.spool import MEMORY_BYTES_MAX, Spool, Spools


def spools_at(path: Path | None, form: int = 10**6, disk: int = 10**6) -> Spools:
    return Spools(path, form_bytes_max=form, disk_bytes_max=disk)


@pytest.mark.parametrize("size", [0, 1, MEMORY_BYTES_MAX, MEMORY_BYTES_MAX + 1, 300_000])
def test_what_was_appended_is_read_anywhere(tmp_path: Path, size: int) -> None:
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


def test_limits(tmp_path: Path) -> None:
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


def test_a_disk_that_takes_nothing_is_no_crash(tmp_path: Path) -> None:
    spool = Spool(spools_at(tmp_path / "gone"))
    with pytest.raises(Overloaded):
        spool.append(b"x" * (MEMORY_BYTES_MAX + 1))
    spool.close()
