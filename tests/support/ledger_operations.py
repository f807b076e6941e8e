"""The ledger as a lane speaks to it, and what a test wants to read of it. Amounts in nanos."""

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import orjson

from gateway.clock import new_id
from gateway.db.lanes import Answer, Outcome
from gateway.db.queries import invariants, queries

Op = dict[str, Any]

KEY_ID = "01900000-0000-7000-8000-00000000000a"
PRICE_ID = 1  # the first price of a fresh database
ENDPOINT = "chat.completions"
SHARED = {"key": KEY_ID, "price": PRICE_ID, "endpoint": ENDPOINT}
MONEY_TABLES = ("holds", "ledger_entries", "ledger_heads", "ledger_seals", "usage_dropped", "usage_events", "wallets")


def hold(hold_id: str, ceiling: int, minimum: int | None = None, *, seconds: int = 60) -> Op:
    """Set `ceiling` aside, or what there is down to `minimum`."""
    least = ceiling if minimum is None else minimum
    return {"op": "hold", "hold": hold_id, **SHARED, "ceiling": ceiling, "minimum": least, "seconds": seconds}


def settle(hold_id: str, cost: int, *, basis: str = "reported", reason: str | None = None) -> Op:
    """Charge `cost`."""
    priced = {"cost": cost, "picos": cost * 1_000, "usage": {"input": cost}, "basis": basis}
    return {"op": "settle", "hold": hold_id, **SHARED, "upstream": "up0", **priced, "reason": reason}


def void(hold_id: str, *, reason: str = "upstream_refused") -> Op:
    """Release, and charge nothing."""
    return {"op": "void", "hold": hold_id, **SHARED, "upstream": None, "reason": reason}


def checkpoint(hold_id: str, cost: int, *, seconds: int = 60) -> Op:
    """Renew, with the `cost` so far."""
    priced = {"cost": cost, "picos": cost * 1_000, "usage": {"input": cost}}
    return {"op": "checkpoint", "hold": hold_id, **priced, "seconds": seconds}


def extend(hold_id: str, ceiling: int, minimum: int | None = None, *, seconds: int = 60) -> Op:
    """Let a hold cover `ceiling` in all, or what there is down to `minimum`."""
    least = ceiling if minimum is None else minimum
    return {"op": "extend", "hold": hold_id, "ceiling": ceiling, "minimum": least, "seconds": seconds}


def expire(hold_id: str) -> Op:
    """What the sweep asks."""
    return {"op": "expire", "hold": hold_id}


def id_at(moment: datetime) -> str:
    """An id made at `moment`: a UUIDv7 of that millisecond."""
    stamp = f"{round(moment.timestamp() * 1_000):012x}"
    return f"{stamp[:8]}-{stamp[8:]}-7000-8000-{os.urandom(6).hex()}"


def id_before_now(**ago: float) -> str:
    """An id made that long ago, in the words of timedelta; a negative figure is in the future."""
    return id_at(datetime.now(UTC) - timedelta(**ago))


