-- Named queries that return no row on a healthy database. Run after every database test, by `farebox audit`, and by
-- the invariants service. Each returns a wallet_id (or null), a seq where it is about an entry, and a sentence.

-- name: balance_is_the_sum_of_entries
SELECT w.wallet_id, format('balance %s, entries sum to %s', w.balance_nanos, coalesce(e.total, 0)) AS difference
FROM wallets AS w
LEFT JOIN (SELECT wallet_id, sum(amount_nanos) AS total FROM ledger_entries GROUP BY wallet_id) AS e USING (wallet_id)
WHERE w.balance_nanos <> coalesce(e.total, 0);

-- name: held_is_the_sum_of_open_holds
SELECT w.wallet_id, format('held %s, open holds sum to %s', w.held_nanos, coalesce(h.total, 0)) AS difference
FROM wallets AS w
LEFT JOIN (
    SELECT wallet_id, sum(held_nanos) AS total FROM holds WHERE state = 'open' GROUP BY wallet_id
) AS h USING (wallet_id)
WHERE w.held_nanos <> coalesce(h.total, 0);

-- name: nothing_belongs_to_no_wallet
SELECT x.wallet_id, format('%s rows of %s have no wallet', count(*), x.place) AS difference
FROM (
    SELECT wallet_id, 'ledger_entries' AS place FROM ledger_entries
    UNION ALL SELECT wallet_id, 'holds' FROM holds
    UNION ALL SELECT wallet_id, 'usage_events' FROM usage_events
) AS x
LEFT JOIN wallets AS w USING (wallet_id)
WHERE w.wallet_id IS NULL
GROUP BY x.wallet_id, x.place;

-- name: floor_is_respected_now
SELECT wallet_id, format('balance %s - held %s < -floor %s', balance_nanos, held_nanos, floor_nanos) AS difference
FROM wallets
WHERE balance_nanos - held_nanos < -floor_nanos;

-- name: charges_respect_the_floor_at_every_seq
SELECT
    e.wallet_id, e.seq,
    format('left %s under floor %s', e.balance_after_nanos, coalesce(f.floor_nanos, w.floor_nanos)) AS difference
FROM ledger_entries AS e
JOIN wallets AS w USING (wallet_id)
LEFT JOIN LATERAL (
    -- The floor that was in force then, where it has changed since.
    SELECT floor_nanos FROM wallet_floors AS f
    WHERE f.wallet_id = e.wallet_id AND f.last_seq >= e.seq
    ORDER BY f.change
    LIMIT 1
) AS f ON true
WHERE e.kind = 'charge' AND e.balance_after_nanos < 0
    AND e.balance_after_nanos < -coalesce(f.floor_nanos, w.floor_nanos);

-- name: seq_is_dense
SELECT w.wallet_id, format('entry_seq %s, %s entries from %s to %s', w.entry_seq, e.n, e.low, e.high) AS difference
FROM wallets AS w
LEFT JOIN (
    SELECT wallet_id, count(*) AS n, min(seq) AS low, max(seq) AS high FROM ledger_entries GROUP BY wallet_id
) AS e USING (wallet_id)
WHERE w.entry_seq <> coalesce(e.n, 0) OR coalesce(e.low, 1) <> 1 OR coalesce(e.high, 0) <> w.entry_seq;

-- name: balance_after_is_a_chain
SELECT wallet_id, seq, format('%s + %s is not %s', before, amount_nanos, balance_after_nanos) AS difference
FROM (
    SELECT
        wallet_id, seq, amount_nanos, balance_after_nanos,
        lag(balance_after_nanos, 1, 0::bigint) OVER (PARTITION BY wallet_id ORDER BY seq) AS before
    FROM ledger_entries
) AS e
WHERE before + amount_nanos <> balance_after_nanos;

-- name: a_resolved_hold_is_not_open
SELECT h.wallet_id, format('hold %s is open and %s', h.hold_id, u.resolution) AS difference
FROM holds AS h
JOIN usage_events AS u USING (wallet_id, hold_id)
WHERE h.state = 'open';

-- name: at_most_one_resolution_and_one_late_settle
SELECT wallet_id, format('hold %s: %s rows', hold_id, count(*)) AS difference
FROM usage_events
GROUP BY wallet_id, hold_id
HAVING count(*) FILTER (WHERE NOT late) <> 1 OR count(*) FILTER (WHERE late) > 1
    OR (bool_or(late) AND NOT bool_or(resolution = 'expired' AND NOT late));

-- name: a_late_settle_charges_the_rest
SELECT u.wallet_id, format('hold %s: prior %s, swept %s', u.hold_id, u.prior_nanos, s.charged_nanos) AS difference
FROM usage_events AS u
LEFT JOIN usage_events AS s ON s.wallet_id = u.wallet_id AND s.hold_id = u.hold_id AND NOT s.late AND u.late
WHERE u.prior_nanos <> coalesce(s.charged_nanos, 0);

-- name: every_charge_has_one_usage_event
SELECT e.wallet_id, e.seq, format('hold %s: %s usage events of its amount', e.hold_id, count(u.hold_id)) AS difference
FROM ledger_entries AS e
LEFT JOIN usage_events AS u
    ON u.wallet_id = e.wallet_id AND u.hold_id = e.hold_id AND u.entry_seq = e.seq
    AND u.charged_nanos = -e.amount_nanos
