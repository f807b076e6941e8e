"""The farebox command: finds the settings, finds the command, and turns every failure into a line and an exit code."""

import os
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click

from gateway import __version__
from gateway.cli.command import FareboxGroup
from gateway.cli.context import (
    EXIT_AWAY,
    EXIT_BAD,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    Misconfigured,
    OutcomeUnknown,
    Refused,
    away,
    fail,
)
from gateway.core.catalogue import InvalidPrice
from gateway.db.embedded import EmbeddedPostgresFailed
from gateway.db.migrate import UnsuitableServer
from gateway.db.pool import LedgerAway
from gateway.settings import InvalidSettings, load

# Each in a module of its own name, read only when it is asked for: `wallet list` need not load a web server.
COMMANDS = ("serve", "demo", "migrate", "doctor", "audit", "wallet", "key", "price", "usage", "journal")

EPILOG = """\b
Exit codes:
  0    done
  1    the answer is bad: a difference, a failed check, not found, or refused
  2    bad usage or configuration; one line on standard error says what to change
  3    the database is away
  130  interrupted

\b
With --json each command prints one document on standard output. Amounts come twice: as a decimal string in units
("balance": "5.00") and in whole nano-units ("balance_nanos": 5000000000). A refusal is
{"error": {"code": ..., "message": ...}}, and still one line on standard error.

\b
Settings come from --config FILE (or FAREBOX_CONFIG) and from FAREBOX_... in the environment. Without
FAREBOX_DATABASE_URL an embedded PostgreSQL under FAREBOX_DATA_DIRECTORY is used.
"""


class _Farebox(FareboxGroup):
    """The outermost group: loads commands late, and reports."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(f"gateway.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["farebox.help"] = "--help" in args
        return super().parse_args(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run and exit. Never a traceback for what a person can put right."""
        try:
            code = super().main(*args, **{"prog_name": "farebox", **kwargs, "standalone_mode": False})
            sys.stdout.flush()
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(EXIT_USAGE)
        except click.ClickException as error:
            fail(_usage_line(error), EXIT_USAGE)
        except (click.Abort, KeyboardInterrupt):
            fail("interrupted", EXIT_INTERRUPTED)
        except Refused as error:
            fail(str(error), EXIT_BAD)
        except (Misconfigured, InvalidSettings, InvalidPrice, EmbeddedPostgresFailed, UnsuitableServer) as error:
            fail(str(error), EXIT_USAGE)
        except LedgerAway as error:
            exit_code, line = away(error)
            fail(line, exit_code)
        except OutcomeUnknown as error:
            fail(str(error), EXIT_AWAY)
        except BrokenPipeError:
            # Whoever read the output has seen enough; Python's own flush at exit must not complain either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(EXIT_BAD)
        sys.exit(code if isinstance(code, int) else 0)


def _usage_line(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split())
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is None:
        return message
    return f"{message.removesuffix('.')} (see `{context.command_path} --help`)"


@click.group(cls=_Farebox, epilog=EPILOG, context_settings={"max_content_width": 120})
@click.version_option(__version__, prog_name="farebox", message="%(prog)s %(version)s")
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="A TOML file with settings.")
@click.pass_context
def cli(context: click.Context, config: Path | None) -> None:
    """Farebox: a metering gateway for OpenAI-compatible APIs."""
    if context.meta["farebox.help"]:
        # Help is for those whose settings are still wrong, too.
        with suppress(InvalidSettings):
            context.obj = load(os.environ, config=config)
    elif context.invoked_subcommand == "doctor":
        try:
            context.obj = load(os.environ, config=config)
        except InvalidSettings as error:
            context.obj = error  # the doctor says it
    else:
        context.obj = load(os.environ, config=config)


def main() -> None:
    """The entry point."""
    cli.main()
