"""`farebox key`: API keys of wallets."""

from collections.abc import Sequence
from datetime import datetime

import click

from gateway.cli.command import FareboxGroup
from gateway.cli.context import Refused, run
from gateway.cli.output import moment, print_facts, print_json, print_line, print_table
from gateway.cli.parameters import expiry, identifier, limit_option, names, text
from gateway.clock import new_id
from gateway.db import keys
from gateway.db.pool import Database, Row
from gateway.settings import Settings


@click.group(cls=FareboxGroup)
def key() -> None:
    """API keys: each spends from one wallet."""


@key.command()
@click.option("--wallet", "wallet_id", required=True, callback=identifier, metavar="WALLET", help="Whose money.")
@click.option("--name", default="", callback=text, help="For people.")
@click.option("--models", callback=names, metavar="A,B", help="The only models it may use; all without this.")
@click.option("--expires", callback=expiry, metavar="WHEN", help="A time (ISO 8601), or a span: 30d, 12h, 15m.")
@click.pass_obj
def create(
    settings: Settings,
    wallet_id: str,
    name: str,
    models: tuple[str, ...] | None,
    expires: datetime | None,
    as_json: bool,
) -> None:
    """Make a key. It is shown now and never again: only its hash is stored."""
    secret, key_id = keys.make_key(), new_id()

    async def work(database: Database) -> bool:
        return await keys.create(database, secret, key_id, wallet_id, name=name, models=models, expires_at=expires)

    if not run(settings, work):
        raise Refused("wallet_unknown", f"there is no wallet {wallet_id}")
    if as_json:
        print_json(
            {
                "key": secret,
                "key_id": key_id,
                "wallet_id": wallet_id,
                "name": name,
                "models": models,
                "expires_at": moment(expires),
            }
        )
        return
    allowed = ", ".join(models) if models is not None else "all"
    facts = {"key": secret, "id": key_id, "wallet": wallet_id, "name": name, "models": allowed}
    print_facts(facts | {"expires": expires if expires is not None else "never"})
    print_line("\nKeep the key: it is not shown again.")


@key.command(name="list")
@click.option("--wallet", "wallet_id", callback=identifier, metavar="WALLET", help="Of this wallet only.")
@click.option("--after", callback=identifier, metavar="KEY_ID", help="Go on after this key.")
@limit_option(100)
@click.pass_obj
def list_keys(settings: Settings, wallet_id: str | None, after: str | None, limit: int, as_json: bool) -> None:
    """Keys by wallet, without their secrets."""
    rows = run(settings, lambda database: keys.list_of(database, wallet_id, after, limit + 1))
    shown = rows[:limit]
    following = str(shown[-1]["key_id"]) if len(rows) > limit else None
    if as_json:
        documents = [_document(row) for row in shown]
        print_json({"keys": documents, "truncated": following is not None, "next_after": following})
        return
    _print(shown)
    if following is not None:
        print_line(f"more: --after {following}")


@key.command()
@click.argument("key_id", metavar="KEY_ID", callback=identifier)
@click.pass_obj
def revoke(settings: Settings, key_id: str, as_json: bool) -> None:
    """Revoke a key in every gateway within a second; calls in flight are finished."""
    if not run(settings, lambda database: keys.revoke(database, key_id)):
        raise Refused("key_unknown", f"there is no key {key_id}")
    if as_json:
        print_json({"key_id": key_id, "status": "revoked"})
    else:
        print_line(f"revoked {key_id}")


def _status(row: Row) -> str:
    if row["revoked_at"] is not None:
        return "revoked"
    return "expired" if row["is_expired"] else "active"


def _print(rows: Sequence[Row]) -> None:
    print_table(
        ("key", "begins and ends", "wallet", "name", "status", "models", "expires", "made"),
        (
            (
                row["key_id"],
                row["hint"],
                row["wallet_id"],
                row["name"],
                _status(row),
                ", ".join(row["models"]) if row["models"] is not None else "all",
                row["expires_at"] or "never",
                row["created_at"],
            )
            for row in rows
        ),
    )


def _document(row: Row) -> dict[str, object]:
    return {
        "key_id": str(row["key_id"]),
        "wallet_id": str(row["wallet_id"]),
        "name": row["name"],
        "hint": row["hint"],
        "status": _status(row),
        "models": row["models"],
        "expires_at": moment(row["expires_at"]),
        "revoked_at": moment(row["revoked_at"]),
        "created_at": moment(row["created_at"]),
    }
