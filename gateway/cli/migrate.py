"""`farebox migrate`: bring the database to this release."""

import asyncio

import click

from gateway.cli.command import FareboxCommand
from gateway.cli.context import database_server
from gateway.cli.output import print_json, print_line
from gateway.db import migrate as migrator
from gateway.settings import Settings


@click.command(cls=FareboxCommand)
@click.pass_obj
def migrate(settings: Settings, as_json: bool) -> None:
    """Bring the database to this release. Safe to repeat, and while gateways run."""
    with database_server(settings) as dsn:
        applied = asyncio.run(migrator.migrate(dsn))
    if as_json:
        print_json({"applied": applied})
    elif applied:
        print_line(f"applied {', '.join(applied)}")
    else:
        print_line("nothing to apply: the database is current")
