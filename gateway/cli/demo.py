"""`farebox demo`: everything at once, so that the first call works within a minute of cloning."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import click

from gateway.app import App
from gateway.cli.serve import run_gateway
from gateway.clock import new_id
from gateway.core.money import NANOS_PER_UNIT, format_nanos
from gateway.db import keys, wallets
from gateway.db.pool import Database
from gateway.settings import Settings, UpstreamSettings
from gateway.web.demo_upstream import demo_upstream

DEMO_CREDIT_NANOS = 5 * NANOS_PER_UNIT
# Tried first with an upstream of one's own: cheap, and known to most.
_LIKELY_MODELS = ("demo-chat", "gpt-4o-mini", "gpt-4.1-mini", "gpt-5-mini")


@click.command()
@click.pass_obj
def demo(settings: Settings) -> None:
    """Serve with a demo wallet of 5.00, its key printed; with no upstream configured, bring one along."""

    @asynccontextmanager
    async def upstreams() -> AsyncIterator[tuple[UpstreamSettings, ...]]:
        if settings.upstream:
            yield settings.upstream
            return
        async with demo_upstream() as base_url:
            yield (UpstreamSettings(name="demo", base_url=base_url, models=("demo-*",)),)

    async def announce(app: App) -> None:
        key = await _demo_key(app.database, settings.directory() / "demo-key")
        balance = await _balance(app.database, key)
        click.echo(_banner(app, key, balance))

    run_gateway(settings, upstreams, announce)


async def _demo_key(database: Database, path: Path) -> str:
    """The demo wallet's key: made the first time, and the same one afterwards."""
    if path.exists():
        key = path.read_text(encoding="utf-8").strip()
        if await keys.by_hash(database, keys.hash_key(key)) is not None:
            return key
    key = keys.make_key()
    wallet_id = new_id()
    await wallets.create(database, wallet_id, "demo")
    await wallets.credit(database, wallet_id, new_id(), DEMO_CREDIT_NANOS, actor="farebox demo", reason="demo credit")
    await keys.create(database, key, new_id(), wallet_id, name="demo")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(key + "\n")
    return key


async def _balance(database: Database, key: str) -> str:
    row = await keys.by_hash(database, keys.hash_key(key))
    wallet = await wallets.get(database, str(row["wallet_id"])) if row is not None else None
    return format_nanos(wallet["balance_nanos"]) if wallet is not None else "?"


def _banner(app: App, key: str, balance: str) -> str:
    settings = app.settings
    host = "127.0.0.1" if settings.host in ("", "0.0.0.0", "::") else settings.host  # noqa: S104 - compared, not bound
    base_url = f"http://{host}:{app.port}/v1"
    ops = f"http://{settings.ops_host}:{app.ops_port}"
    model = next((name for name in _LIKELY_MODELS if app.shelf.find(name) is not None), "demo-chat")
    return f"""
Farebox is ready. The demo wallet has {balance}.

  base URL  {base_url}
  key       {key}

Try it:

  curl {base_url}/chat/completions \\
    -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' -i \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'

or, with `pip install openai`:

  from openai import OpenAI
  client = OpenAI(base_url="{base_url}", api_key="{key}")
  messages = [{{"role": "user", "content": "Hello"}}]
  for chunk in client.chat.completions.create(model="{model}", messages=messages, stream=True):
      print(chunk.choices[0].delta.content or "", end="", flush=True)

Watch it:

  {ops}/readyz   {ops}/healthz   {ops}/metrics

Ctrl-C stops everything; the wallet is kept in {settings.directory()}.
"""
