"""The cluster of the campaign is what it says: what a commit answered survives the primary, and a commit waits."""

import threading
from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster

COMMITTED = "SELECT string_agg(n::text, ' ' ORDER BY n) FROM kept"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster() as running:
        running.ask("CREATE TABLE kept (n integer)")
        yield running


def keep(cluster: Cluster, number: int) -> threading.Thread:
    """A commit of the primary, under way."""
    thread = threading.Thread(target=cluster.ask, args=(f"INSERT INTO kept VALUES ({number})",), daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_what_was_answered_survives_the_primary(cluster: Cluster, how: str) -> None:
    one, two = cluster.primary, cluster.standby
    cluster.ask("INSERT INTO kept VALUES (1)")
    if how == "killed":
        one.kill()
    else:
        one.freeze()
    cluster.promote()
    assert (cluster.primary, cluster.standby) == (two, one)
    assert cluster.ask(COMMITTED) == "1"
    cluster.ask("INSERT INTO kept VALUES (2)")  # alone, it does not wait
    cluster.rejoin()
    assert cluster.ask("SELECT sync_state FROM pg_stat_replication") == "sync"
    # And back again.
    cluster.primary.kill()
    cluster.promote()
    assert (cluster.primary, cluster.ask(COMMITTED)) == (one, "1 2")


def test_a_commit_waits_for_its_standby(cluster: Cluster) -> None:
    cluster.standby.freeze()
    waiting = keep(cluster, 1)
    waiting.join(0.3)
    assert waiting.is_alive()
    cluster.standby.thaw()
    waiting.join(10.0)
    assert not waiting.is_alive()
    cluster.standby.kill()
    waiting = keep(cluster, 2)
    waiting.join(0.3)
    assert waiting.is_alive()
    cluster.standby.start()
    waiting.join(10.0)
    assert not waiting.is_alive()
    cluster.standby.kill()
    cluster.stand_alone()
    cluster.ask("INSERT INTO kept VALUES (3)")
    assert cluster.ask(COMMITTED) == "1 2 3"


def test_nothing_of_it_is_left(cluster: Cluster) -> None:
    nodes, directory = (cluster.primary, cluster.standby), cluster.directory
    assert all(node.pids for node in nodes)
    cluster.standby.freeze()
    cluster.__exit__(None, None, None)
    assert not any(node.pids for node in nodes)
    assert not directory.exists()
