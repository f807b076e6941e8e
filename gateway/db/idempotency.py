"""Idempotency keys: who has one, where its call stands, and the reply that is kept. All of it raises LedgerAway."""

from enum import StrEnum
from typing import NamedTuple

from gateway.db.pool import Database


class Standing(StrEnum):
    """What idempotency_look in sql/queries/idempotency.sql may answer; its order there is that of precedence."""

    OTHER_BODY = "other_body"  # the key was used for another request
    FINISHED = "finished"  # the reply is kept
    LOST = "lost"  # charged, and the reply is not kept
    RUNNING = "running"
    FREE = "free"  # past its time, or ended without a charge and nothing can charge it any more: may be taken over
    UNPLACED = "unplaced"  # claimed long ago and no hold: free once its hold can no longer be placed
    SWEPT = "swept"  # the gateway died and nothing was charged: free once it can no longer be settled late


class Key(NamedTuple):
    """A client's key as it is stored: hashes of 32 bytes. `body_hash` stands for the whole request."""

    wallet_id: str
    key_hash: bytes
    body_hash: bytes


class Found(NamedTuple):
    """A key that somebody has. `reply` is there, encrypted, where it is FINISHED."""

    standing: Standing
    hold_id: str
    charged_nanos: int
    reply: bytes | None


async def claim(database: Database, key: Key, hold_id: str, *, keep_seconds: int) -> bool:
    """Take the key for the call of this hold; False if somebody has it."""
    row = await database.fetch_one(
        "idempotency_claim", key.wallet_id, key.key_hash, key.body_hash, hold_id, float(keep_seconds)
    )
    return row is not None


async def look(database: Database, key: Key, *, unplaced_seconds: float, grace_seconds: float) -> Found | None:
    """Where the key's call stands; None if nobody has the key any more."""
    row = await database.fetch_one(
        "idempotency_look", key.wallet_id, key.key_hash, key.body_hash, unplaced_seconds, grace_seconds
    )
    if row is None:
        return None
    return Found(Standing(row["standing"]), str(row["hold_id"]), row["charged_nanos"], row["reply"])


async def take_over(database: Database, key: Key, old_hold_id: str, hold_id: str, *, keep_seconds: int) -> bool:
    """Take a FREE key; False if another was quicker."""
    row = await database.fetch_one(
        "idempotency_take_over", *key[:2], old_hold_id, key.body_hash, hold_id, float(keep_seconds)
    )
    return row is not None


async def keep(database: Database, key: Key, hold_id: str, reply: bytes, *, keep_seconds: int) -> bool:
    """Keep the encrypted reply; False if the key is another call's by now."""
    row = await database.fetch_one("idempotency_keep", key.wallet_id, key.key_hash, hold_id, reply, float(keep_seconds))
    return row is not None


async def release(database: Database, key: Key, hold_id: str) -> bool:
    """Forget the key if its call has ended, or was never begun, without a charge."""
    return await database.fetch_one("idempotency_release", key.wallet_id, key.key_hash, hold_id) is not None


async def lose(database: Database, key: Key, hold_id: str) -> bool:
    """Say of a call that was charged that its reply is not kept."""
    return await database.fetch_one("idempotency_lose", key.wallet_id, key.key_hash, hold_id) is not None


async def forget(database: Database, count: int) -> int:
    """Delete up to `count` keys past their time; how many were."""
    return len(await database.fetch("idempotency_forget", count))
