-- name: wallet_create
-- Open a wallet with nothing in it.
INSERT INTO wallets (wallet_id, name, floor_nanos) VALUES ($1, $2, $3)
ON CONFLICT (wallet_id) DO NOTHING;

-- name: wallet_get
-- One wallet.
SELECT wallet_id, name, status, balance_nanos, held_nanos, floor_nanos, entry_seq, created_at
FROM wallets
WHERE wallet_id = $1;

-- name: wallet_list
-- Wallets in order of their ids, after a given one.
SELECT wallet_id, name, status, balance_nanos, held_nanos, floor_nanos, entry_seq, created_at
FROM wallets
WHERE $1::uuid IS NULL OR wallet_id > $1
ORDER BY wallet_id
LIMIT $2;

-- name: wallet_post
-- Credit or adjust a wallet, once per posting id.
SELECT outcome, balance_nanos, held_nanos FROM wallet_post($1, $2, $3, $4, $5, $6, $7);

-- name: wallet_set_status
-- Suspend or reopen a wallet.
UPDATE wallets SET status = $2 WHERE wallet_id = $1 RETURNING wallet_id;

-- name: ledger_entry_list
-- A wallet's newest ledger entries, before a given seq.
SELECT seq, kind, contra, amount_nanos, balance_after_nanos, hold_id, posting_id, actor, reason, created_at
FROM ledger_entries
WHERE wallet_id = $1 AND ($2::bigint IS NULL OR seq < $2)
ORDER BY seq DESC
LIMIT $3;

-- name: ledger_entry_by_posting
-- The entry that a posting id made.
SELECT seq, kind, amount_nanos, balance_after_nanos, actor, reason, created_at
FROM ledger_entries
WHERE wallet_id = $1 AND posting_id = $2;

-- name: wallet_set_floor
-- Change how far below zero a wallet may go.
SELECT wallet_set_floor($1, $2, $3, $4) AS outcome;
