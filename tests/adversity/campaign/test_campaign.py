"""A short slice of `make campaign`: two seeds that reach many faults. FAREBOX_CAMPAIGN_SEEDS=17,18 lives others."""

import asyncio
import os
from collections.abc import Iterator

import pytest

from tests.adversity.campaign.door import Strike, Units, error
from tests.adversity.campaign.faults import FAULTS, KILLS
from tests.adversity.campaign.runner import Campaign, table
from tests.adversity.campaign.seed import draw, run_seed
from tests.adversity.campaign.world import make_template
from tests.support.cluster import Cluster

# A failover with commits in flight and a kill; answers lost, and sweeps that race with settles.
SLICE = {1_001: ("promoted", "kill:settle.durable"), 1_002: ("strike:reset_at_answer", "holds_swept", "door_mute")}
CHOSEN = os.environ.get("FAREBOX_CAMPAIGN_SEEDS", "")
SEEDS: dict[int, tuple[str, ...] | None] = {int(seed): None for seed in CHOSEN.split(",") if seed} or {**SLICE}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as running:
        asyncio.run(make_template(running))
        yield running


@pytest.mark.parametrize("seed", SEEDS)
def test_charged_is_served_whatever_happens(seed: int, cluster: Cluster) -> None:
    report = asyncio.run(run_seed(cluster, seed, faults=SEEDS[seed], load_seconds=2.0))
    assert not report.differences, "\n".join([*report.differences, f"make campaign SEED={seed}"])
    assert report.seen["whole"] > 0
    assert any(report.reached.values())


def test_a_seed_always_draws_the_same_and_many_draw_all() -> None:
    assert [draw(seed) for seed in range(5)] == [draw(seed) for seed in range(5)]
    drawn = {one.fault for seed in range(1, 201) for one in draw(seed)}
    assert drawn == {*FAULTS, *KILLS}


def test_a_fault_that_was_never_reached_is_told() -> None:
    campaign = Campaign()
    assert set(campaign.never_reached) == {*FAULTS, *KILLS}
    campaign.reached.update(FAULTS)
    campaign.wrong[17] = ["held 5, open holds sum to 4"]
    assert set(campaign.never_reached) == set(KILLS)
    assert "make campaign SEED=17" in table(campaign)


def test_a_door_cuts_where_the_server_must_answer() -> None:
    first = (9).to_bytes(4, "big") + b"hello"  # the version and the user, without a type
    bind, execute, sync = (kind + (7).to_bytes(4, "big") + b"abc" for kind in (b"B", b"E", b"S"))
    sent = first + bind + execute + sync + bind
    for size in range(1, len(sent)):
        units = Units()
        pieces = [sent[at : at + size] for at in range(0, len(sent), size)]
        assert [unit for piece in pieces for unit in units.feed(piece)] == [first, bind + execute + sync]
    said = error(Strike.DEADLOCK)
    assert (said[:1], int.from_bytes(said[1:5], "big")) == (b"E", len(said) - 1)
    assert b"C40P01\0" in said
