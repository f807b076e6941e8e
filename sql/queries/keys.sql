-- name: key_create
-- Store a key by its hash.
INSERT INTO api_keys (key_hash, key_id, wallet_id, name, hint, models, expires_at)
SELECT $1, $2, w.wallet_id, $4, $5, $6, $7 FROM wallets AS w WHERE w.wallet_id = $3
RETURNING key_id;

-- name: key_by_hash
-- The key that a caller presented, if it may still be used.
SELECT key_id, wallet_id, models, expires_at
FROM api_keys
WHERE key_hash = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now());

-- name: key_list
-- Keys of one wallet, or of all, after a given one.
SELECT key_id, wallet_id, name, hint, models, created_at, expires_at, revoked_at,
    coalesce(expires_at <= now(), false) AS is_expired
FROM api_keys
WHERE ($1::uuid IS NULL OR wallet_id = $1)
    AND ($2::uuid IS NULL OR (wallet_id, key_id) > (SELECT k.wallet_id, k.key_id FROM api_keys AS k WHERE k.key_id = $2))
ORDER BY wallet_id, key_id
LIMIT $3;

-- name: key_revoke
-- Revoke a key and tell every process at the commit.
WITH revoked AS (
    UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE key_id = $1 RETURNING key_hash
)
SELECT pg_notify('farebox_keys', encode(key_hash, 'hex')) FROM revoked;