WHERE e.kind = 'charge'
GROUP BY e.wallet_id, e.seq, e.hold_id
HAVING count(u.hold_id) > 1 OR (
    count(u.hold_id) = 0
    -- But for those that retention has dropped.
    AND NOT EXISTS (
        SELECT FROM usage_dropped AS d WHERE e.hold_id >= d.first_hold AND e.hold_id < d.end_hold
    )
);

-- name: dropped_usage_is_what_was_charged
-- Of usage events that retention has dropped, the sum is kept: it must be that of the entries of the same calls.
SELECT
    NULL::uuid AS wallet_id,
    format('%s was charged %s, its entries sum to %s', d.partition, d.charged_nanos, coalesce(e.total, 0)) AS difference
FROM usage_dropped AS d
LEFT JOIN (
    SELECT d.partition, -sum(e.amount_nanos) AS total
    FROM usage_dropped AS d
    JOIN ledger_entries AS e ON e.kind = 'charge' AND e.hold_id >= d.first_hold AND e.hold_id < d.end_hold
    GROUP BY d.partition
) AS e USING (partition)
WHERE d.charged_nanos <> coalesce(e.total, 0);

-- name: every_charged_event_has_its_entry
SELECT
    u.wallet_id, u.entry_seq AS seq,
    format('hold %s charged %s, entry %s', u.hold_id, u.charged_nanos, u.entry_seq) AS difference
FROM usage_events AS u
LEFT JOIN ledger_entries AS e
    ON e.wallet_id = u.wallet_id AND e.seq = u.entry_seq AND e.hold_id = u.hold_id
    AND e.amount_nanos = -u.charged_nanos
WHERE (u.charged_nanos > 0 OR u.entry_seq IS NOT NULL) AND e.seq IS NULL;

-- name: cost_is_charged_prior_or_short
SELECT wallet_id, format('hold %s: cost %s', hold_id, cost_nanos) AS difference
FROM usage_events
WHERE charged_nanos + shortfall_nanos <> greatest(cost_nanos - prior_nanos, 0)
    OR least(charged_nanos, shortfall_nanos, cost_nanos, cost_picos, prior_nanos, held_nanos) < 0
    OR (resolution = 'voided' AND cost_nanos <> 0);

-- name: cost_is_rounded_half_to_even
SELECT wallet_id, format('hold %s: %s picos, %s nanos', hold_id, cost_picos, cost_nanos) AS difference
FROM usage_events
WHERE cost_nanos <> cost_picos / 1000 + CASE
    WHEN cost_picos % 1000 > 500 OR (cost_picos % 1000 = 500 AND (cost_picos / 1000) % 2 = 1) THEN 1 ELSE 0
END;

-- name: every_event_names_a_price_and_a_reason
SELECT u.wallet_id, format('hold %s: price %s, %s, %s', u.hold_id, u.price_id, u.basis, u.reason) AS difference
FROM usage_events AS u
LEFT JOIN prices AS p USING (price_id)
WHERE p.price_id IS NULL OR (u.basis = 'estimated' AND u.reason IS NULL);

-- name: every_posting_is_explained
SELECT wallet_id, seq, format('%s without its reason, actor or id', kind) AS difference
FROM ledger_entries
WHERE amount_nanos = 0 OR (kind = 'charge') <> (hold_id IS NOT NULL)
    OR (kind <> 'charge' AND (posting_id IS NULL OR actor IS NULL OR reason IS NULL));

-- name: accounts_sum_to_zero
SELECT NULL::uuid AS wallet_id, format('wallets %s, contra accounts %s', w.total, c.total) AS difference
FROM
    (SELECT coalesce(sum(balance_nanos), 0) AS total FROM wallets) AS w,
    (SELECT coalesce(sum(-amount_nanos), 0) AS total FROM ledger_entries) AS c
WHERE w.total + c.total <> 0;

-- name: no_hold_outlives_twice_its_validity
SELECT wallet_id, format('hold %s renewed at %s', hold_id, renewed_at) AS difference
FROM holds
WHERE state = 'open' AND now() > renewed_at + make_interval(secs => 2 * valid_seconds) + interval '2 minutes';

-- name: a_declined_hold_holds_nothing
SELECT wallet_id, format('hold %s: %s, %s, %s', hold_id, state, decline, held_nanos) AS difference
FROM holds
WHERE (state = 'declined') <> (decline IS NOT NULL) OR (state = 'declined' AND held_nanos <> 0)
    OR held_nanos < 0 OR checkpoint_nanos < 0 OR valid_seconds <= 0;

-- name: every_seal_is_in_one_head
-- A seal that was removed, or made anew, was named by an earlier head.
SELECT wallet_id, format('block %s: in %s heads, %s', block, coalesce(h.heads, 0), CASE
    WHEN s.hash IS NULL THEN 'and gone' ELSE 'and there' END) AS difference
FROM ledger_seals AS s
FULL JOIN (
    SELECT m.wallet_id, m.block, count(*) AS heads
    FROM ledger_heads CROSS JOIN LATERAL unnest(wallets, blocks) AS m (wallet_id, block)
    GROUP BY m.wallet_id, m.block
) AS h USING (wallet_id, block)
WHERE s.hash IS NULL OR h.heads IS DISTINCT FROM 1;
