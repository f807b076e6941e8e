import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from gateway import __version__
from gateway.cli.command import FareboxCommand
from gateway.cli.main import COMMANDS, EPILOG, cli
from gateway.db.embedded import EmbeddedPostgres
from gateway.db.embedded_process import live_postmaster
from tests.cli.conftest import BadUsage
from tests.support.command import Command
from tests.support.embedded import WAIT_SECONDS_MAX, new_home


def leaves(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with its path."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name), command


def test_every_command_has_json_and_says_what_it_does() -> None:
    found = dict(leaves(cli))
    assert {path[0] for path in found} == set(COMMANDS)
    for path, command in found.items():
        assert command.help, path
        if path[0] not in {"serve", "demo"}:
            assert isinstance(command, FareboxCommand), path
            assert "as_json" in {parameter.name for parameter in command.params}, path


def test_help_documents_the_exit_codes(tmp_path: Path) -> None:
    said = Command(None, tmp_path)("--help")
    assert said.exit_code == 0
    for line in EPILOG.splitlines():
        assert line.strip("\b ") in said.out
    assert all(f"\n    {number} " in said.out for number in (0, 1, 2, 3, 130))


def test_help_is_for_those_with_wrong_settings_too(tmp_path: Path) -> None:
    said = Command(None, tmp_path)("wallet", "credit", "--help", FAREBOX_PORT="many")
    assert said.exit_code == 0
    assert "--posting-id" in said.out


def test_no_command_is_bad_usage(tmp_path: Path) -> None:
    for arguments in ((), ("wallet",)):
        said = Command(None, tmp_path)(*arguments)
        assert (said.exit_code, said.out) == (2, "")
        assert "Commands:" in said.err


def test_an_unknown_command_or_option_is_one_line(bad_usage: BadUsage) -> None:
    assert "No such command 'walet'" in bad_usage("walet")
    assert "(see `farebox wallet list --help`)" in bad_usage("wallet", "list", "--all")


def test_bad_settings_are_one_line_each(tmp_path: Path) -> None:
    file = tmp_path / "farebox.toml"
    file.write_text('port = 70000\nprot = 1\n[[upstream]]\nname = "a"\nbase_url = "ftp://x"\n')
    said = Command(None, tmp_path)("--config", str(file), "wallet", "list")
    assert (said.exit_code, said.out) == (2, "")
    assert [line.split(":")[1].strip() for line in said.err.splitlines()] == ["port", "upstream.0.base_url", "prot"]
    for arguments, why in (
        (("--config", str(tmp_path / "absent.toml"), "wallet", "list"), "absent.toml: cannot be read"),
        (("--config", str(tmp_path), "audit"), "cannot be read"),
    ):
        said = Command(None, tmp_path)(*arguments)
        assert (said.exit_code, said.err.count("\n")) == (2, 1)
        assert why in said.err
    said = Command(None, tmp_path)("wallet", "list", FAREBOX_PROT="1")
    assert (said.exit_code, said.err) == (2, "farebox: FAREBOX_PROT: unknown setting\n")


def process(arguments: list[str], data_directory: Path, **options: int) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FAREBOX_")}
    return subprocess.Popen(
        [sys.executable, "-m", "gateway", *arguments],
        env=environment | {"FAREBOX_DATA_DIRECTORY": str(data_directory)},
        stdout=options.get("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    with process(["--version"], tmp_path) as running:
        assert running.communicate(timeout=WAIT_SECONDS_MAX) == (f"farebox {__version__}\n", "")
    assert running.returncode == 0


def test_a_reader_that_leaves_makes_no_noise(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with process(["--help"], tmp_path, stdout=writing) as running:
        os.close(writing)
        assert running.communicate(timeout=WAIT_SECONDS_MAX)[1] == ""
    assert running.returncode == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_leaves_no_server_behind(number: signal.Signals) -> None:
    with new_home() as home, process(["wallet", "list"], home.parent) as running:
        server = EmbeddedPostgres(home)
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while not ((found := live_postmaster(home / "cluster")) and found.ready) and time.monotonic() < deadline:
            time.sleep(0.002)
        running.send_signal(number)
        _, said = running.communicate(timeout=WAIT_SECONDS_MAX)
        assert not server.is_running()
        assert (running.returncode, said.strip()) == (130, "farebox: interrupted")
