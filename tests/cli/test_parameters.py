"""What is refused is tested with the commands that take it; here is what is accepted, and how it is read."""

import os
import pwd
from collections.abc import Callable
from datetime import UTC, datetime

import click
import pytest

from gateway.cli import parameters

CONTEXT = click.Context(click.Command("test"))
PARAMETER = click.Option(["--test"])
ID = "01a1fd3f-3c26-72b3-9880-40cb5e1fde44"


@pytest.mark.parametrize(
    ("read", "given", "value"),
    [
        (parameters.identifier, ID, ID),
        (parameters.identifier, ID.upper(), ID),
        (parameters.identifier, ID.replace("-", ""), ID),
        (parameters.amount_any, "-0.25", -250_000_000),
        (parameters.amount_positive, "0.000000001", 1),
        (parameters.amount_not_negative, "0", 0),
        (parameters.amount_not_zero, "-1", -1_000_000_000),
        (parameters.rate, "2.50", 2_500_000),
        (parameters.rate, ".5", 500_000),
        (parameters.rate, "0", 0),
        (parameters.text, "", ""),
        (parameters.text_required, "Zahlung für März", "Zahlung für März"),
        (parameters.names, "b,a, b", ("b", "a")),
        (parameters.moment, "2030-01-31", datetime(2030, 1, 31, tzinfo=UTC)),
        (parameters.moment, "2030-01-31T12:00:00-01:00", datetime(2030, 1, 31, 13, tzinfo=UTC)),
        (parameters.moment, "2030-01-31T12:00:00Z", datetime(2030, 1, 31, 12, tzinfo=UTC)),
    ],
)
def test_what_is_typed_is_read(read: Callable[..., object], given: str, value: object) -> None:
    assert read(CONTEXT, PARAMETER, given) == value
    if read is not parameters.text_required:
        assert read(CONTEXT, PARAMETER, None) is None


@pytest.mark.parametrize(
    ("read", "given"),
    [
        (parameters.identifier, "x" * 10_000),
        (parameters.amount_any, "٣"),
        (parameters.rate, "٣"),
        (parameters.rate, "1_0"),
        (parameters.rate, "inf"),
        (parameters.rate, ""),
        (parameters.text, " x"),
        (parameters.text, "\udcff"),
        (parameters.expiry, "1" * 10 + "d"),
        (parameters.expiry, "0001-01-01T00:00:00+23:59"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(read: Callable[..., object], given: str) -> None:
    with pytest.raises(click.BadParameter) as refused:
        read(CONTEXT, PARAMETER, given)
    assert len(refused.value.message) < 200
    assert "\n" not in refused.value.message


def test_the_user_is_whom_the_operating_system_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    # The environment could say anything.
    monkeypatch.setenv("USER", "somebody-else")
    monkeypatch.setenv("LOGNAME", "somebody-else")
    assert parameters.operating_user() == pwd.getpwuid(os.getuid()).pw_name
