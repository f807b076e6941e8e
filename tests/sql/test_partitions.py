"""usage_events is partitioned by the month in which an id was made: no id that may be charged is without a place."""

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from gateway.db.queries import queries, sql_directory
from tests.support.ledger_operations import Ledger, id_at, id_before_now, open_ledger, void

NAMES = "SELECT relname FROM pg_class WHERE relname LIKE 'usage_events_2%' AND relkind = 'r' ORDER BY relname"


def months(first: datetime, last: datetime) -> list[str]:
    """The partitions from the month of `first` to that of `last`."""
    counted = range(first.year * 12 + first.month - 1, last.year * 12 + last.month)
    return [f"usage_events_{number // 12}_{number % 12 + 1:02d}" for number in counted]


async def test_the_partitions_cover_every_id_in_range(ledger: Ledger) -> None:
    now = datetime.now(UTC)
    made = [row["relname"] for row in await ledger.connection.fetch(NAMES)]
    assert made == months(now - timedelta(days=46), now.replace(day=1) + timedelta(days=3 * 31))
    assert await ledger.connection.fetchval(queries()["usage_partitions_ensure"]) == 0
    assert await ledger.connection.fetchval("SELECT usage_partitions_ensure(5)") == 2
    assert await ledger.connection.fetchval("SELECT usage_partitions_ensure(5)") == 0


async def test_an_id_is_kept_in_the_month_that_made_it(ledger: Ledger) -> None:
    now, wallet = datetime.now(UTC), await ledger.wallet()
    first = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    last = first - timedelta(milliseconds=1)
    moments = [first, last, now, now + timedelta(hours=23), now - timedelta(days=44)]
    for moment in moments:
        hold_id = id_at(moment)
        assert await ledger.outcomes(wallet, void(hold_id)) == ["voided"]
        place = await ledger.connection.fetchval(
            "SELECT tableoid::regclass::text FROM usage_events WHERE hold_id = $1", hold_id
        )
        assert [place] == months(moment, moment)


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("1970-01-01 00:00:00+00", "00000000-0000-0000-0000-000000000000"),
        ("2026-12-31 23:59:59.999+00", "01a2ce8b-d3ff-0000-0000-000000000000"),
        ("2027-01-01 00:00:00+00", "01a2ce8b-d400-0000-0000-000000000000"),
        ("2027-01-01 00:00:00.0009+00", "01a2ce8b-d400-0000-0000-000000000000"),
        ("2027-01-01 03:00:00+03", "01a2ce8b-d400-0000-0000-000000000000"),
    ],
)
async def test_uuid_floor_is_the_least_id_of_its_millisecond(ledger: Ledger, moment: str, expected: str) -> None:
    found = await ledger.connection.fetchval("SELECT uuid_floor($1::text::timestamptz)::text", moment)
    assert found == expected
    if "." not in moment:
        assert id_at(datetime.fromisoformat(moment))[:13] == expected[:13]
    assert await ledger.connection.fetchval("SELECT uuid_floor(NULL)") is None


@pytest.mark.parametrize("zone", ["America/New_York", "Pacific/Kiritimati"])
async def test_no_month_is_left_out_whatever_the_date_and_the_time_zone(ledger: Ledger, zone: str) -> None:
    """Counted in a session's own time zone, a month after the 31st of January is the 28th of February, and a month
    after that the 28th of March: at the first change of the clocks a month was left out."""
    function = (sql_directory() / "functions" / "usage_partitions_ensure.sql").read_text(encoding="utf-8")
    assert function.count("now()") == 2
    change = ledger.connection.transaction()
    await change.start()
    try:
        await ledger.connection.execute(f"SET LOCAL TimeZone = '{zone}'")
        for name in [row["relname"] for row in await ledger.connection.fetch(NAMES)]:
            await ledger.connection.execute(f"DROP TABLE {name}")
        start = datetime(2026, 12, 31, 23, 59, tzinfo=UTC)
        for day in range(0, 460, 23):
            now = start + timedelta(days=day)
            async with ledger.connection.transaction():
                await ledger.connection.execute(function.replace("now()", f"timestamptz '{now.isoformat()}'"))
                await ledger.connection.fetchval("SELECT usage_partitions_ensure()")
                made = [row["relname"] for row in await ledger.connection.fetch(NAMES)]
                wanted = months(now - timedelta(days=46), now.replace(day=1) + timedelta(days=3 * 31))
                assert made == wanted, f"at {now}"
                for name in made:
                    await ledger.connection.execute(f"DROP TABLE {name}")
    finally:
        await change.rollback()


async def test_gateways_that_make_partitions_at_once_do_not_fail(shared_url: str, ledger: Ledger) -> None:
    """Every worker's upkeep comes here within the hour of a new month."""
    await ledger.connection.execute(f"DROP TABLE {months(datetime.now(UTC), datetime.now(UTC))[0]}")

    async def ensure() -> int:
        async with open_ledger(shared_url) as other:
            made = await other.connection.fetchval("SELECT usage_partitions_ensure(7)")
            assert isinstance(made, int)
            return made

    made = await asyncio.gather(*(ensure() for _ in range(4)))
    assert sum(value > 0 for value in made) == 1
    assert await ledger.outcomes(await ledger.wallet(), void(id_before_now(seconds=0))) == ["voided"]


async def test_an_id_without_a_partition_is_loud(ledger: Ledger) -> None:
    wallet, now = await ledger.wallet(), datetime.now(UTC)
    change = ledger.connection.transaction()
    await change.start()
    try:
        await ledger.connection.execute(f"DROP TABLE {months(now, now)[0]}")
        with pytest.raises(asyncpg.CheckViolationError):
            await ledger.apply(wallet, void(id_at(now)))
    finally:
        await change.rollback()
