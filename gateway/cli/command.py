"""The kinds of command: all but serve and demo have --json, and a refusal is a document too where that is given."""

from typing import Any

import click

from gateway.cli.context import Refused
from gateway.cli.output import print_json


class FareboxCommand(click.Command):
    """A command whose function takes `as_json`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON document."))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Refused as error:
            if ctx.params["as_json"]:
                print_json({"error": {"code": error.code, "message": str(error)}})
            raise


class FareboxGroup(click.Group):
    """A group of such commands."""

    command_class = FareboxCommand
