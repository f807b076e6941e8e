-- Idempotency keys of clients. The release before knows nothing of the table, and needs nothing from it.

CREATE TYPE idempotency_status AS ENUM (
    'running',    -- claimed -> running; what its hold has come to says whether it may be taken over
    'finished',   -- running -> finished: the reply is kept
    'lost'        -- running -> lost: charged, and the reply is not kept
);

-- Calls that carry an Idempotency-Key. A key is known by its hash; a request and its reply cannot be read here:
-- body_hash covers the key itself, and reply is encrypted (gateway/request/vault.py).
CREATE TABLE idempotency_keys (
    wallet_id uuid NOT NULL,
    key_hash bytea NOT NULL,
    body_hash bytea NOT NULL,
    hold_id uuid NOT NULL,
    status idempotency_status NOT NULL DEFAULT 'running',
    reply bytea,
    claimed_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (wallet_id, key_hash),
    CONSTRAINT finished_has_its_reply CHECK ((status = 'finished') = (reply IS NOT NULL))
);
-- What is encrypted does not compress.
ALTER TABLE idempotency_keys ALTER COLUMN reply SET STORAGE EXTERNAL;
CREATE INDEX idempotency_keys_by_expiry ON idempotency_keys (expires_at);
