import asyncpg

from gateway.db.streams import BATCH_ROWS, lift_time_limits, stream


async def test_rows_come_in_batches_and_in_order(database_url: str) -> None:
    connection = await asyncpg.connect(database_url, server_settings={"statement_timeout": "9s"})
    async with connection.transaction():
        await lift_time_limits(connection)
        batches = [rows async for rows in stream(connection, "SELECT n FROM generate_series(1, $1::int) AS n", 4_500)]
        assert [len(rows) for rows in batches] == [BATCH_ROWS, BATCH_ROWS, 4_500 - 2 * BATCH_ROWS]
        assert [row["n"] for rows in batches for row in rows] == list(range(1, 4_501))
        assert not [rows async for rows in stream(connection, "SELECT 1 WHERE false")]
        assert await connection.fetchval("SHOW statement_timeout") == "0"
    # The role's own limits come back with the end of the transaction.
    assert await connection.fetchval("SELECT setting FROM pg_settings WHERE name = 'statement_timeout'") == "9000"
    await connection.close()
