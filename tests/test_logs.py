"""Log lines are JSON, one a record, and configured once for the whole process."""

import logging
from collections.abc import Iterator

import orjson
import pytest

from gateway.logs import JsonFormatter, configure


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """The root logger is given back with its handlers, which are pytest's."""
    root, aiohttp = logging.getLogger(), logging.getLogger("aiohttp.server")
    handlers, root_level, aiohttp_level = root.handlers[:], root.level, aiohttp.level
    root.handlers[:] = []
    yield
    root.handlers[:] = handlers
    root.setLevel(root_level)
    aiohttp.setLevel(aiohttp_level)


def test_a_record_is_one_line_of_json_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info")
    log = logging.getLogger("farebox.test")
    log.debug("not this")
    log.warning("two\nlines %d", 7, extra={"fields": {"hold": "h", "who": object()}})
    try:
        raise ValueError("why")
    except ValueError as error:
        log.critical("crashed", exc_info=error)
    first, second = map(orjson.loads, capsys.readouterr().err.splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first.pop("who")
    assert first == {"level": "warning", "logger": "farebox.test", "message": "two\nlines 7", "hold": "h"}
    assert (second["level"], second["message"]) == ("critical", "crashed")
    assert second["exception"].endswith("ValueError: why")


def test_a_process_may_have_fields_in_all_its_records(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", worker=3)
    logging.getLogger("farebox.test").warning("plain")
    logging.getLogger("farebox.test").warning("more", extra={"fields": {"hold": "h"}})
    first, second = map(orjson.loads, capsys.readouterr().err.splitlines())
    assert (first["worker"], second["worker"], second["hold"]) == (3, 3, "h")


def test_configuring_again_replaces_what_was(capsys: pytest.CaptureFixture[str]) -> None:
    for level in ("debug", "error"):
        configure(level)
    logging.getLogger("farebox.test").warning("not this")
    logging.getLogger("farebox.test").error("once")
    logging.getLogger("aiohttp.server").error("what a client sent")
    assert [orjson.loads(line)["message"] for line in capsys.readouterr().err.splitlines()] == ["once"]


@pytest.mark.parametrize("fields", [None, "text", 7])
def test_fields_that_are_no_object_are_left_out(fields: object) -> None:
    record = logging.makeLogRecord({"msg": "hello", "levelname": "INFO", "name": "x", "fields": fields})
    assert set(orjson.loads(JsonFormatter().format(record))) == {"time", "level", "logger", "message"}
