-- name: idempotency_claim
-- Claim a key for the call whose hold will be $4; no row where somebody has it. Nothing is written, nor locked, then: a
-- replay costs no commit.
INSERT INTO idempotency_keys AS k (wallet_id, key_hash, body_hash, hold_id, expires_at)
VALUES ($1, $2, $3, $4, now() + make_interval(secs => $5))
ON CONFLICT (wallet_id, key_hash) DO NOTHING
RETURNING k.hold_id;

-- name: idempotency_look
-- Where a key's call stands: the first line that is true. $4 is how long a claim may be without a hold; $5 how long
-- after the end of its hold a call may still be about to keep its reply, or to settle late.
SELECT
    k.hold_id,
    coalesce(u.charged_nanos, 0)::bigint AS charged_nanos,
    CASE WHEN k.body_hash = $3 THEN k.reply END AS reply,
    CASE
        WHEN k.expires_at <= now() AND h.state IS DISTINCT FROM 'open' THEN 'free'
        WHEN k.body_hash <> $3 THEN 'other_body'
        WHEN k.status = 'finished' THEN 'finished'
        WHEN k.status = 'lost' THEN 'lost'
        WHEN h.state = 'open' THEN 'running'
        WHEN h.state = 'declined' OR u.is_voided THEN 'free'
        WHEN u.ended_at IS NULL AND k.claimed_at > now() - make_interval(secs => $4) THEN 'running'
        WHEN u.ended_at IS NULL THEN 'unplaced'
        WHEN u.is_superseded AND u.charged_nanos = 0 THEN 'free'
        WHEN u.ended_at > now() - make_interval(secs => $5) THEN 'running'
        WHEN u.charged_nanos > 0 THEN 'lost'
        WHEN u.is_swept THEN 'swept'
        ELSE 'free'
    END AS standing
FROM idempotency_keys AS k
LEFT JOIN holds AS h ON h.wallet_id = k.wallet_id AND h.hold_id = k.hold_id
CROSS JOIN LATERAL (
    SELECT
        sum(e.charged_nanos) AS charged_nanos,
        max(e.created_at) AS ended_at,
        bool_or(e.resolution = 'voided') AS is_voided,
        bool_or(e.resolution = 'expired') AND NOT bool_or(e.late) AS is_swept,
        bool_or(e.late AND e.reason = 'superseded') AS is_superseded
    FROM usage_events AS e
    WHERE e.wallet_id = k.wallet_id AND e.hold_id = k.hold_id
) AS u
WHERE k.wallet_id = $1 AND k.key_hash = $2;

-- name: idempotency_take_over
-- Claim a key that is free, for the body $4 and the hold $5 in place of $3.
UPDATE idempotency_keys
SET body_hash = $4, hold_id = $5, status = 'running', reply = NULL, claimed_at = now(),
    expires_at = now() + make_interval(secs => $6)
WHERE wallet_id = $1 AND key_hash = $2 AND hold_id = $3 AND (status = 'running' OR expires_at <= now())
RETURNING hold_id;

-- name: idempotency_keep
-- Keep the reply of the call that has the key.
UPDATE idempotency_keys
SET status = 'finished', reply = $4, expires_at = now() + make_interval(secs => $5)
WHERE wallet_id = $1 AND key_hash = $2 AND hold_id = $3 AND status = 'running'
RETURNING hold_id;

-- name: idempotency_release
-- Forget a key whose call ended, or was never begun, without a charge.
DELETE FROM idempotency_keys AS k
WHERE k.wallet_id = $1 AND k.key_hash = $2 AND k.hold_id = $3 AND k.status = 'running'
    AND NOT EXISTS (
        SELECT FROM holds AS h WHERE h.wallet_id = k.wallet_id AND h.hold_id = k.hold_id AND h.state = 'open'
    )
    AND NOT EXISTS (
        SELECT FROM usage_events AS e
        WHERE e.wallet_id = k.wallet_id AND e.hold_id = k.hold_id
            AND (e.charged_nanos > 0 OR e.resolution = 'expired') -- an expired hold may still be settled late
    )
RETURNING k.hold_id;

-- name: idempotency_lose
-- Say that the call was charged and its reply is not kept.
UPDATE idempotency_keys AS k
SET status = 'lost'
WHERE k.wallet_id = $1 AND k.key_hash = $2 AND k.hold_id = $3 AND k.status = 'running'
    AND EXISTS (
        SELECT FROM usage_events AS e
        WHERE e.wallet_id = k.wallet_id AND e.hold_id = k.hold_id AND e.charged_nanos > 0
    )
RETURNING k.hold_id;

-- name: idempotency_forget
-- Delete up to $1 keys that are past their time, oldest first.
DELETE FROM idempotency_keys AS k
USING (
    SELECT x.wallet_id, x.key_hash FROM idempotency_keys AS x
    WHERE x.expires_at <= now() AND NOT EXISTS (
        SELECT FROM holds AS h WHERE h.wallet_id = x.wallet_id AND h.hold_id = x.hold_id AND h.state = 'open'
    )
    ORDER BY x.expires_at
    LIMIT $1
    FOR UPDATE OF x SKIP LOCKED
) AS due
WHERE k.wallet_id = due.wallet_id AND k.key_hash = due.key_hash
RETURNING k.hold_id;
