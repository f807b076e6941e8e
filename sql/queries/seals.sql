-- name: head_lock
-- The newest head, held by whoever seals now; no row while another gateway does.
SELECT head, hash
FROM ledger_heads
WHERE head = (SELECT max(head) FROM ledger_heads)
FOR UPDATE SKIP LOCKED;

-- name: seal_candidates
-- A page of wallets after a given one: those with entries past their last seal, and the last of the page.
SELECT
    p.wallet_id, p.entry_seq, p.is_last, coalesce(s.block, 0) AS block, coalesce(s.last_seq, 0) AS last_seq, s.hash,
    extract(EPOCH FROM now() - e.created_at)::double precision AS oldest_seconds
FROM (
    SELECT wallet_id, entry_seq, lead(wallet_id) OVER (ORDER BY wallet_id) IS NULL AS is_last
    FROM (
        SELECT wallet_id, entry_seq FROM wallets WHERE wallet_id > $1 ORDER BY wallet_id LIMIT $2
    ) AS w
) AS p
LEFT JOIN LATERAL (
    SELECT block, last_seq, hash FROM ledger_seals AS s
    WHERE s.wallet_id = p.wallet_id
    ORDER BY block DESC
    LIMIT 1
) AS s ON true
LEFT JOIN LATERAL (
    SELECT created_at FROM ledger_entries AS e
    WHERE e.wallet_id = p.wallet_id AND e.seq = coalesce(s.last_seq, 0) + 1
) AS e ON true
WHERE p.is_last OR p.entry_seq <> coalesce(s.last_seq, 0)
ORDER BY p.wallet_id;

-- name: seal_entries
-- The entries of ranges of seq, in the order of core.seal.Entry.
SELECT
    e.wallet_id, e.seq, e.kind::text, e.contra, e.amount_nanos, e.balance_after_nanos, e.hold_id, e.posting_id,
    e.actor, e.reason, e.created_at
FROM unnest($1::uuid[], $2::bigint[], $3::bigint[]) WITH ORDINALITY AS r (wallet_id, first_seq, last_seq, n)
JOIN LATERAL (
    SELECT * FROM ledger_entries AS e
    WHERE e.wallet_id = r.wallet_id AND e.seq BETWEEN r.first_seq AND r.last_seq
    OFFSET 0
) AS e ON true
ORDER BY r.n, e.seq;

-- name: head_add
-- Add the head that follows; no row where another gateway was first.
INSERT INTO ledger_heads (head, wallets, blocks, hash) VALUES ($1, $2, $3, $4)
ON CONFLICT (head) DO NOTHING
RETURNING head;

-- name: seals_add
-- Add the seals of a head.
INSERT INTO ledger_seals (wallet_id, block, first_seq, last_seq, fingerprints, hash)
SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bytea[], $6::bytea[]);

-- name: seals_after
-- Seals after a given one, each with the hash of the block before it.
SELECT s.wallet_id, s.block, s.first_seq, s.last_seq, s.fingerprints, s.hash, p.hash AS previous
FROM ledger_seals AS s
LEFT JOIN ledger_seals AS p ON p.wallet_id = s.wallet_id AND p.block = s.block - 1
WHERE (s.wallet_id, s.block) > ($1, $2)
ORDER BY s.wallet_id, s.block
LIMIT $3;

-- name: entries_for_audit
-- Every entry by wallet and seq, in the order of core.seal.Entry.
SELECT
    wallet_id, seq, kind::text, contra, amount_nanos, balance_after_nanos, hold_id, posting_id, actor, reason,
    created_at
FROM ledger_entries
ORDER BY wallet_id, seq;

-- name: entries_count
-- How many entries the wallets have by their own count, for a progress bar.
SELECT coalesce(sum(entry_seq), 0)::bigint FROM wallets;

-- name: seals_for_audit
-- Every seal by wallet and block, in the order of core.seal.Seal.
SELECT wallet_id, block, first_seq, last_seq, fingerprints, hash
FROM ledger_seals
ORDER BY wallet_id, block;

-- name: heads_for_audit
-- Every head with the seals that it names, in its order; one row without a block where it names none.
SELECT h.head, h.hash AS head_hash, m.wallet_id, m.block, s.first_seq, s.last_seq, s.hash
FROM ledger_heads AS h
LEFT JOIN LATERAL unnest(h.wallets, h.blocks) WITH ORDINALITY AS m (wallet_id, block, n) ON true
LEFT JOIN ledger_seals AS s ON s.wallet_id = m.wallet_id AND s.block = m.block
ORDER BY h.head, m.n;
