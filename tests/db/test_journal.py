"""The journal: acknowledged means on disk, a failed write leaves nothing behind, and only the dead are taken over."""

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gateway.core.journal_record import Record, encode
from gateway.db.journal import CALL_BYTES_MAX, Journal, JournalUnwritable, read_file
from gateway.tasks import spawn
from tests.support.shop import until

BYTES_MAX = 4_096


def record_of(number: int, size_bytes: int = 10) -> Record:
    return Record("wallet", f"hold-{number}", b'"%s"' % (b"x" * size_bytes))


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    opened = Journal(tmp_path / "journal", bytes_max=BYTES_MAX)
    opened.open("mine")
    yield opened
    opened.close()


def refusal(journal: Journal) -> str | None:
    """Why it takes nothing now."""
    return journal.unwritable


def path_of(journal: Journal) -> Path:
    assert journal._path is not None
    return journal._path


class SlowDisk:
    """fsync that waits until it is let go, and counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.syncs = 0
        self.let_go = threading.Event()
        really = os.fsync

        def fsync(file: int) -> None:
            self.syncs += 1
            assert self.let_go.wait(5)
            really(file)

        monkeypatch.setattr(os, "fsync", fsync)


@contextlib.contextmanager
def full_after(size_bytes: int) -> Iterator[None]:
    """No file of this process may grow past `size_bytes`: a write is cut short there, and the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_an_append_returns_after_its_fsync_and_appends_share_one(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch)
    first = spawn(journal.append(record_of(0)), name="append")
    await until(lambda: disk.syncs == 1)
    others = [spawn(journal.append(record_of(number)), name="append") for number in range(1, 21)]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in [first, *others])
    disk.let_go.set()
    await asyncio.gather(first, *others)
    assert disk.syncs == 2
    assert journal.records == 21
    assert journal.read_own() == ([record_of(number) for number in range(21)], 0)
    assert journal.bytes_written == path_of(journal).stat().st_size


async def test_an_append_that_is_cancelled_while_it_waits_is_written_along(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch)
    tasks = [spawn(journal.append(record_of(number)), name="append") for number in range(3)]
    await until(lambda: disk.syncs == 1)
    tasks[1].cancel()
    tail = spawn(journal.append(record_of(3)), name="append")
    disk.let_go.set()
    await asyncio.gather(*tasks, tail, return_exceptions=True)
    assert {record.hold_id for record in journal.read_own()[0]} == {f"hold-{number}" for number in range(4)}


@pytest.mark.parametrize("cut_at", [0, 1, 30])
async def test_a_full_disk_leaves_no_half_record(journal: Journal, cut_at: int) -> None:
    await journal.append(record_of(0))
    size_bytes = path_of(journal).stat().st_size
    with full_after(size_bytes + cut_at):
        failed = await asyncio.gather(
            *(journal.append(record_of(number, 100)) for number in range(1, 4)), return_exceptions=True
        )
    assert [type(error) for error in failed] == [JournalUnwritable] * 3
    assert journal.unwritable is not None
    assert path_of(journal).stat().st_size == journal.bytes_written == size_bytes
    assert not journal._pending
    await journal.append(record_of(5))
    assert not journal.unwritable
    assert journal.records == 2
    assert journal.read_own() == ([record_of(0), record_of(5)], 0)


async def test_those_who_shared_a_failed_write_try_for_themselves(journal: Journal) -> None:
    """A batch that does not fit is no reason to lose the small record in it."""
    large, small = record_of(0, BYTES_MAX), record_of(1)
    results = await asyncio.gather(journal.append(large), journal.append(small), return_exceptions=True)
    assert [type(result) for result in results] == [JournalUnwritable, type(None)]
    assert journal.read_own() == ([small], 0)


