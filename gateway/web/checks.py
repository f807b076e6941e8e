"""What readiness and health of one gateway look at."""

import asyncio
from typing import TYPE_CHECKING

from gateway.db.migrate import pending
from gateway.db.pool import LedgerAway
from gateway.db.queries import queries
from gateway.web.health import Check

if TYPE_CHECKING:
    from gateway.app import App

_STUCK_SECONDS = 5.0


async def checks(app: "App") -> list[Check]:
    """Each with what it saw; what concerns the database as a whole is known to the process that leads only."""
    found = [await _check_database(app)]
    stuck = app.lane.stuck_seconds()
    found.append(Check("lane", stuck < _STUCK_SECONDS and not app.lane.away, f"oldest wait {stuck:.1f} s"))
    unwritable = app.journal.unwritable
    found.append(Check("journal_writable", unwritable is None, unwritable or "ok"))
    aside = len(app.journal.set_aside_files())
    found.append(Check("journal_whole", not aside, f"{aside} files were set aside", gates_ready=False))
    waiting = app.journal.records
    found.append(Check("journal_empty", not waiting, f"{waiting} records wait for replay", gates_ready=False))
    offered = app.shelf.count
    found.append(Check("models", offered > 0, f"{offered} models on offer"))
    ill = app.gateway.relay.asker.ill
    found.append(Check("upstreams", not ill, f"failing: {', '.join(ill)}" if ill else "ok", gates_ready=False))
    failing = app.invariants.failing if app.lead.is_taken else {}
    found.append(Check("invariants", not failing, ", ".join(failing) or "ok", gates_ready=False))
    changed = len(app.chain.changed) + len(app.seal.unsealable) if app.lead.is_taken else 0
    found.append(Check("chain", not changed, f"{changed} places changed" if changed else "ok", gates_ready=False))
    found.append(Check("not_stopping", not app.gateway.stopping, "stopping" if app.gateway.stopping else "ok"))
    return found


async def _check_database(app: "App") -> Check:
    try:
        async with asyncio.timeout(2.0), app.database.connection() as connection:
            missing = await pending(connection)
            writable = await connection.fetchval(queries()["database_writable"])
            if not writable:
                connection.terminate()  # a former primary: the next look may find its successor
    except (LedgerAway, TimeoutError):
        return Check("database", False, "cannot be reached")
    if missing:
        return Check("database", False, f"migrations pending: {', '.join(missing)}; run farebox migrate")
    return Check("database", bool(writable), "ok" if writable else "takes no writes")
