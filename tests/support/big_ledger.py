"""Books of any size, made by SQL: as wallet_apply would have left them, in a fraction of the time.

Each wallet has one credit and then charges, each with its usage event at the price of `tests.support.ledger`.
"""

import asyncpg

from tests.support.ledger import KEY_ID, make_price

# What a call cost depends on its seq alone: 1,250 picos a token in and 4,001 a token out, rounded half to even.
_CALLS = """
WITH calls AS (
    SELECT
        w.wallet_id, s.seq, (w.n - 1) * $1::bigint + s.seq AS number,
        100 + s.seq % 900 AS input, 1 + s.seq % 50 AS output,
        (100 + s.seq % 900) * 1250 + (1 + s.seq % 50) * 4001 AS picos
    FROM (SELECT wallet_id, row_number() OVER (ORDER BY wallet_id) AS n FROM wallets) AS w
    CROSS JOIN generate_series(2, $1::bigint) AS s (seq)
), costs AS (
    SELECT *, picos / 1000 + CASE
        WHEN picos % 1000 > 500 OR (picos % 1000 = 500 AND (picos / 1000) % 2 = 1) THEN 1 ELSE 0
    END AS nanos,
    -- An id of its time: some thousands in a millisecond, all within the last hours.
    (lpad(to_hex($2::bigint + number / 1000), 12, '0') || '7000' || '8' || lpad(to_hex(number), 15, '0'))::uuid AS hold
    FROM calls
)
"""
_ENTRIES = """
INSERT INTO ledger_entries (wallet_id, seq, kind, contra, amount_nanos, balance_after_nanos, hold_id, created_at)
SELECT wallet_id, seq, 'charge', 'revenue', -nanos,
    $3::bigint - sum(nanos) OVER (PARTITION BY wallet_id ORDER BY seq), hold,
    now() - interval '2 hours' + number * interval '1 ms'
FROM costs
"""
_EVENTS = """
INSERT INTO usage_events (wallet_id, hold_id, resolution, basis, key_id, price_id, endpoint, upstream, usage,
    held_nanos, cost_picos, cost_nanos, charged_nanos, entry_seq)
SELECT wallet_id, hold, 'settled', 'reported', $3::uuid, $4::bigint, 'chat.completions', 'up0',
    jsonb_build_object('input', input, 'output', output), nanos, picos, nanos, nanos, seq
FROM costs
"""
_WALLETS = """
WITH opened AS (
    INSERT INTO wallets (wallet_id, name, balance_nanos, entry_seq)
    SELECT ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'wallet ' || n, $1::bigint, 1
    FROM generate_series(1, $2::bigint) AS n
    RETURNING wallet_id
)
INSERT INTO ledger_entries (wallet_id, seq, kind, contra, amount_nanos, balance_after_nanos, posting_id, actor, reason,
    created_at)
SELECT wallet_id, 1, 'credit', 'credits', $1, $1, wallet_id, 'test', 'test', now() - interval '3 hours' FROM opened
"""
_BALANCES = """
UPDATE wallets AS w SET entry_seq = $1::bigint, balance_nanos = e.balance_after_nanos
FROM ledger_entries AS e
WHERE e.wallet_id = w.wallet_id AND e.seq = $1
"""
CREDIT_NANOS = 10**15


async def make_big_ledger(connection: asyncpg.Connection, *, wallets: int, entries: int) -> None:
    """`wallets` wallets with `entries` ledger entries each, in an empty database."""
    price = await make_price(connection)
    now_ms = await connection.fetchval("SELECT (extract(EPOCH FROM now()) * 1000)::bigint")
    start_ms = now_ms - 3_600_000 - wallets * entries // 1_000
    await connection.execute(_WALLETS, CREDIT_NANOS, wallets)
    await connection.execute(_CALLS + _ENTRIES, entries, start_ms, CREDIT_NANOS)
    await connection.execute(_CALLS + _EVENTS, entries, start_ms, KEY_ID, price.price_id)
    await connection.execute(_BALANCES, entries)
    await connection.execute("ANALYZE")
