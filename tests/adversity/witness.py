"""What clients saw of their calls, compared with the upstream's log and with the ledger.

The log is the oracle. A client's word counts for one thing only: that it had a whole reply, which must then be charged.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from gateway.db import wallets
from gateway.db.pool import Database
from tests.support.call import Served
from tests.support.gateway import MODEL
from tests.support.ledger_check import check_invariants
from tests.support.processes import eventually

EVENTS_MAX = 100_000


@dataclass(slots=True)
class Sighting:
    """One call as its client saw it. `whole`: a JSON body to its end, or a stream to its [DONE]."""

    status: int | None = None
    hold_id: str | None = None
    retry_after: str | None = None
    body: bytes = b""
    whole: bool = False

    @property
    def error_code(self) -> str | None:
        """The code of an error reply, or of an error event at the end of a stream."""
        for line in reversed(self.body.split(b"\n")):
            text = line.removeprefix(b"data: ")
            if text.startswith(b"{") and isinstance(error := orjson.loads(text).get("error"), dict):
                return str(error["code"])
        return None

    @property
    def required(self) -> str:
        """What a refusal for lack of funds says that the call may cost."""
        return str(orjson.loads(self.body)["error"]["required"])


async def chat(
    session: aiohttp.ClientSession, base_url: str, key: str, *, stream: bool = False, **members: object
) -> Sighting:
    """One call; whatever becomes of the gateway, this says what was seen."""
    seen = Sighting()
    messages = [{"role": "user", "content": "Tell me of the kill points of a gateway."}]
    body = {"model": MODEL, "messages": messages, "stream": stream, **members}
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        async with session.post(f"{base_url}/chat/completions", data=orjson.dumps(body), headers=headers) as response:
            seen.status = response.status
            seen.hold_id = response.headers.get("x-farebox-hold")
            seen.retry_after = response.headers.get("retry-after")
            async for data in response.content.iter_any():
                seen.body += data
            seen.whole = response.status == 200 and not stream
    except (aiohttp.ClientError, ConnectionError):
        pass
    if stream and seen.status == 200:
        # Whoever has read [DONE] has all of it, whatever became of the connection then.
        seen.whole = seen.body.endswith(b"data: [DONE]\n\n") and b'"error"' not in seen.body
    return seen


async def chats(
    session: aiohttp.ClientSession, base_urls: Sequence[str], key: str, count: int, **members: object
) -> list[Sighting]:
    """`count` calls at once, to each gateway in turn."""
    calls = (chat(session, base_urls[number % len(base_urls)], key, **members) for number in range(count))  # type: ignore[arg-type]
    return await asyncio.gather(*calls)


def many_connections() -> aiohttp.ClientSession:
    """A session without a limit, that waits no longer than a test may take."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=60))


def owed_nanos(served: Served) -> int:
    """What a reply costs by the upstream's honest count and the prices of the test model."""
    return served.prompt_tokens + 4 * served.completion_tokens


class Books:
    """The ledger's side of a wallet, read from the database itself."""

    def __init__(self, dsn: str, wallet_id: str, credit_nanos: int) -> None:
        self._dsn = dsn
        self._database = Database(dsn)
        self._wallet_id = wallet_id
        self._credit_nanos = credit_nanos

    async def __aenter__(self) -> "Books":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._database.close()

    async def open_holds(self) -> int:
        row = await self._database.fetch_one("holds_summary")
        assert row is not None
        return int(row["open_holds"])

    async def resolved(self, within_seconds: float = 20.0) -> float:
        """Wait until no hold is open; how long that took. Raises TimeoutError."""

        async def none_is_open() -> bool:
            return await self.open_holds() == 0

        return await eventually(none_is_open, within_seconds=within_seconds)

    async def events(self) -> list[dict[str, Any]]:
        """Every usage event of the wallet."""
        rows = await wallets.usage(self._database, self._wallet_id, None, EVENTS_MAX)
        return [dict(row) | {"hold_id": str(row["hold_id"])} for row in rows]

    async def wallet(self) -> dict[str, Any]:
        row = await wallets.get(self._database, self._wallet_id)
        assert row is not None
        return dict(row)

    async def check(self, log: Iterable[Served], seen: Iterable[Sighting]) -> None:
        """Fail unless every charge is explained by the log, and every whole reply is charged, once."""
        await check_invariants(self._dsn)
        wallet, events = await self.wallet(), await self.events()
        differences = compare(events, log, seen)
        charged = sum(event["charged_nanos"] for event in events)
        if (wallet["balance_nanos"], wallet["held_nanos"]) != (self._credit_nanos - charged, 0):
            differences.append(f"{charged} of {self._credit_nanos} charged, and the wallet has {wallet}")
        assert not differences, "\n".join(differences[:10])


def compare(events: Sequence[dict[str, Any]], log: Iterable[Served], seen: Iterable[Sighting]) -> list[str]:
    """The differences between what was served, what was seen and what was charged; none on a sound gateway."""
    by_hold: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        by_hold[event["hold_id"]].append(event)
    served: dict[str, Served] = {}
    found = []
    for entry in log:
        assert entry.request_id is not None
        if entry.request_id in served:
            found.append(f"{entry.request_id} was asked twice")
        served[entry.request_id] = entry
        first = [event for event in by_hold[entry.request_id] if not event["late"]]
        if len(first) != 1:
            found.append(f"{entry.request_id} was served and resolved {len(first)} times")
    found.extend(wrong for hold_id, rows in by_hold.items() if (wrong := _wrong(rows, served.get(hold_id))))
    for hold_id in (str(sighting.hold_id) for sighting in seen if sighting.whole):
        charged = _charged(by_hold[hold_id])
        # Where the upstream reported nothing, an estimate is all there can be.
        if (
            hold_id not in served
            or not charged
            or (served[hold_id].usage_objects and charged != owed_nanos(served[hold_id]))
        ):
            found.append(f"{hold_id} was seen whole and charged {charged}")
    return found


def _charged(rows: Sequence[dict[str, Any]]) -> int:
    return sum(event["charged_nanos"] for event in rows)


def _wrong(rows: Sequence[dict[str, Any]], served: Served | None) -> str | None:
    """What is wrong with the charges of one hold."""
    hold_id, charged = rows[0]["hold_id"], _charged(rows)
    if not charged:
        return None
    if served is None:
        return f"{hold_id} was charged {charged} and never served"
    is_reported = any(event["basis"] == "reported" for event in rows)
    if is_reported and charged != owed_nanos(served):
        return f"{hold_id} was charged {charged} and cost {owed_nanos(served)}"
    if not is_reported and not served.output_tokens_sent:
        return f"{hold_id} was charged {charged} by estimate for nothing"
    return None
