import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from gateway.db.keys import hash_key
from tests.cli.conftest import BadUsage
from tests.support.command import Command

UNKNOWN = "00000000-0000-7000-8000-000000000000"
LISTED_MEMBERS = {
    *("key_id", "wallet_id", "name", "hint", "status", "models", "expires_at", "revoked_at", "created_at"),
}


@pytest.fixture
def wallet_id(farebox: Command) -> str:
    return str(farebox.json("wallet", "create")["wallet_id"])


def query(dsn: str, statement: str, *arguments: object) -> object:
    async def ask() -> object:
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetchval(statement, *arguments)
        finally:
            await connection.close()

    return asyncio.run(ask())


def test_a_key_is_shown_once_and_stored_as_its_hash(farebox: Command, wallet_id: str, database_url: str) -> None:
    made = farebox.json("key", "create", "--wallet", wallet_id, "--name", "laptop", "--models", "a, b,a")
    assert made.keys() == {"key", "key_id", "wallet_id", "name", "models", "expires_at"}
    assert made["key"].startswith("fb-")
    assert (made["wallet_id"], made["name"], made["models"], made["expires_at"]) == (
        *(wallet_id, "laptop"),
        *(["a", "b"], None),
    )
    stored = query(database_url, "SELECT key_id FROM api_keys WHERE key_hash = $1", hash_key(made["key"]))
    assert str(stored) == made["key_id"]
    listed = farebox("key", "list", "--json")
    assert made["key"] not in listed.out
    assert listed.document["keys"][0].keys() == LISTED_MEMBERS
    assert farebox("key", "create", "--wallet", wallet_id).out.startswith("key      fb-")


@pytest.mark.parametrize(
    ("given", "after"),
    [("90m", timedelta(minutes=90)), ("12h", timedelta(hours=12)), ("30d", timedelta(days=30))],
)
def test_a_key_expires_after_a_span(farebox: Command, wallet_id: str, given: str, after: timedelta) -> None:
    made = farebox.json("key", "create", "--wallet", wallet_id, "--expires", given)
    left = datetime.fromisoformat(made["expires_at"]) - datetime.now(UTC)
    assert after - timedelta(minutes=1) < left <= after


def test_a_time_without_a_zone_is_utc(farebox: Command, wallet_id: str) -> None:
    made = farebox.json("key", "create", "--wallet", wallet_id, "--expires", "2090-01-31T12:00")
    assert made["expires_at"] == "2090-01-31T12:00:00+00:00"
    made = farebox.json("key", "create", "--wallet", wallet_id, "--expires", "2090-01-31T12:00+02:00")
    assert made["expires_at"] == "2090-01-31T10:00:00+00:00"


def test_keys_are_listed_by_wallet_and_state(farebox: Command, wallet_id: str, database_url: str) -> None:
    other = farebox.json("wallet", "create")["wallet_id"]
    key_ids = [farebox.json("key", "create", "--wallet", wallet_id)["key_id"] for _ in range(3)]
    farebox.json("key", "create", "--wallet", other)
    assert farebox.json("key", "revoke", key_ids[0]) == {"key_id": key_ids[0], "status": "revoked"}
    query(database_url, "UPDATE api_keys SET expires_at = now() WHERE key_id = $1", key_ids[1])
    listed = farebox.json("key", "list", "--wallet", wallet_id)
    assert [(one["key_id"], one["status"]) for one in listed["keys"]] == list(
        zip(key_ids, ("revoked", "expired", "active"), strict=True)
    )
    assert len(farebox.json("key", "list")["keys"]) == 4
    cut = farebox.json("key", "list", "--limit", "2")
    assert (len(cut["keys"]), cut["truncated"]) == (2, True)
    rest = farebox.json("key", "list", "--after", cut["next_after"])
    assert (rest["truncated"], rest["next_after"]) == (False, None)
    assert cut["keys"] + rest["keys"] == farebox.json("key", "list")["keys"]
    assert farebox.json("key", "list", "--after", UNKNOWN)["keys"] == []
    table = farebox("key", "list", "--limit", "3").out
    assert all(word in table for word in ("revoked", "expired", "active", "more: --after"))


def test_revoking_twice_is_harmless(farebox: Command, wallet_id: str) -> None:
    key_id = farebox.json("key", "create", "--wallet", wallet_id)["key_id"]
    revoked_at = [
        farebox.json("key", "revoke", key_id) and farebox.json("key", "list")["keys"][0]["revoked_at"] for _ in range(2)
    ]
    assert revoked_at[0] == revoked_at[1]


def test_what_does_not_exist_is_refused(farebox: Command) -> None:
    said = farebox("key", "create", "--wallet", UNKNOWN, "--json")
    assert (said.exit_code, said.document["error"]["code"]) == (1, "wallet_unknown")
    said = farebox("key", "revoke", UNKNOWN, "--json")
    assert (said.exit_code, said.document["error"]["code"]) == (1, "key_unknown")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["create"], "Missing option '--wallet'"),
        (["create", "--wallet", "w"], "'w' is not an id"),
        (["create", "--wallet", UNKNOWN, "--models", "a,,b"], "names separated by commas"),
        (["create", "--wallet", UNKNOWN, "--models", ",".join(map(str, range(101)))], "at most 100 names"),
        (["create", "--wallet", UNKNOWN, "--expires", "soon"], "'soon' is not a time such as"),
        (["create", "--wallet", UNKNOWN, "--expires", "0d"], "must lie in the future"),
        (["create", "--wallet", UNKNOWN, "--expires", "2020-01-01"], "must lie in the future"),
        (["create", "--wallet", UNKNOWN, "--expires", "99999999d"], "at most 36500 days"),
        (["create", "--wallet", UNKNOWN, "--expires", "9999-12-31"], "too far away"),
        (["create", "--wallet", UNKNOWN, "--expires", "9999-12-31T23:59:59-12:00"], "is not a time"),
        (["revoke", "k"], "'k' is not an id"),
        (["revoke"], "Missing argument 'KEY_ID'"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_bad_usage_is_one_clear_line(bad_usage: BadUsage, arguments: list[str], why: str) -> None:
    assert why in bad_usage("key", *arguments)
