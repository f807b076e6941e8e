-- name: response_own
-- Write down whose these responses are. An id that is seen again is another response, unless the first is not settled;
-- what was written already, by an answer that got lost, is written.
INSERT INTO response_owners AS o (wallet_id, response_id, upstream, hold_id, unsettled, look_at)
SELECT x.wallet, x.response, x.upstream, x.hold, x.unsettled, now() + make_interval(secs => x.seconds)
FROM jsonb_to_recordset($1::jsonb) AS x (
    wallet uuid, response text, upstream text, hold uuid, unsettled jsonb, seconds double precision
)
ON CONFLICT (wallet_id, response_id) DO UPDATE SET
    upstream = excluded.upstream,
    hold_id = excluded.hold_id,
    unsettled = excluded.unsettled,
    look_at = excluded.look_at,
    created_at = excluded.created_at
WHERE o.look_at IS NULL OR o.hold_id = excluded.hold_id
RETURNING o.wallet_id, o.response_id;

-- name: response_owner
-- A wallet's response, not older than $3 seconds.
SELECT wallet_id, response_id, upstream, hold_id, unsettled, created_at,
    extract(epoch FROM now() - created_at)::double precision AS age_seconds
FROM response_owners
WHERE wallet_id = $1 AND response_id = $2 AND created_at > now() - make_interval(secs => $3);

-- name: responses_due
-- Up to $1 unsettled responses to look at now, left alone by others for $2 seconds, and what became of their holds.
WITH due AS (
    SELECT x.wallet_id, x.response_id FROM response_owners AS x
    WHERE x.look_at <= now()
    ORDER BY x.look_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED
)
UPDATE response_owners AS o
SET look_at = now() + make_interval(secs => $2)
FROM due
WHERE o.wallet_id = due.wallet_id AND o.response_id = due.response_id
RETURNING o.wallet_id, o.response_id, o.upstream, o.hold_id, o.unsettled, o.created_at,
    extract(epoch FROM now() - o.created_at)::double precision AS age_seconds,
    EXISTS (
        SELECT FROM usage_events AS e
        WHERE e.wallet_id = o.wallet_id AND e.hold_id = o.hold_id AND (e.resolution <> 'expired' OR e.late)
    ) AS is_resolved;

-- name: response_look_later
-- Look at an unsettled response again in $3 seconds.
UPDATE response_owners SET look_at = now() + make_interval(secs => $3)
WHERE wallet_id = $1 AND response_id = $2 AND look_at IS NOT NULL
RETURNING response_id;

-- name: response_relayed
-- Keep the most output that was counted on its way to the client of an unsettled response.
UPDATE response_owners
SET unsettled = unsettled || jsonb_build_object('relayed', greatest($3, coalesce((unsettled ->> 'relayed')::bigint, 0)))
WHERE wallet_id = $1 AND response_id = $2 AND look_at IS NOT NULL
RETURNING response_id;

-- name: response_settled
-- Nothing is left to be settled of the response of this hold.
UPDATE response_owners SET unsettled = NULL, look_at = NULL
WHERE wallet_id = $1 AND response_id = $2 AND hold_id = $3
RETURNING response_id;

-- name: responses_unsettled
-- How many responses work in the background.
SELECT count(*) AS responses FROM response_owners WHERE look_at IS NOT NULL;

-- name: responses_forget
-- Delete up to $1 settled responses that are older than $2 seconds, oldest first.
DELETE FROM response_owners AS o
USING (
    SELECT x.wallet_id, x.response_id FROM response_owners AS x
    WHERE x.created_at < now() - make_interval(secs => $2) AND x.look_at IS NULL
    ORDER BY x.created_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED
) AS old
WHERE o.wallet_id = old.wallet_id AND o.response_id = old.response_id
RETURNING o.response_id;
