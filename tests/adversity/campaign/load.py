"""Clients: each asks, is served or not, sometimes leaves at any byte, and writes down what it saw.

What is asked carries a case number, and from it follows what the upstream does, so a client's word and the oracle's
log are about the same call.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import aiohttp
import orjson

from tests.adversity.witness import Sighting
from tests.support.behaviours import Behaviour, Choose, Completion, End, ResetBeforeHeaders, failure
from tests.support.completion import Asked, absent

MODEL = "campaign-model"
# However long the ledger is away in a seed, every reply has ended by then.
CALL_SECONDS_MAX = 30.0
CASES = 1_000
BREAKING = 940  # from this case on an upstream does something bad


@dataclass(slots=True)
class Seen(Sighting):
    """A call as its client saw it, and when, in seconds of Unix time."""

    gateway: int = 0
    wallet: int = 0
    case: int = 0
    stream: bool = False
    has_left: bool = False
    is_replay: bool = False
    cost: str | None = None
    key: str = ""
    began: float = field(default_factory=time.time)
    ended: float = 0.0
    error: str = ""

    def __str__(self) -> str:
        what = f"{'stream' if self.stream else 'json'} case {self.case} at gateway {self.gateway}"
        return f"{what}: {self.status} {self.error_code} {self.error} hold {self.hold_id} whole {self.whole}"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client is about to do. `leave_after_bytes` of the reply, if at all; 0 is before its first byte."""

    wallet: int
    case: int
    stream: bool
    cap: int | None
    leave_after_bytes: int | None
    key: str


def behaviour(case: int, *, stream: bool) -> Behaviour:
    """What the upstream does in a case."""
    match case:
        case _ if case < 500:
            return Completion(output_tokens=1 + case % 40, pause_seconds=case % 7 / 1_000)
        case _ if case < 800:
            return Completion(output_tokens=20 + case % 30, pause_seconds=0.01)
        case _ if case < 900:  # longer than half the validity: renewed on its way
            return Completion(output_tokens=25 + case % 20, pause_seconds=0.05)
        case _ if case < BREAKING:
            return Completion(output_tokens=30, cached_tokens=case % 5, reasoning_tokens=case % 9)
        case _ if case < 955:
            return Completion(output_tokens=30, end=End.RESET, end_after_events=case % 12)
        case _ if case < 970:
            return Completion(output_tokens=30, end=End.ERROR if stream else End.CLOSE, end_after_events=case % 12)
        case _ if case < 980:
            return Completion(output_tokens=20, usage=absent)
        case _ if case < 990:
            return ResetBeforeHeaders()
        case _:
            return failure(500 if case % 2 else 429, code="upstream_says_no")


def case_of(words: Sequence[str]) -> int:
    """The case that a prompt names."""
    return int(words[1])


def by_case() -> Behaviour:
    """The upstream of the campaign."""

    def choose(asked: Asked) -> Behaviour:
        return behaviour(case_of(asked.words), stream=asked.stream)

    return Choose(choose)


def wish(dice: random.Random, wallets: int) -> Wish:
    """The next call of a client."""
    leaves = dice.random() < 0.12
    return Wish(
        wallet=dice.choice((0, 1, dice.randrange(wallets))),
        case=dice.randrange(CASES),
        stream=dice.random() < 0.6,
        cap=dice.choice((None, None, 8, 30, 60)),
        leave_after_bytes=dice.choice((0, dice.randrange(1, 4_000))) if leaves else None,
        key=f"{dice.getrandbits(64):016x}",
    )


def body_of(wanted: Wish, dice: random.Random) -> bytes:
    """The request; the prompt's length varies, so that costs do."""
    text = f"case {wanted.case} " + "tell " * dice.randrange(2, 60)
    members: dict[str, object] = {} if wanted.cap is None else {"max_completion_tokens": wanted.cap}
    messages = [{"role": "user", "content": text}]
    return orjson.dumps({"model": MODEL, "messages": messages, "stream": wanted.stream, **members})


async def call(
    session: aiohttp.ClientSession, base_url: str, api_key: str, wanted: Wish, body: bytes, seen: Seen
) -> Seen:
    """Ask once; whatever becomes of it, `seen` says what was seen."""
    headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json", "Idempotency-Key": wanted.key}
    timeout = aiohttp.ClientTimeout(total=CALL_SECONDS_MAX)
    leave_after = 10**9 if wanted.leave_after_bytes is None else wanted.leave_after_bytes
    try:
        async with session.post(
            f"{base_url}/chat/completions", data=body, headers=headers, timeout=timeout
        ) as response:
            seen.status = response.status
            seen.hold_id = response.headers.get("x-farebox-hold")
            seen.retry_after = response.headers.get("retry-after")
            seen.cost = response.headers.get("x-farebox-cost")
            seen.is_replay = "idempotent-replayed" in response.headers
            while data := await response.content.readany():
                seen.body += data
                if len(seen.body) >= leave_after:
                    seen.has_left = True
                    response.close()
                    break
            seen.whole = response.status == 200 and not wanted.stream and not seen.has_left
    except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
        seen.error = type(error).__name__
    if wanted.stream and seen.status == 200:
        # Whoever has read [DONE] has all of it, whatever became of the connection then.
        seen.whole = seen.body.endswith(b"data: [DONE]\n\n") and seen.error_code is None
    seen.ended = time.time()
    return seen


class Client:
    """Asks one call after the other, at one gateway and then another."""

    def __init__(
        self, number: int, seed: int, urls: Callable[[], Sequence[str]], keys: Sequence[str], seen: list[Seen]
    ) -> None:
        self._dice = random.Random(f"{seed}-{number}")
        self._number = number
        self._urls = urls
        self._keys = keys
        self._seen = seen
        self.retries = 0
        self.duplicates = 0

    async def run(self, session: aiohttp.ClientSession, over: asyncio.Event) -> None:
        while not over.is_set():
            wanted = wish(self._dice, len(self._keys))
            body = body_of(wanted, self._dice)
            place = self._number + self._dice.choice((0, 0, 0, 1))
            if wanted.leave_after_bytes == 0:
                await self._leave_early(session, wanted, body, place)
                continue
            if self._dice.random() < 0.05:
                # Asked again before it was answered, at another gateway, as a hurried SDK behind a balancer does.
                self.duplicates += 1
                both = (self._ask(session, wanted, body, at) for at in (place, place + 1))
                await asyncio.gather(*both)
                continue
            seen = await self._ask(session, wanted, body, place)
            if (seen.error or seen.status == 503) and not seen.has_left and not over.is_set():
                # Late: the first may have been charged by now, or may be yet.
                await asyncio.sleep(self._dice.choice((0.05, 0.3)))
                self.retries += 1
                await self._ask(session, wanted, body, place + 1)

    async def _leave_early(self, session: aiohttp.ClientSession, wanted: Wish, body: bytes, place: int) -> None:
        """Ask, and be gone before there is an answer."""
        asking = asyncio.ensure_future(self._ask(session, wanted, body, place))
        await asyncio.sleep(self._dice.random() * 0.1)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    async def _ask(self, session: aiohttp.ClientSession, wanted: Wish, body: bytes, place: int) -> Seen:
        urls = self._urls()
        gateway = place % len(urls)
        seen = Seen(gateway=gateway, wallet=wanted.wallet, case=wanted.case, stream=wanted.stream, key=wanted.key)
        self._seen.append(seen)
        try:
            return await call(session, urls[gateway], self._keys[wanted.wallet], wanted, body, seen)
        except asyncio.CancelledError:
            seen.has_left, seen.ended = True, time.time()
            raise
