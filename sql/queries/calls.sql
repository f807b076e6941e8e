-- name: lane_apply
-- Apply each wallet's operations in wallet order, in one round trip.
SELECT b.n, r.outcomes, r.amounts, r.shortfalls, r.availables, r.balance_nanos, r.held_nanos
FROM unnest($1::uuid[], $2::jsonb[]) WITH ORDINALITY AS b (wallet_id, operations, n)
CROSS JOIN LATERAL wallet_apply(b.wallet_id, b.operations) AS r;

-- name: lane_probe
-- A commit that changes nothing, and yet is written to the log and waits for the standby as any other.
SELECT pg_logical_emit_message(true, 'farebox', 'probe') IS NOT NULL AS answered;

-- name: holds_due
-- Holds past twice their validity, for the sweep: open ones, and declined ones that it clears away.
SELECT wallet_id, hold_id, state = 'open' AS is_open
FROM holds
WHERE now() >= renewed_at + make_interval(secs => 2 * valid_seconds)
ORDER BY wallet_id, hold_id
LIMIT $1;

-- name: holds_summary
-- What is held now, and since when, for the metrics.
SELECT
    count(*) AS open_holds,
    coalesce(sum(held_nanos), 0)::bigint AS held_nanos,
    coalesce(extract(EPOCH FROM now() - min(renewed_at)), 0)::double precision AS oldest_seconds
FROM holds
WHERE state = 'open';

-- name: usage_partitions_ensure
-- Make the partitions that coming calls need.
SELECT usage_partitions_ensure();

-- name: usage_partition_drop
-- Drop the oldest month that is past its retention, if there is one.
SELECT outcome, month FROM usage_partition_drop($1);

-- name: usage_keep
-- Let no month be dropped while this transaction lasts. Before its snapshot: it must see what was dropped before.
LOCK TABLE usage_events IN ACCESS SHARE MODE;

-- name: usage_events_for_audit
-- Every usage event, in whatever order is cheapest, for working out each cost anew.
SELECT wallet_id, hold_id, resolution, usage, cost_picos, cost_nanos, price_id
FROM usage_events;

-- name: usage_events_count
-- How many there are, for a progress bar.
SELECT count(*) FROM usage_events;

-- name: usage_events_by_wallet
-- A wallet's newest resolved calls, before a given id; a late settle is never parted from what was swept before it.
SELECT hold_id, late, resolution, basis, reason, endpoint, upstream, price_id, usage, cost_nanos, charged_nanos,
    shortfall_nanos, entry_seq, created_at
FROM (
    SELECT * FROM usage_events
    WHERE wallet_id = $1 AND ($2::uuid IS NULL OR hold_id < $2)
    ORDER BY hold_id DESC
    FETCH FIRST $3 ROWS WITH TIES
) AS u
ORDER BY hold_id DESC, late DESC;

-- name: usage_export
-- Resolved calls of one wallet, or of all, between two ids, by wallet and id.
SELECT
    u.wallet_id, u.hold_id, u.late, u.created_at, u.key_id, p.model, u.endpoint, u.upstream, u.resolution::text,
    u.basis::text, u.reason, u.price_id, u.usage, u.cost_picos, u.cost_nanos, u.prior_nanos, u.charged_nanos,
    u.shortfall_nanos, u.entry_seq
FROM usage_events AS u
LEFT JOIN prices AS p USING (price_id)
WHERE ($1::uuid IS NULL OR u.wallet_id = $1) AND u.hold_id >= $2 AND u.hold_id < $3
ORDER BY u.wallet_id, u.hold_id, u.late;

-- name: usage_export_count
-- How many that are, for a progress bar.
SELECT count(*)
FROM usage_events
WHERE ($1::uuid IS NULL OR wallet_id = $1) AND hold_id >= $2 AND hold_id < $3;
