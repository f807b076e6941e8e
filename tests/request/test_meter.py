"""Step 5. From what was seen to what is charged: the outcome matrix as a pure table."""

from typing import Any

import pytest

from gateway.core.catalogue import Meter, Tier
from gateway.request.meter import Charge, Ending, Seen, estimate, meter, void
from tests.support.gateway import RATES
from tests.support.offers import hold_of, offer_of, price_of, shelf_of

# 78 bytes of body: 20 tokens. The hold of a call without a cap covers any estimate here.
OFFER = offer_of()
HOLD = hold_of(OFFER)
USAGE = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
IMPOSSIBLE = {"prompt_tokens": 10, "completion_tokens": -20}


def seen(ending: Ending, usage: dict[str, Any] | None, tokens: int, **members: Any) -> Seen:
    return Seen(ending, usage, lambda: tokens, **members)


TABLE = [
    # ending, usage, estimate of the output -> nanos, basis, reason
    (Ending.COMPLETED, USAGE, 0, 90, "reported", None),
    (Ending.COMPLETED, USAGE, 999, 90, "reported", None),
    (Ending.COMPLETED, None, 25, 120, "estimated", "usage_missing"),
    (Ending.COMPLETED, {}, 25, 120, "estimated", "usage_missing"),
    (Ending.COMPLETED, {"prompt_tokens": 0, "completion_tokens": 0}, 25, 120, "estimated", "usage_missing"),
    (Ending.COMPLETED, IMPOSSIBLE, 25, 120, "estimated", "usage_invalid"),
    (Ending.COMPLETED, None, 0, 20, "estimated", "usage_missing"),
    (Ending.REFUSED, None, 0, 0, "none", "upstream_refused"),
    (Ending.REFUSED, USAGE, 0, 0, "none", "upstream_refused"),
    (Ending.BROKE, None, 0, 0, "none", "upstream_broke"),
    (Ending.BROKE, None, 25, 120, "estimated", "upstream_broke"),
    (Ending.BROKE, USAGE, 25, 90, "reported", "upstream_broke"),
    (Ending.BROKE, IMPOSSIBLE, 25, 120, "estimated", "usage_invalid"),
    (Ending.CLIENT_GONE, USAGE, 25, 90, "reported", "client_gone"),
    (Ending.CLIENT_GONE, None, 25, 120, "estimated", "client_gone"),
    (Ending.CLIENT_GONE, None, 0, 20, "estimated", "client_gone"),
    (Ending.CUT_OFF, None, 25, 120, "estimated", "cut_off"),
    (Ending.CUT_OFF, USAGE, 25, 90, "reported", "cut_off"),
    (Ending.STOPPED, None, 25, 120, "estimated", "gateway_stopped"),
    (Ending.STOPPED, None, 0, 0, "none", "gateway_stopped"),
    (Ending.CRASHED, None, 25, 120, "estimated", "gateway_failed"),
    (Ending.CRASHED, None, 0, 0, "none", "gateway_failed"),
]


@pytest.mark.parametrize(("ending", "usage", "tokens", "nanos", "basis", "reason"), TABLE)
def test_the_matrix(
    ending: Ending, usage: dict[str, Any] | None, tokens: int, nanos: int, basis: str, reason: str | None
) -> None:
    charge = meter(OFFER, HOLD, seen(ending, usage, tokens))
    assert (charge.cost_nanos, charge.basis, charge.reason) == (nanos, basis, reason)
    assert charge.cost_picos == nanos * 1_000
    assert charge.is_void == (basis == "none")
    if basis == "estimated":
        assert charge.usage == {name: count for name, count in (("input", 20), ("output", tokens)) if count}


def test_the_table_has_every_ending() -> None:
    assert {row[0] for row in TABLE} == set(Ending)


@pytest.mark.parametrize("usage", [None, IMPOSSIBLE])
@pytest.mark.parametrize(("policy", "nanos"), [("estimate", 24 + 4 * 25), ("ceiling", 94 + 256 + 4 * 50), ("free", 0)])
def test_missing_usage_by_policy(policy: str, nanos: int, usage: dict[str, Any] | None) -> None:
    """The ceiling is the hold: a body of 94 bytes, 256 for the template, and the cap."""
    offer = offer_of(max_tokens=50)
    charge = meter(offer, hold_of(offer), seen(Ending.COMPLETED, usage, 25, missing_usage=policy))
    assert (charge.cost_nanos, charge.basis, charge.is_void) == (nanos, "estimated", False)


