"""The systemd unit agrees with the gateway that it runs."""

import configparser
import shlex
from pathlib import Path

import click
import pytest

from gateway.cli.main import cli
from gateway.db.embedded import END_SECONDS_MAX
from gateway.settings import Settings
from gateway.workers.supervisor import CLOSING_SECONDS_MAX

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "farebox.service"


@pytest.fixture
def service() -> configparser.SectionProxy:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]  # names are case-sensitive
    unit.read_string(UNIT.read_text())
    return unit["Service"]


def test_only_the_gateway_is_told_to_stop(service: configparser.SectionProxy) -> None:
    # With control-group the embedded PostgreSQL would shut down under the calls being drained.
    assert service["KillMode"] == "mixed"


def test_systemd_waits_longer_than_a_stop_takes(service: configparser.SectionProxy) -> None:
    assert int(service["TimeoutStopSec"]) > Settings().stop_seconds + CLOSING_SECONDS_MAX + END_SECONDS_MAX


def test_bad_configuration_is_not_tried_again(service: configparser.SectionProxy) -> None:
    assert service["RestartPreventExitStatus"] == "2"


def test_a_reload_goes_to_the_supervisor_alone(service: configparser.SectionProxy) -> None:
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"


def test_what_it_starts_exists(service: configparser.SectionProxy) -> None:
    program, *arguments = shlex.split(service["ExecStart"])
    assert Path(program).name == "farebox"
    assert arguments[0] == "--config"
    assert cli.get_command(click.Context(cli), arguments[2]) is not None
