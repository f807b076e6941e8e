"""Goal: Farebox keeps its promises on servers older than the one it carries. Method: the wheel's other server, and the
one that the machine has, each with a synchronous standby, behind a whole gateway; the upstream's log is the oracle, and
the audit reads every row.

With FAREBOX_TEST_DATABASE_URL naming a server, where the account may make databases, all other tests run on that one.
"""

import asyncio
import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from gateway.core.money import parse_nanos
from gateway.db.audit import audit
from gateway.db.embedded_programs import MAJOR_VERSION, PACKAGE, Programs
from gateway.db.migrate import migrate
from tests.adversity.witness import Books, chat
from tests.support.behaviours import Completion
from tests.support.cluster import Cluster
from tests.support.gateway import farebox
from tests.support.postgres import ScratchPostgres
from tests.support.upstream import FakeUpstream

OLDEST = 14
CALLS = 24
OUTPUT_TOKENS = 150


def version_of(programs: Path) -> int:
    said = subprocess.run([programs / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    return int(said.split()[2].partition(".")[0])


def older_servers() -> dict[int, Path]:
    """Directories of programs by major version: what the wheel carries beside the newest, and what the machine has."""
    spec = importlib.util.find_spec(PACKAGE)
    carried = (spec.submodule_search_locations or ()) if spec else ()
    places = [Path(place) / "pginstall" / "bin" for place in carried]
    if (installed := shutil.which("postgres")) is not None:
        places.append(Path(installed).resolve().parent)
    found = {version_of(place): place for place in places if (place / "initdb").is_file()}
    return {version: place for version, place in found.items() if OLDEST <= version < int(MAJOR_VERSION)}


OLDER = older_servers()


async def prepare(dsn: str) -> None:
    await migrate(dsn, is_durable_required=False)


@pytest.fixture(scope="module", params=sorted(OLDER), ids=str)
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def scratch(version: int) -> Iterator[ScratchPostgres]:
    with (
        Cluster(programs=Programs(OLDER[version])) as cluster,
        ScratchPostgres(prepare, server_url=cluster.dsn) as server,
    ):
        yield server


def test_the_wheel_carries_one() -> None:
    assert OLDER


async def test_calls_are_charged_what_was_served(version: int, database_url: str) -> None:
    """Whole replies and streams, with caps and with holds that grow, through one lane."""
    connection = await asyncpg.connect(database_url)
    assert connection.get_server_version().major == version
    await connection.close()
    async with (
        FakeUpstream(Completion(output_tokens=OUTPUT_TOKENS)) as upstream,
        farebox(database_url, [upstream.base_url], credit="10", hold_slice_tokens=32) as gateway,
    ):
        base_url = gateway.base_url
        calls = [
            chat(
                gateway.session, base_url, gateway.key, stream=bool(number % 2), max_tokens=[None, 500][number % 3 > 0]
            )
            for number in range(CALLS)
        ]
        seen = await asyncio.gather(*calls)
        async with Books(database_url, gateway.wallet_id, parse_nanos("10")) as books:
            await books.resolved()
            await books.check(upstream.log, seen)
            assert len(await books.events()) == CALLS
    assert (await audit(database_url)).is_clean
