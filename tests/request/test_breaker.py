"""The breaker's states, by a clock of the test's own."""

import random

import pytest

from gateway.request.breaker import CALLS_MIN, Breaker, BreakerLimits, State

LIMITS = BreakerLimits(failures_max=3, error_percent=50, window_seconds=30.0, open_seconds=10.0)


def lived(script: str, *, limits: BreakerLimits = LIMITS) -> tuple[str, bool]:
    """What becomes of a breaker: `a`nswered, `f`ailed, `s`ent, `l`eft, each digit n waits n seconds.

    Returns its state and whether it is ready for a call.
    """
    breaker, now = Breaker(), 1_000.0
    for step in script:
        match step:
            case "a":
                breaker.answered(now, limits)
            case "f":
                breaker.failed(now, limits)
            case "s":
                breaker.asked(now)
            case "l":
                breaker.left()
            case _:
                now += int(step)
    return str(breaker.state), breaker.is_ready(now)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("", ("closed", True)),
        ("ff", ("closed", True)),
        ("ffaff", ("closed", True)),
        ("fff", ("open", False)),
        ("fff9", ("open", False)),
        ("fff91", ("open", True)),
        # Sending before it is due is no probe: nobody else was left.
        ("fff9s", ("open", False)),
        ("fff91s", ("probing", False)),
        ("fff91sf", ("open", False)),
        ("fff91sf91", ("open", True)),
        ("fff91sl", ("open", True)),
        ("fff91sa", ("closed", True)),
        ("fff91saff", ("closed", True)),
        # Whoever is answered brings good news; late failures of an open one change nothing.
        ("fff9a", ("closed", True)),
        ("fff9f1", ("open", True)),
        ("lsl", ("closed", True)),
    ],
)
def test_failures_in_a_row(script: str, expected: tuple[str, bool]) -> None:
    assert lived(script) == expected


@pytest.mark.parametrize(
    ("script", "state"),
    [
        ("af" * (CALLS_MIN // 2 - 1) + "a", State.CLOSED),  # too few calls
        ("af" * (CALLS_MIN // 2), State.OPEN),
        ("aaf" * CALLS_MIN, State.CLOSED),  # a third
        ("af" * (CALLS_MIN // 2 - 1) + "99999" + "af", State.CLOSED),  # the first are out of the window
        ("af" * (CALLS_MIN // 2 - 1) + "95" + "af", State.OPEN),  # the half before still counts
    ],
)
def test_a_share_of_failures(script: str, state: State) -> None:
    assert lived(script)[0] == state


def test_it_can_be_switched_off() -> None:
    assert lived("f" * 100, limits=LIMITS._replace(failures_max=0)) == ("closed", True)


def test_no_life_leaves_an_upstream_without_a_probe() -> None:
    """Whatever happened, a call that ends and a while of patience make it ready again."""
    draw = random.Random(1)
    for _ in range(300):
        script = "".join(draw.choice("aafffsl15") for _ in range(draw.randrange(40)))
        assert lived(script + "l99")[1], script
