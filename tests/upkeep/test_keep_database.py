"""The embedded server comes back by itself, with what it had acknowledged."""

from pathlib import Path

import asyncpg

from gateway.db.embedded import EmbeddedPostgres
from gateway.upkeep.keep_database import KeepDatabase


async def test_a_killed_server_is_started_again_with_its_data(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "postgres")
    with server as dsn:
        keeper = KeepDatabase(server)
        assert await keeper.run_once() is False
        connection = await asyncpg.connect(dsn)
        await connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
        await connection.close()
        server.kill()
        assert await keeper.run_once() is True
        connection = await asyncpg.connect(dsn)
        assert await connection.fetchval("SELECT number FROM kept") == 7
        await connection.close()
        assert await keeper.run_once() is False
    assert not server.is_running()
