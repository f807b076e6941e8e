"""Replies at rest: whatever was sealed comes back whole, to the same call only, and the secret is made once."""

import threading
from pathlib import Path

import pytest

from gateway.db.idempotency import Key
from gateway.request.vault import SECRET_FILE, Kept, SecretUnusable, Vault, secret_in

SECRET = b"s" * 32
KEY = Key("wallet", b"k" * 32, b"b" * 32)
# Bytes that are no UTF-8 arrive in headers as surrogates, and leave as they came.
ODD = b"caf\xe9 \xff".decode("utf-8", "surrogateescape")
HEADERS = [("Content-Type", "text/event-stream"), ("x-odd", ODD), ("x-odd", "\u00e9\u20ac")]
KEPT = Kept(200, HEADERS, b"data: 1\n\n\x00\xff")


def test_what_is_sealed_is_opened() -> None:
    vault = Vault(SECRET)
    sealed = vault.seal(KEY, KEPT)
    opened = vault.open(KEY, sealed)
    assert opened is not None
    assert opened == KEPT
    assert vault.open(KEY, vault.seal(KEY, KEPT._replace(body=b""))) is not None
    assert sealed != vault.seal(KEY, KEPT), "no key is used twice"
    assert b"data: 1" not in sealed


@pytest.mark.parametrize(
    "key", [KEY._replace(wallet_id="other"), KEY._replace(key_hash=b"x" * 32), KEY._replace(body_hash=b"x" * 32)]
)
def test_it_opens_for_its_own_call_only(key: Key) -> None:
    assert Vault(SECRET).open(key, Vault(SECRET).seal(KEY, KEPT)) is None
    assert Vault(b"t" * 32).open(KEY, Vault(SECRET).seal(KEY, KEPT)) is None


def test_no_byte_may_be_changed_and_none_left_out() -> None:
    vault = Vault(SECRET)
    sealed = vault.seal(KEY, KEPT)
    for place in range(len(sealed)):
        changed = sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :]
        assert vault.open(KEY, changed) is None
        assert vault.open(KEY, sealed[:place]) is None


def test_processes_that_start_at_once_have_one_secret(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(secret_in(directory))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert len({*found, secret_in(directory)}) == 1
    assert len(found[0]) >= 32
    assert [path.name for path in directory.iterdir()] == [SECRET_FILE]
    assert (directory / SECRET_FILE).stat().st_mode & 0o777 == 0o600


def test_a_secret_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / SECRET_FILE).write_bytes(b"short\n")
    with pytest.raises(SecretUnusable, match="is damaged"):
        secret_in(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SecretUnusable, match="file"):
        secret_in(tmp_path / "file")
