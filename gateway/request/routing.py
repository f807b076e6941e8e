"""Which upstream is asked first, and which after it. Pure: the lot and the clock are passed in.

By `order` first. Of the same order, those with a weight share calls by lot, in proportion to it; without weights they
are asked as they are listed. Those whose breaker is open come last of all, the one that is due soonest first.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby

from gateway.request.admit import Route
from gateway.request.breaker import Breaker


def is_drawn(routes: Sequence[Route]) -> bool:
    """Whether a lot decides anything."""
    return any(route.upstream.weight is not None for route in routes)


def drawn(routes: Sequence[Route], lot: float) -> list[Route]:
    """The routes of an offer, which are sorted by `order`, in the order in which to ask. `lot` is even in [0, 1)."""
    turn: list[Route] = []
    for _, group in groupby(routes, key=lambda route: route.upstream.order):
        equals = list(group)
        if not is_drawn(equals):
            turn += equals
            continue
        while equals:
            weights = [1 if route.upstream.weight is None else route.upstream.weight for route in equals]
            point = lot * sum(weights)
            for position, weight in enumerate(weights):
                if point < weight:
                    # What is left of the lot is even again.
                    lot = point / weight
                    turn.append(equals.pop(position))
                    break
                point -= weight
            else:
                # Of weight 0: only where the others fail.
                turn.append(equals.pop(0))
    return turn


def with_the_ill_last(routes: Sequence[Route], breakers: Mapping[str, Breaker], now: float) -> list[Route]:
    """The routes in turn, but for those that are not worth asking now."""
    well: list[Route] = []
    ill: list[tuple[float, int, Route]] = []
    for route in routes:
        breaker = breakers[route.upstream.name]
        if breaker.is_ready(now):
            well.append(route)
        else:
            ill.append((breaker.probe_at_seconds, len(ill), route))
    return well + [route for *_, route in sorted(ill, key=lambda one: one[:2])]
