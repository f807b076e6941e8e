"""Kept replies are encrypted at rest: AES-256-GCM, with a key for each reply derived (HKDF) from one secret.

A key of its own for each, from 32 random bytes that are stored with it, sets no limit to how many are kept (one key
with random nonces: 2^32, NIST SP 800-38D, section 8.3). A reply is bound to its wallet, key and request: moved to
another row, it does not open.
"""

import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gateway.db.idempotency import Key

_VERSION = b"\x01"
_SALT_BYTES = 32
_KEY_BYTES, _NONCE_BYTES = 32, 12
_INFO = b"farebox kept reply 1"
SECRET_FILE = "idempotency.secret"  # noqa: S105 - the name of the file


class Kept(NamedTuple):
    """A reply as the client was sent it."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes


class SecretUnusable(Exception):
    """The secret in the data directory can neither be read nor made."""


class Vault:
    """Seals replies, and opens what it has sealed."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def seal(self, key: Key, kept: Kept) -> bytes:
        """What may be stored of `kept`."""
        salt = os.urandom(_SALT_BYTES)
        # Header values may carry any byte, as surrogates; in Latin-1 each of them has a place in JSON.
        headers = [(name, value.encode("utf-8", "surrogateescape").decode("latin-1")) for name, value in kept.headers]
        plain = orjson.dumps([kept.status, headers]) + b"\n" + kept.body
        cipher, nonce = self._cipher(salt)
        return _VERSION + salt + cipher.encrypt(nonce, plain, _bound_to(key))

    def open(self, key: Key, sealed: bytes) -> Kept | None:
        """The reply; None where it was sealed with another secret or for another call, or was changed."""
        start = len(_VERSION) + _SALT_BYTES
        if not sealed.startswith(_VERSION) or len(sealed) < start:
            return None
        cipher, nonce = self._cipher(sealed[len(_VERSION) : start])
        try:
            plain = cipher.decrypt(nonce, sealed[start:], _bound_to(key))
        except InvalidTag:
            return None
        head, _, body = plain.partition(b"\n")
        status, headers = orjson.loads(head)
        return Kept(
            status,
            [(name, value.encode("latin-1").decode("utf-8", "surrogateescape")) for name, value in headers],
            body,
        )

    def _cipher(self, salt: bytes) -> tuple[AESGCM, bytes]:
        derived = HKDF(SHA256(), _KEY_BYTES + _NONCE_BYTES, salt, _INFO).derive(self._secret)
        return AESGCM(derived[:_KEY_BYTES]), derived[_KEY_BYTES:]


def _bound_to(key: Key) -> bytes:
    return b"\0".join((key.wallet_id.encode(), key.key_hash, key.body_hash))


def secret_in(directory: Path) -> bytes:
    """The secret of this data directory, made the first time. Raises SecretUnusable."""
    path = directory / SECRET_FILE
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _make(path)
        secret = path.read_bytes().strip()
    except OSError as error:
        raise SecretUnusable(f"{path}: {error.strerror or error}") from error
    if len(secret) < _KEY_BYTES:
        raise SecretUnusable(f"{path} is damaged: remove it, and a new one is made (replies kept so far are lost)")
    return secret


def _make(path: Path) -> None:
    """Write it whole under another name first: of processes that start at once, one gives it its name."""
    draft = path.with_name(f"{SECRET_FILE}.{os.getpid()}-{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_urlsafe(48).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
