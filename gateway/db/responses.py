"""Responses that upstreams keep: whose they are, and what settles those that are not settled. All raises LedgerAway."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from gateway.db.pool import Database, Row

# For how long a response may be named by its wallet: as long as OpenAI keeps one.
KEPT_SECONDS = 30 * 86_400.0


class Owner(NamedTuple):
    """Who made a response, and where it is. `unsettled` is what settles it, None where nothing is left to be.

    `look_seconds` is when a new one is first looked at.
    """

    wallet_id: str
    response_id: str
    upstream: str
    hold_id: str
    unsettled: dict[str, Any] | None
    age_seconds: float = 0.0
    is_resolved: bool = False
    look_seconds: float = 0.0


async def own(database: Database, owners: Sequence[Owner]) -> set[tuple[str, str]]:
    """Write them down, no two of them the same; those that were: (wallet id, response id)."""
    document = [
        {
            "wallet": owner.wallet_id,
            "response": owner.response_id,
            "upstream": owner.upstream,
            "hold": owner.hold_id,
            "unsettled": owner.unsettled,
            "seconds": None if owner.unsettled is None else owner.look_seconds,
        }
        for owner in owners
    ]
    rows = await database.fetch("response_own", orjson.dumps(document).decode())
    return {(str(row["wallet_id"]), row["response_id"]) for row in rows}


async def owner(database: Database, wallet_id: str, response_id: str) -> Owner | None:
    """The wallet's response of this id, or None."""
    row = await database.fetch_one("response_owner", wallet_id, response_id, KEPT_SECONDS)
    return None if row is None else _owner(row)


async def due(database: Database, count: int, *, lease_seconds: float) -> list[Owner]:
    """Unsettled responses to look at now; nobody else is given them meanwhile."""
    rows = await database.fetch("responses_due", count, lease_seconds)
    return [_owner(row)._replace(is_resolved=row["is_resolved"]) for row in rows]


async def look_later(database: Database, found: Owner, seconds: float) -> bool:
    """Look again after so many seconds; False if it is settled."""
    return await database.fetch_one("response_look_later", found.wallet_id, found.response_id, seconds) is not None


async def relayed(database: Database, found: Owner, output_count: int) -> bool:
    """Its client has been sent so much of an unsettled one; False if it is settled."""
    row = await database.fetch_one("response_relayed", found.wallet_id, found.response_id, output_count)
    return row is not None


async def settled(database: Database, wallet_id: str, response_id: str, hold_id: str) -> bool:
    """Nothing is left to be settled."""
    return await database.fetch_one("response_settled", wallet_id, response_id, hold_id) is not None


async def unsettled(database: Database) -> int:
    """How many work in the background."""
    row = await database.fetch_one("responses_unsettled")
    return 0 if row is None else int(row["responses"])


async def forget(database: Database, count: int) -> int:
    """Delete up to `count` that are past their time; how many were."""
    return len(await database.fetch("responses_forget", count, KEPT_SECONDS))


def _owner(row: Row) -> Owner:
    raw = row["unsettled"]
    return Owner(
        str(row["wallet_id"]),
        row["response_id"],
        row["upstream"],
        str(row["hold_id"]),
        None if raw is None else orjson.loads(raw),
        row["age_seconds"],
    )
