"""Step 1: whose call is this?

A verified key is cached for a few seconds. A revocation is heard from the database within a moment; while the
connection that hears it is not known to be alive, the cache trusts itself for half a second only.
"""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.clock import monotonic_seconds, unix_seconds
from gateway.errors import TooManyAttempts, Unauthenticated

KEY_CHARS_MAX = 128
_UNHEARD_CACHE_SECONDS = 0.5
_LOOKUPS_MAX = 3


@dataclass(frozen=True, slots=True)
class Principal:
    """Who pays: a key of a wallet. `models` is None where the key may use every model."""

    wallet_id: str
    key_id: str
    models: frozenset[str] | None


Lookup = Callable[[bytes], Awaitable[Mapping[str, Any] | None]]


class Authenticator:
    """Keys to principals. `lookup` gives the usable key of a hash, or None; `hears` says if revocations are heard."""

    def __init__(
        self,
        lookup: Lookup,
        *,
        cache_seconds: float,
        entries_max: int,
        unknown_per_second_max: int,
    ) -> None:
        self._lookup = lookup
        self._cache_seconds = cache_seconds
        self._entries_max = entries_max
        self._unknown_per_second_max = unknown_per_second_max
        self._known: dict[bytes, tuple[Principal | None, float]] = {}
        self._generation = 0
        self._unknown: dict[str, tuple[int, int]] = {}
        self.hears: Callable[[], bool] = lambda: False

    def forget(self, key_hash: bytes | None) -> None:
        """Drop one key, or all, and whatever is being looked up at this moment."""
        self._generation += 1
        if key_hash is None:
            self._known.clear()
        else:
            self._known.pop(key_hash, None)

    async def authenticate(self, headers: Mapping[str, str], peer: str) -> Principal:
        """Raises Unauthenticated, TooManyAttempts, and LedgerAway where the key cannot be looked up."""
        key = presented_key(headers)
        digest = hashlib.sha256(key.encode()).digest()
        entry = self._known.get(digest)
        if entry is None or entry[1] <= monotonic_seconds():
            # A key that was good a moment ago is no guess: others who guess from the same address must not shut it out.
            is_guess = entry is None or entry[0] is None
            entry = await self._look_up(digest, peer, is_guess=is_guess)
        if entry[0] is None:
            raise Unauthenticated("The API key is not valid: it is unknown, revoked or expired.")
        return entry[0]

    async def _look_up(self, digest: bytes, peer: str, *, is_guess: bool) -> tuple[Principal | None, float]:
        if is_guess:
            self._refuse_guessing(peer)
        for _ in range(_LOOKUPS_MAX):
            generation = self._generation
            row = await self._lookup(digest)
            if generation == self._generation:
                break
            # A key was revoked while we were asking: the answer may be older than that.
        principal = None
        seconds = self._cache_seconds if self.hears() else _UNHEARD_CACHE_SECONDS
        if row is None:
            self._count_unknown(peer)
        else:
            models = row["models"]
            principal = Principal(
                wallet_id=str(row["wallet_id"]),
                key_id=str(row["key_id"]),
                models=None if models is None else frozenset(models),
            )
            if row["expires_at"] is not None:
                seconds = min(seconds, row["expires_at"].timestamp() - unix_seconds())
        entry = (principal, monotonic_seconds() + seconds)
        if generation == self._generation:
            while len(self._known) >= self._entries_max:
                del self._known[next(iter(self._known))]
            self._known[digest] = entry
        return entry

    def _refuse_guessing(self, peer: str) -> None:
        second, count = self._unknown.get(peer, (0, 0))
        if second == int(monotonic_seconds()) and count >= self._unknown_per_second_max:
            raise TooManyAttempts

    def _count_unknown(self, peer: str) -> None:
        now = int(monotonic_seconds())
        second, count = self._unknown.get(peer, (0, 0))
        if len(self._unknown) >= self._entries_max:
            self._unknown.clear()
        self._unknown[peer] = (now, count + 1 if second == now else 1)


def presented_key(headers: Mapping[str, str]) -> str:
    """The key in `Authorization: Bearer`, `api-key` or `x-api-key`. Raises Unauthenticated."""
    authorization = headers.get("Authorization")
    if authorization is not None:
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated("Send the API key as `Authorization: Bearer fb-…`.")
        key = key.strip()
    else:
        key = headers.get("api-key") or headers.get("x-api-key") or ""
    if not key:
        raise Unauthenticated
    if not key.startswith("fb-") or len(key) > KEY_CHARS_MAX or not key.isascii():
        raise Unauthenticated("The API key is not valid: Farebox keys start with fb-.")
    return key
