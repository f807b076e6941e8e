import click
import orjson
import pytest
from click.testing import CliRunner

from gateway.cli.command import FareboxGroup
from gateway.cli.context import Refused


@click.group(cls=FareboxGroup)
def group() -> None:
    """Commands for this test."""


@group.command()
@click.argument("what")
def do(what: str, as_json: bool) -> None:
    if what == "wrong":
        raise Refused("wrong_thing", "that is wrong")
    click.echo(f"{what} {as_json}")


def test_every_command_of_a_group_has_json() -> None:
    assert CliRunner().invoke(group, ["do", "it"]).stdout == "it False\n"
    assert CliRunner().invoke(group, ["do", "it", "--json"]).stdout == "it True\n"


def test_a_refusal_is_a_document_where_json_is_asked_for() -> None:
    for arguments, document in (([], None), (["--json"], {"code": "wrong_thing", "message": "that is wrong"})):
        result = CliRunner().invoke(group, ["do", "wrong", *arguments])
        assert isinstance(result.exception, Refused)
        assert (orjson.loads(result.stdout)["error"] if document else result.stdout or None) == document


def test_a_refusal_is_still_raised() -> None:
    with pytest.raises(Refused):
        CliRunner().invoke(group, ["do", "wrong", "--json"], catch_exceptions=False)
