"""What a runbook tells an operator to run is run here, as far as a machine can."""

import re
from pathlib import Path

import asyncpg
import click
import pytest

from gateway.cli.main import cli

RUNBOOKS = Path(__file__).parents[2] / "deploy" / "runbooks"
PAGES = sorted(RUNBOOKS.glob("*.md"))


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, text) of every fenced block of this language."""
    fence = re.compile(rf"^ *```{language}\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
    return [(page.stem, text) for page in PAGES for text in fence.findall(page.read_text())]


async def test_every_query_runs(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        for page, query in blocks("sql"):
            try:
                await connection.fetch(query)
            except asyncpg.PostgresError as error:
                pytest.fail(f"{page}: {error}\n{query}")
    finally:
        await connection.close()


def test_every_farebox_command_exists() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    spoken = re.findall(r"`farebox ([a-z][a-z ]*)", text) + re.findall(r"^ *farebox ([a-z][a-z ]*)", text, re.MULTILINE)
    assert spoken
    for words in spoken:
        command: click.Command = cli
        context = click.Context(cli)
        for word in words.split():
            if not isinstance(command, click.Group):
                break
            found = command.get_command(context, word)
            assert found is not None, f"farebox {words}: there is no such command"
            command = found


def test_every_link_between_pages_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            assert (RUNBOOKS / target).is_file(), f"{page.name} links to {target}"
