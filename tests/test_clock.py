"""Ids carry their time, are of version 7, and differ."""

import time
from uuid import RFC_4122, UUID

from gateway.clock import new_id


def test_ids_are_uuids_of_version_7_with_the_time_in_them() -> None:
    before = time.time_ns() // 1_000_000
    ids = [new_id() for _ in range(10_000)]
    after = time.time_ns() // 1_000_000
    assert len(set(ids)) == len(ids)
    all_set, ever_set = (1 << 128) - 1, 0
    for text in ids:
        made = UUID(text)
        assert (str(made), made.version, made.variant) == (text, 7, RFC_4122)
        assert before <= made.int >> 80 <= after
        all_set &= made.int
        ever_set |= made.int
    # Every one of the 74 random bits is sometimes set and sometimes not.
    random_bits = 0xFFF << 64 | (1 << 62) - 1
    assert all_set & random_bits == 0
    assert ever_set & random_bits == random_bits


def test_ids_of_later_milliseconds_sort_after() -> None:
    first = new_id()
    time.sleep(0.002)
    assert first < new_id()