@pytest.mark.parametrize(
    ("granted", "tokens", "output"),
    [(20, 25, 0), (23, 25, 0), (24, 25, 1), (119, 25, 24), (120, 25, 25), (10**9, 25, 25)],
)
def test_an_estimate_never_passes_the_hold(granted: int, tokens: int, output: int) -> None:
    """The quantities are lowered, and the cost is exactly theirs. No hold is less than its prompt."""
    charge = estimate(OFFER, hold_of(OFFER, granted), tokens, "client_gone")
    assert charge.usage.get("output", 0) == output
    assert charge.cost_nanos == 20 + 4 * output


def test_the_ceiling_policy_stays_within_a_lowered_hold() -> None:
    charge = meter(OFFER, hold_of(OFFER, 400), seen(Ending.COMPLETED, None, 0, missing_usage="ceiling"))
    assert charge.usage == {"input": 334, "output": 16}
    assert charge.cost_nanos == 334 + 4 * 16 <= 400


def test_reported_usage_may_pass_the_hold() -> None:
    """The hold bounds what is risked, not what was used: the ledger tells a shortfall from a charge."""
    usage = {"prompt_tokens": 10, "completion_tokens": 1_000}
    assert meter(OFFER, hold_of(OFFER, 100), seen(Ending.COMPLETED, usage, 0)).cost_nanos == 4_010


def test_limits_are_the_models_over_all_choices() -> None:
    offer = offer_of(n=2)
    most = {"prompt_tokens": 10, "completion_tokens": 2 * 16_384}
    assert meter(offer, hold_of(offer), seen(Ending.COMPLETED, most, 1)).basis == "reported"
    over = most | {"completion_tokens": 2 * 16_384 + 1}
    assert meter(offer, hold_of(offer), seen(Ending.COMPLETED, over, 1)).reason == "usage_invalid"
    over = most | {"prompt_tokens": 128_001}
    assert meter(offer, hold_of(offer), seen(Ending.COMPLETED, over, 1)).reason == "usage_invalid"


def test_the_tier_of_what_was_used_is_the_price() -> None:
    tier = Tier(100, {Meter.INPUT: 2_000, Meter.OUTPUT: 8_000})
    offer = offer_of(shelf_of(prices=[price_of(tiers=(tier,))]))
    for prompt, nanos in ((100, 100 + 40), (101, 202 + 80)):
        usage = {"prompt_tokens": prompt, "completion_tokens": 10}
        assert meter(offer, hold_of(offer), seen(Ending.COMPLETED, usage, 0)).cost_nanos == nanos


def test_a_cached_token_has_its_own_price_and_reasoning_none() -> None:
    usage = USAGE | {
        "prompt_tokens_details": {"cached_tokens": 5},
        "completion_tokens_details": {"reasoning_tokens": 7},
    }
    charge = meter(OFFER, HOLD, seen(Ending.COMPLETED, usage, 0))
    assert charge.usage == {"input": 5, "cached_input": 5, "output": 20, "reasoning": 7}
    # 5 + 2.5 + 80, half to even.
    assert (charge.cost_picos, charge.cost_nanos) == (87_500, 88)


def test_a_price_of_zero_is_reported_and_free() -> None:
    offer = offer_of(shelf_of(prices=[price_of(rates={Meter.INPUT: 0, Meter.OUTPUT: 0})]))
    charge = meter(offer, hold_of(offer), seen(Ending.COMPLETED, USAGE, 0))
    assert (charge.cost_nanos, charge.basis, charge.is_void) == (0, "reported", False)


def test_a_void_is_nothing() -> None:
    assert void("why") == Charge(True, "none", "why", 0, 0, {})


def test_the_ceiling_policy_charges_the_hold_whatever_bounds_what_is_stored() -> None:
    """What is stored, and kept for twelve hours, has no bound but the model's context."""
    rates = {**RATES, Meter.CACHE_WRITE_12H: 3_000}
    parts = [{"type": "text", "text": "Say something."}, {"type": "file", "file": {"file_id": "file-1"}}]
    offer = offer_of(
        shelf_of(prices=[price_of(rates=rates)]),
        max_tokens=50,
        messages=[{"role": "user", "content": parts}],
        prompt_cache_options={"ttl": "12h"},
    )
    charge = meter(offer, hold_of(offer), seen(Ending.COMPLETED, None, 0, missing_usage="ceiling"))
    assert offer.ceiling.nanos >= charge.cost_nanos > offer.ceiling.nanos * 99 // 100
