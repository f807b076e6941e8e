"""The audit: every invariant, the chain of seals and every cost anew, all seen in one snapshot while calls go on.

Rows are streamed through cursors, so that memory is bounded whatever the size of the ledger. They are read in no
order; the first difference of a check is the least by wallet, hold and text, the same in every run.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import asyncpg
import orjson

from gateway.core.audit import Difference, Finding, Unexplained, recompute_picos
from gateway.core.catalogue import InvalidPrice, Price
from gateway.core.money import round_nanos
from gateway.db.audit_chain import ENTRIES_CHECK, check_entries, check_heads
from gateway.db.pool import Connection, LedgerAway, connect, is_away
from gateway.db.prices import price_from_row
from gateway.db.queries import invariants, queries
from gateway.db.streams import lift_time_limits, stream

COSTS_CHECK = "every_cost_follows_from_its_price"
# More versions than this are forgotten and read again.
PRICES_KEPT_MAX = 20_000

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Audit:
    """Every check, invariants first in the order of sql/invariants.sql; and the newest head of the chain, which stands
    for the `sealed` entries of all `entries`."""

    findings: tuple[Finding, ...]
    head: str
    entries: int
    sealed: int

    @property
    def is_clean(self) -> bool:
        return not any(finding.differences for finding in self.findings)


async def audit(
    dsn: str, *, kept: tuple[int, bytes] | None = None, on_progress: Progress = lambda _check, _done, _total: None
) -> Audit:
    """Check everything; also that `kept`, an earlier head and its hash, is in the chain where it is given.

    `on_progress(check, done, total)` hears of it. Raises LedgerAway.
    """
    connection = await connect(dsn)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await connection.execute(queries()["usage_keep"])
            await lift_time_limits(connection)
            findings = []
            for number, (name, statement) in enumerate(invariants().items()):
                on_progress(name, number, len(invariants()))
                findings.append(await _check_invariant(connection, name, statement))
            entries = await connection.fetchval(queries()["entries_count"])
            sealed = await check_entries(connection, lambda done: on_progress(ENTRIES_CHECK, done, entries))
            heads, newest = await check_heads(connection, kept)
            costs = await _check_costs(connection, on_progress)
        await connection.close(timeout=5.0)
        return Audit((*findings, sealed, *heads, costs), newest, entries, sealed.rows)
    except Exception as error:
        if is_away(error, connection):
            raise LedgerAway(type(error).__name__) from error
        raise
    finally:
        connection.terminate()  # whatever happened; nothing is left to do where it is closed


async def _check_invariant(connection: Connection, name: str, statement: str) -> Finding:
    finding = Finding(name)
    async for rows in stream(connection, statement):
        for row in rows:
            finding.add(Difference(str(row["wallet_id"] or ""), row.get("seq") or 0, "", row["difference"]))
    return finding


@dataclass(slots=True)
class _Prices:
    """Price versions by id: a Price, or why there is none."""

    connection: Connection
    known: dict[int, Price | str] = field(default_factory=dict)

    async def load(self, price_ids: set[int]) -> None:
        missing = price_ids - self.known.keys()
        if not missing:
            return
        if len(self.known) > PRICES_KEPT_MAX:
            self.known.clear()
            missing = price_ids
        self.known.update(dict.fromkeys(missing, "no such price"))
        for row in await self.connection.fetch(queries()["prices_by_ids"], list(missing)):
            try:
                self.known[row["price_id"]] = price_from_row(dict(row))
            except InvalidPrice as error:
                self.known[row["price_id"]] = f"damaged, {error}"


async def _check_costs(connection: Connection, on_progress: Progress) -> Finding:
    finding = Finding(COSTS_CHECK)
    prices = _Prices(connection)
    total = await connection.fetchval(queries()["usage_events_count"])
    async for rows in stream(connection, queries()["usage_events_for_audit"]):
        await prices.load({row["price_id"] for row in rows})
        for row in rows:
            for what, expected, found in _differences(row, prices.known[row["price_id"]]):
                finding.add(Difference(str(row["wallet_id"]), 0, str(row["hold_id"]), what, expected, found))
        finding.rows += len(rows)
        on_progress(COSTS_CHECK, finding.rows, total)
    return finding


def _differences(row: asyncpg.Record, price: Price | str) -> Iterator[tuple[str, str, str]]:
    """(what, expected, found) of one usage event; the first is the cause of those that follow it."""
    if isinstance(price, str):
        yield "price", f"price {row['price_id']}", price
        return
    usage = row["usage"]
    if usage is None:
        # Only a call that was charged nothing, or swept before its first checkpoint, has no record of use.
        if row["resolution"] == "settled":
            yield "usage", "what was used", "nothing recorded"
        picos = 0
    else:
        try:
            picos = recompute_picos(price, orjson.loads(usage))
        except Unexplained as error:
            yield "usage", f"what price {price.price_id} can price", str(error)
            return
    if row["cost_picos"] != picos:
        yield f"cost_picos at price {price.price_id}", str(picos), str(row["cost_picos"])
    if row["cost_nanos"] != round_nanos(picos):
        yield f"cost_nanos at price {price.price_id}", str(round_nanos(picos)), str(row["cost_nanos"])
