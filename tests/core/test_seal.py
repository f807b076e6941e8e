"""The rule of the seal: stable for ever, and blind to nothing."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from gateway.core.seal import (
    FIRST_HASH,
    Entry,
    Seal,
    entry_bytes,
    find_change,
    first_previous,
    format_head,
    head_hash,
    parse_head,
    seal_block,
)

WALLET, HOLD, POSTING = (UUID(int=number) for number in (1, 2, 3))
AT = datetime(2026, 11, 21, 10, 0, 0, 123_456, tzinfo=UTC)


def charge(seq: int, **changes: Any) -> Entry:
    entry = Entry(WALLET, seq, "charge", "revenue", -5, 100 - 5 * seq, HOLD, None, None, None, AT)
    return entry._replace(**changes)


CREDIT = Entry(WALLET, 1, "credit", "credits", 100, 100, None, POSTING, "ann", "größe", AT)


def test_the_bytes_are_these_for_ever() -> None:
    """Written out by hand: whoever changes them can no longer verify what was sealed before."""
    fixed = (1).to_bytes(8, "big") + (100).to_bytes(8, "big") * 2 + (1_795_255_200_123_456).to_bytes(8, "big")
    texts = b"\0\0\0\6credit" + b"\0\0\0\7credits" + b"\0\0\0\3ann" + b"\0\0\0\7gr\xc3\xb6\xc3\x9fe"
    assert entry_bytes(CREDIT) == fixed + b"\x0e" + POSTING.bytes + texts
    previous = hashlib.sha256(b"farebox seal 1\n" + WALLET.bytes).digest()
    assert first_previous(WALLET) == previous
    seal = seal_block(1, previous, [CREDIT, charge(2)])
    assert seal.hash == hashlib.sha256(previous + entry_bytes(CREDIT) + entry_bytes(charge(2))).digest()
    assert seal.hash.hex() == "12fe55cee6657a4c1777fc9d20d1c840e4acc50612926886ef5a5294162c2db6"
    assert (seal.block, seal.first_seq, seal.last_seq, len(seal.fingerprints)) == (1, 1, 2, 8)
    numbers = b"".join(number.to_bytes(8, "big") for number in (1, 1, 2))
    expected = hashlib.sha256(b"farebox head 1\n" + FIRST_HASH + WALLET.bytes + numbers + seal.hash).digest()
    assert head_hash(FIRST_HASH, [(WALLET, 1, 1, 2, seal.hash)]) == expected


# One field changed, and no other; of the entry with seq 5.
CHANGES: Mapping[str, Mapping[str, Any]] = {
    "amount": {"amount_nanos": -6},
    "sign": {"amount_nanos": 5},
    "balance after": {"balance_after_nanos": 0},
    "kind": {"kind": "adjust"},
    "contra": {"contra": "revenuf"},
    "text moved over": {"kind": "charger", "contra": "evenue"},
    "hold": {"hold_id": POSTING},
    "no hold": {"hold_id": None},
    "a hold that became a posting": {"hold_id": None, "posting_id": HOLD},
    "an actor": {"actor": ""},
    "an actor that became a reason": {"reason": ""},
    "a microsecond": {"created_at": AT + timedelta(microseconds=1)},
    "a day before 1970": {"created_at": datetime(1969, 12, 31, tzinfo=UTC)},
}
ENTRIES = [charge(seq) for seq in range(4, 8)]


@pytest.mark.parametrize("name", CHANGES)
def test_any_change_of_any_field_is_named_by_its_seq(name: str) -> None:
    seal = seal_block(3, b"p" * 32, ENTRIES)
    assert find_change(seal, b"p" * 32, ENTRIES) is None
    changed = [entry._replace(**CHANGES[name]) if entry.seq == 5 else entry for entry in ENTRIES]
    # With and without the block before: the fingerprints name the entry.
    for previous in (b"p" * 32, None):
        change = find_change(seal, previous, changed)
        assert change is not None
        assert (change.seq, change.what) == (5, "entry")
        assert "block 3" in change.expected
        assert str(changed[1].amount_nanos) in change.found


@pytest.mark.parametrize(
    ("entries", "seq"),
    [
        ([], 4),
        (ENTRIES[1:], 4),
        (ENTRIES[:2] + ENTRIES[3:], 6),
        (ENTRIES[:3], 7),
        ([ENTRIES[0], ENTRIES[1]._replace(amount_nanos=-9), ENTRIES[2], ENTRIES[3]._replace(amount_nanos=-9)], 5),
    ],
)
def test_the_first_entry_that_is_gone_or_changed_is_named(entries: list[Entry], seq: int) -> None:
    change = find_change(seal_block(3, b"p" * 32, ENTRIES), b"p" * 32, entries)
    assert change is not None
    assert change.seq == seq


def test_a_change_of_the_seal_itself_is_told_from_one_of_an_entry() -> None:
    seal = seal_block(3, b"p" * 32, ENTRIES)
    for damaged, what in (
        (seal._replace(hash=bytes(32)), "hash of block 3"),
        (seal._replace(fingerprints=bytes(16)), "fingerprints of block 3"),
    ):
        change = find_change(damaged, b"p" * 32, ENTRIES)
        assert change is not None
        assert (change.seq, change.what) == (4, what)
    # After another block than the one that it followed.
    assert find_change(seal, b"q" * 32, ENTRIES) is not None
    assert find_change(seal, None, ENTRIES) is None


def test_blocks_of_two_wallets_with_the_same_entries_differ() -> None:
    other = UUID(int=9)
    assert seal_block(1, first_previous(WALLET), ENTRIES).hash != seal_block(1, first_previous(other), ENTRIES).hash


def test_a_head_covers_every_part_of_its_seals() -> None:
    seals = [Seal(WALLET, 1, 1, 2, b"", b"a" * 32), Seal(HOLD, 1, 1, 2, b"", b"b" * 32)]
    parts = [(s.wallet_id, s.block, s.first_seq, s.last_seq, s.hash) for s in seals]
    one = head_hash(FIRST_HASH, parts)
    first, second = parts
    others = [
        head_hash(b"x" * 32, parts),
        head_hash(FIRST_HASH, parts[:1]),
        head_hash(FIRST_HASH, [second, first]),
        *(
            head_hash(FIRST_HASH, [changed, second])
            for changed in (
                (POSTING, *first[1:]),
                (first[0], 2, *first[2:]),
                (*first[:2], 2, *first[3:]),
                (*first[:3], 3, first[4]),
                (*first[:4], b"c" * 32),
            )
        ),
    ]
    assert len({one, *others}) == 9


def test_a_head_is_written_and_read() -> None:
    assert parse_head(format_head(17, bytes(range(32)))) == (17, bytes(range(32)))
    digest = "ab" * 32
    for text in (
        "",
        "17",
        f"17:{digest}0",
        f"-1:{digest}",
        f"x:{digest}",
        f"{'9' * 19}:{digest}",
        f"1:{'zz' * 32}",
        f"1:{' ab ' * 16}",
    ):
        with pytest.raises(ValueError, match="is not a head"):
            parse_head(text)
