"""Who is asked first, and who after: orders, weights and breakers, with lots that the test draws."""

from collections import Counter

import pytest

from gateway.request.admit import Route
from gateway.request.breaker import Breaker, BreakerLimits
from gateway.request.routing import drawn, is_drawn, with_the_ill_last
from tests.support.gateway import MODEL
from tests.support.offers import shelf_of, upstream_of

LOTS = 1_000


def routes(**weights: tuple[int, int | None]) -> tuple[Route, ...]:
    """name=(order, weight), as the shelf sorts them."""
    upstreams = [upstream_of(name, order=order, weight=weight) for name, (order, weight) in weights.items()]
    found = shelf_of(upstreams=upstreams).find(MODEL)
    assert found is not None
    return found[2]


def turn(routes: tuple[Route, ...], lot: float) -> str:
    return "".join(route.upstream.name for route in drawn(routes, lot))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (routes(a=(0, None), b=(0, None)), "ab"),
        (routes(a=(1, None), b=(0, None), c=(0, None)), "bca"),
        (routes(a=(0, None), b=(-1, None)), "ba"),
    ],
)
def test_without_weights_the_order_is_fixed(given: tuple[Route, ...], expected: str) -> None:
    assert not is_drawn(given)
    assert {turn(given, lot / LOTS) for lot in range(0, LOTS, 10)} == {expected}


def test_weights_share_out_the_first_and_every_later_place() -> None:
    given = routes(a=(0, 3), b=(0, 1), c=(0, None))
    assert is_drawn(given)
    counted = Counter(turn(given, (lot + 0.5) / LOTS) for lot in range(LOTS))
    # First by 3 : 1 : 1; then by what is left: after a, 1 : 1; after b or c, 3 : 1.
    assert counted == {"abc": 300, "acb": 300, "bac": 150, "bca": 50, "cab": 150, "cba": 50}


def test_weights_never_cross_an_order_and_weight_0_is_only_for_failover() -> None:
    given = routes(a=(1, 1_000), b=(0, 0), c=(0, 1), d=(0, 0))
    assert {turn(given, lot / LOTS) for lot in range(0, LOTS, 10)} == {"cbda"}
    assert turn(routes(a=(0, 0), b=(0, 0)), 0.9) == "ab"


def test_the_ill_come_last_and_none_is_left_out() -> None:
    limits = BreakerLimits(1, 50, 30.0, 10.0)
    given = routes(a=(0, None), b=(0, None), c=(0, None))
    breakers = {name: Breaker() for name in "abc"}

    def order(now: float) -> str:
        return "".join(route.upstream.name for route in with_the_ill_last(given, breakers, now))

    breakers["a"].failed(5.0, limits)
    assert order(6.0) == "bca"
    breakers["b"].failed(1.0, limits)
    assert order(6.0) == "cba"
    breakers["c"].failed(3.0, limits)
    assert order(6.0) == "bca"  # all are open: the one that is due soonest first
    assert order(11.0) == "bca"
    assert order(14.0) == "bca"
    assert order(16.0) == "abc"
