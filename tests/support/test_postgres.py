import asyncio
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from tests.support.postgres import ScratchPostgres


async def prepare(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute("CREATE TABLE prepared AS SELECT 7 AS value")
    await connection.close()


@pytest.fixture(scope="module")
def scratch() -> Iterator[ScratchPostgres]:
    with ScratchPostgres(prepare) as server:
        yield server
    assert not server.server.is_running()


async def test_clones_equal_the_template_and_not_each_other(scratch: ScratchPostgres) -> None:
    one, two = [await asyncpg.connect(await scratch.clone(name)) for name in ("one", "two")]
    await one.execute("UPDATE prepared SET value = 8")
    assert (await one.fetchval("TABLE prepared"), await two.fetchval("TABLE prepared")) == (8, 7)
    await two.close()
    # Somebody forgot to close `one`.
    await scratch.drop("one")
    await scratch.drop("two")
    await scratch.drop("two")
    again = await asyncpg.connect(await scratch.clone("one"))
    assert await again.fetchval("TABLE prepared") == 7
    await again.close()
    await scratch.drop("one")


async def test_clones_are_made_side_by_side(scratch: ScratchPostgres) -> None:
    names = [f"side_{number}" for number in range(4)]
    assert await asyncio.gather(*map(scratch.clone, names)) == [scratch.dsn(name) for name in names]
    await asyncio.gather(*map(scratch.drop, names))


async def test_a_name_is_not_a_statement(scratch: ScratchPostgres) -> None:
    for name in ('a"; DROP DATABASE farebox; --', "", "A", "x" * 64):
        with pytest.raises(ValueError, match="is not a plain name"):
            await scratch.clone(name)


def test_a_failed_preparation_leaves_nothing_running() -> None:
    def fail(dsn: str) -> None:
        raise RuntimeError(dsn)

    server = ScratchPostgres(fail)
    with pytest.raises(RuntimeError), server:
        pass
    assert not server.server.is_running()
    assert not Path(server.directory).exists()