class Ledger:
    """One connection. `apply` sends the very statement that a lane sends."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection

    async def wallet(self, credit: int = 0, *, floor: int = 0) -> str:
        """A new wallet with `credit` in it."""
        wallet_id = new_id()
        await self.connection.execute(queries()["wallet_create"], wallet_id, "test", floor)
        if credit:
            assert await self.post(wallet_id, credit) is Outcome.POSTED
        return wallet_id

    async def post(
        self, wallet_id: str, amount: int, *, kind: str = "credit", posting_id: str | None = None
    ) -> Outcome:
        """Credit or adjust."""
        arguments = (wallet_id, posting_id or new_id(), kind, f"{kind}s", amount, "test", "a test")
        row = await self.connection.fetchrow(queries()["wallet_post"], *arguments)
        assert row is not None
        return Outcome(row["outcome"])

    async def apply_all(self, batches: Sequence[tuple[str, Sequence[Op]]]) -> list[list[Answer]]:
        """One statement for all `batches` of (wallet id, operations), in the order given."""
        documents = [orjson.dumps(list(operations)).decode() for _, operations in batches]
        rows = await self.connection.fetch(queries()["lane_apply"], [wallet_id for wallet_id, _ in batches], documents)
        assert [row["n"] for row in rows] == list(range(1, len(batches) + 1))
        return [_answers(dict(row)) for row in rows]

    async def apply(self, wallet_id: str, *operations: Op) -> list[Answer]:
        """One statement for one wallet."""
        return (await self.apply_all([(wallet_id, operations)]))[0]

    async def one(self, wallet_id: str, operation: Op) -> Answer:
        """One operation alone."""
        return (await self.apply(wallet_id, operation))[0]

    async def told(self, wallet_id: str, operation: Op) -> tuple[str, int, int]:
        """(outcome, amount, shortfall) of one operation alone."""
        answer = await self.one(wallet_id, operation)
        return str(answer.outcome), answer.amount_nanos, answer.shortfall_nanos

    async def resolved(self, wallet_id: str, resolution: str) -> str:
        """A hold of 60 with a checkpoint of 12 that was settled (for 20), voided, expired, or settled late (for 20)."""
        hold_id = new_id()
        await self.one(wallet_id, hold(hold_id, 60))
        await self.one(wallet_id, checkpoint(hold_id, 12))
        if resolution in ("expired", "late"):
            await self.age(wallet_id, 120)
            assert await self.told(wallet_id, expire(hold_id)) == ("expired", 12, 0)
            if resolution == "late":
                assert await self.told(wallet_id, settle(hold_id, 20)) == ("settled_late", 8, 0)
        else:
            await self.one(wallet_id, settle(hold_id, 20) if resolution == "settled" else void(hold_id))
        return hold_id

    async def outcomes(self, wallet_id: str, *operations: Op) -> list[str]:
        """What became of each operation."""
        return [str(answer.outcome) for answer in await self.apply(wallet_id, *operations)]

    async def funds(self, wallet_id: str) -> tuple[int, int]:
        """(balance, held) as stored."""
        row = await self.connection.fetchrow(queries()["wallet_get"], wallet_id)
        assert row is not None
        return row["balance_nanos"], row["held_nanos"]

    async def rows(self, table: str, wallet_id: str) -> list[dict[str, Any]]:
        """All rows of a wallet by their key, times left out and ids as text."""
        found = await self.connection.fetch(f"SELECT * FROM {table} WHERE wallet_id = $1 ORDER BY 1, 2, 3", wallet_id)
        dropped = ("created_at", "renewed_at", "wallet_id")
        return [{name: _plain(value) for name, value in row.items() if name not in dropped} for row in found]

    async def age(self, wallet_id: str, seconds: float) -> None:
        """Let `seconds` pass for the holds of a wallet, by the database's clock."""
        await self.connection.execute(
            "UPDATE holds SET renewed_at = renewed_at - make_interval(secs => $2) WHERE wallet_id = $1",
            wallet_id,
            seconds,
        )

    async def fingerprint(self) -> str:
        """Of everything that is money. Equal before and after means that nothing was changed."""
        parts = [f"SELECT '{table}' AS name, t::text AS body FROM {table} AS t" for table in MONEY_TABLES]
        digest = "md5(coalesce(string_agg(name || body, '|' ORDER BY name, body), ''))"
        return str(await self.connection.fetchval(f"SELECT {digest} FROM ({' UNION ALL '.join(parts)}) AS x"))

    async def broken(self) -> dict[str, list[str]]:
        """Each invariant that does not hold, with its first differences."""
        found: dict[str, list[str]] = {}
        for name, statement in invariants().items():
            rows = await self.connection.fetch(statement)
            if rows:
                found[name] = [row["difference"] for row in rows[:3]]
        return found


@asynccontextmanager
async def open_ledger(dsn: str, **settings: str) -> AsyncIterator[Ledger]:
    """A Ledger of its own connection; the database gets its price if it has none. `settings` are PostgreSQL's."""
    connection = await asyncpg.connect(dsn, server_settings={"application_name": "test", **settings})
    try:
        if not await connection.fetch(queries()["price_history"], "test-model", 1):
            rates = ['{"input": 1000, "output": 4000}']
            now = [datetime.now(UTC)]
            await connection.execute(queries()["price_add"], ["test-model"], now, rates, ["[]"], ["{}"], ["test"])
        yield Ledger(connection)
    finally:
        connection.terminate()


def _answers(row: Mapping[str, Any]) -> list[Answer]:
    columns = (row["outcomes"], row["amounts"], row["shortfalls"], row["availables"])
    balance, held = row["balance_nanos"] or 0, row["held_nanos"] or 0
    return [
        Answer(Outcome(outcome), amount, shortfall, available, balance, held)
        for outcome, amount, shortfall, available in zip(*columns, strict=True)
    ]


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, (int, bool)) else str(value)
