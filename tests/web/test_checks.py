"""What one gateway says of itself; red and green over the wire are in test_health.py."""

from uuid import UUID

from gateway.web.checks import checks
from tests.support.gateway import Farebox, farebox
from tests.support.shop import until


async def failing(gateway: Farebox) -> dict[str, str]:
    return {found.name: found.detail for found in await checks(gateway.app) if not found.passes}


async def test_who_does_not_lead_says_nothing_of_the_database_as_a_whole(database_url: str) -> None:
    """What it once saw there may be put right since: another process looks now."""
    async with farebox(database_url, ["http://127.0.0.1:1/v1"], seal_seconds=3_600.0) as gateway:
        app = gateway.app
        value = app.metrics.registry.get_sample_value
        await until(
            lambda: all(value("farebox_upkeep_last_success_seconds", {"service": s}) for s in ("invariants", "seal"))
        )
        assert await failing(gateway) == {}
        app.invariants.failing = {"drift": 1}
        app.seal.unsealable = {UUID(int=1): "seq 1"}
        assert await failing(gateway) == {"invariants": "drift", "chain": "1 places changed"}
        await app.lead.leave()
        assert await failing(gateway) == {}