async def test_the_limit_is_kept_and_known_to_readiness(journal: Journal) -> None:
    line_bytes = len(encode(record_of(0, 100)))
    for _ in range(BYTES_MAX // line_bytes):
        await journal.append(record_of(0, 100))
    with pytest.raises(JournalUnwritable, match=f"has reached {BYTES_MAX} bytes"):
        await journal.append(record_of(0, 100))
    assert path_of(journal).stat().st_size <= BYTES_MAX
    assert await journal.clear_own(journal.records)
    await journal.append(record_of(0, 100))
    assert journal.unwritable is None


async def test_a_probe_sees_a_disk_that_refuses_and_one_that_recovered(journal: Journal) -> None:
    journal.probe()
    assert refusal(journal) is None
    with full_after(100):
        journal.probe()
    assert refusal(journal) == "File too large"
    journal.probe()
    assert refusal(journal) is None
    await journal.append(record_of(0, BYTES_MAX - len(encode(record_of(0, 0)))))
    journal.probe()
    assert refusal(journal) == f"the journal has reached {BYTES_MAX} bytes"
    journal._directory.rename(journal._directory.with_name("elsewhere"))
    journal.probe()
    assert refusal(journal) == "No such file or directory"


async def test_a_probe_asks_for_room_for_every_call_in_flight(journal: Journal, tmp_path: Path) -> None:
    journal.probe(BYTES_MAX // CALL_BYTES_MAX)
    assert refusal(journal) is None
    journal.probe(BYTES_MAX // CALL_BYTES_MAX + 1)
    assert refusal(journal) == f"the journal's {BYTES_MAX} bytes have no room for the calls in flight"
    free_bytes = shutil.disk_usage(tmp_path).free
    spacious = Journal(tmp_path / "journal", bytes_max=2**60)
    spacious.probe(free_bytes // CALL_BYTES_MAX // 2)
    assert refusal(spacious) is None
    spacious.probe(free_bytes // CALL_BYTES_MAX * 2)
    assert refusal(spacious) == "the disk has no room for the calls in flight"


async def test_half_a_record_that_could_not_be_taken_back_does_not_spoil_the_next(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    await journal.append(record_of(0))

    def refuse(_file: int, _size: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched, full_after(path_of(journal).stat().st_size + 30):
        patched.setattr(os, "ftruncate", refuse)
        with pytest.raises(JournalUnwritable):
            await journal.append(record_of(1))
    await journal.append(record_of(2))
    assert journal.read_own() == ([record_of(0), record_of(2)], 0)


async def test_a_directory_that_cannot_be_made_is_unwritable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    journal = Journal(tmp_path / "file" / "journal", bytes_max=BYTES_MAX)
    with pytest.raises(JournalUnwritable, match="Not a directory"):
        journal.open("mine")
    journal.close()


async def test_an_empty_file_is_removed_at_the_end_and_a_full_one_stays(tmp_path: Path) -> None:
    for name, count in (("empty", 0), ("full", 1)):
        journal = Journal(tmp_path, bytes_max=BYTES_MAX)
        journal.open(name)
        for number in range(count):
            await journal.append(record_of(number))
        journal.close()
    assert [path.name for path in tmp_path.iterdir()] == ["full.journal"]
    assert (tmp_path / "full.journal").stat().st_mode & 0o777 == 0o600
    assert read_file(tmp_path / "full.journal") == ([record_of(0)], 0)


# What was appended meanwhile ------------------------------------------------------------------------------------------


async def test_own_file_is_cleared_unless_something_was_appended(journal: Journal) -> None:
    await journal.append(record_of(0))
    assert not await journal.clear_own(0)
    await journal.append(record_of(1))
    assert not await journal.clear_own(1)
    assert journal.read_own() == ([record_of(0), record_of(1)], 0)
    assert await journal.clear_own(2)
    assert (journal.read_own(), journal.records, journal.bytes_written) == (([], 0), 0, 0)
    await journal.append(record_of(2))
    assert journal.read_own() == ([record_of(2)], 0)


@pytest.mark.parametrize("step", ["clear_own", "set_aside"])
async def test_an_append_on_its_way_is_never_thrown_out(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    await journal.append(record_of(0))
    disk = SlowDisk(monkeypatch)
    appending = spawn(journal.append(record_of(1)), name="append")
    await until(lambda: disk.syncs == 1)
    ending = spawn(getattr(journal, step)(1), name=step)
    await asyncio.sleep(0.02)
    disk.let_go.set()
    await appending
    assert not await ending
    assert journal.read_own() == ([record_of(0), record_of(1)], 0)


async def test_a_file_set_aside_is_kept_and_the_next_one_is_used(journal: Journal) -> None:
    await journal.append(record_of(0))
    assert await journal.set_aside(1)
    await journal.append(record_of(1))
    (aside,) = journal._directory.glob("*.damaged")
    assert read_file(aside) == ([record_of(0)], 0)
    assert journal.read_own() == ([record_of(1)], 0)
    with Journal(journal._directory, bytes_max=BYTES_MAX).taken_over() as paths:
        assert paths == []


async def test_a_file_that_cannot_be_set_aside_stays_in_use(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    await journal.append(record_of(0))

    def refuse(path: object, *_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        with pytest.raises(JournalUnwritable, match="No space left"):
            await journal.set_aside(1)
    await journal.append(record_of(1))
    assert journal.read_own() == ([record_of(0), record_of(1)], 0)


# Files of others ------------------------------------------------------------------------------------------------------

OTHER_PROCESS = """
import asyncio, sys, time
from pathlib import Path
from gateway.core.journal_record import Record
from gateway.db.journal import Journal
journal = Journal(Path(sys.argv[1]), bytes_max=4096)
journal.open("other")
asyncio.run(journal.append(Record("wallet", "hold-9", b"{}")))
print("written", flush=True)
time.sleep(60)
"""


async def test_a_file_is_taken_over_only_once_its_process_is_dead(journal: Journal) -> None:
    directory = journal._directory
    with subprocess.Popen([sys.executable, "-c", OTHER_PROCESS, directory], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"written\n"
            with journal.taken_over() as paths:
                assert paths == []
        finally:
            process.send_signal(signal.SIGKILL)
    third = Journal(directory, bytes_max=BYTES_MAX)
    with journal.taken_over() as paths:
        assert [path.name for path in paths] == ["other.journal"]
        assert read_file(paths[0]) == ([Record("wallet", "hold-9", b"{}")], 0)
        with third.taken_over() as taken:
            assert taken == []  # somebody is at it; nor is the first one's own file up for it
    with third.taken_over() as taken:
        assert [path.name for path in taken] == ["other.journal"]


async def test_a_file_that_is_gone_by_the_time_of_its_lock_is_left(journal: Journal) -> None:
    (journal._directory / "dangling.journal").symlink_to("nowhere")
    with journal.taken_over() as paths:
        assert paths == []
