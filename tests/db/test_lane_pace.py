"""A lane's pace: whom a batch waits for."""

import pytest

from gateway.db.lane_pace import Mean, Pace, batch_wanted


@pytest.mark.parametrize(
    ("calls", "work_ms", "statement_ms", "wanted"),
    [
        (1, 0.2, 1.0, 1),
        (1, 2.0, 1.0, 1),
        (4, 0.2, 1.0, 4),
        (5, 0.2, 1.0, 5),
        (16, 0.2, 1.0, 8),
        (16, 0.2, 5.0, 16),
        (64, 0.2, 5.0, 32),
    ],
)
def test_a_batch_waits_for_half_of_the_calls_where_they_keep_the_gateway_busy(
    calls: int, work_ms: float, statement_ms: float, wanted: int
) -> None:
    assert batch_wanted(calls, work_ms, statement_ms) == wanted


def test_a_mean_follows_slowly() -> None:
    mean = Mean()
    for _ in range(100):
        mean.add(1.0)
    assert 0.9 < mean.mean < 1.0
    mean.add(100.0)
    assert mean.mean < 6.0


def test_a_pace_is_learnt_from_what_was_answered() -> None:
    pace = Pace()
    assert pace.wanted(0, 64) == 64, "nothing is known yet"
    for number in range(100):
        pace.answered(32, 0.005, 1.0 + number * 32 * 0.0002)
    assert pace.wanted(0, 64) == 32
    assert pace.wanted(48, 64) == 32
    assert pace.wanted(0, 16) == 16, "the gateway would be idle for most of a statement all the same"


def test_what_is_queued_beside_calls_has_no_pace() -> None:
    pace = Pace()
    pace.answered(1, 0.001, 1.0)
    pace.answered(1, 0.001, 2.0)
    assert pace.wanted(10, 10) == 5
    assert pace.wanted(11, 10) == 11
