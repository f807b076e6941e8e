from datetime import UTC, datetime, timedelta, timezone

import pytest

from gateway.cli.output import amounts, console, moment, print_facts, print_table, rates_document
from gateway.core.catalogue import Meter


def test_an_amount_comes_as_text_and_as_nanos() -> None:
    assert amounts(balance=5_000_000_000, short=-1) == {
        "balance": "5.00",
        "balance_nanos": 5_000_000_000,
        "short": "-0.000000001",
        "short_nanos": -1,
    }


def test_rates_come_as_text_and_as_picos() -> None:
    sold = {Meter.OUTPUT: 2, Meter.INPUT: 1_000_000, "images/high": 40_000_000_000, Meter.AUDIO_MILLISECONDS: 100_000}
    assert rates_document(sold) == {
        "rates_per_million": {"input": "1.00", "output": "0.000002"},
        "rates_per_unit": {"audio_minutes": "0.006", "images/high": "0.04"},
        "rates_picos": {
            "input": 1_000_000,
            "output": 2,
            "audio_milliseconds": 100_000,
            "images/high": 40_000_000_000,
        },
    }


def test_a_moment_is_in_utc() -> None:
    berlin = timezone(timedelta(hours=2))
    assert moment(datetime(2026, 7, 1, 12, tzinfo=berlin)) == "2026-07-01T10:00:00+00:00"
    assert moment(None) is None


def test_a_table_for_a_pipe_is_plain_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    at = datetime(2026, 7, 1, 12, tzinfo=UTC)
    print_table(("name", "amount>", "at"), [("[b]x[/b]", "5.00", at), ("y" * 200, None, None)], title="all")
    title, head, first, second = capsys.readouterr().out.splitlines()
    assert title == "all"
    assert head.split() == ["name", "amount", "at"]
    assert first.split() == ["[b]x[/b]", "5.00", "2026-07-01", "12:00:00Z"]
    assert second.split() == ["y" * 200, "–", "–"]  # noqa: RUF001
    assert first.index("5.00") + 4 == head.index("amount") + 6
    assert not console().is_terminal


def test_facts_are_one_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts({"name": "", "balance": "5.00"})
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["name", "–"], ["balance", "5.00"]]  # noqa: RUF001
