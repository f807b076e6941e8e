-- Responses that upstreams keep by id, and whose they are. The release before knows nothing of the table, and serves none
-- of these paths.

-- An upstream keeps responses under ids that all of its account share: this says which wallet may name which. One that
-- works in the background has what settles it in `unsettled` (gateway/request/background.py) until it is settled.
CREATE TABLE response_owners (
    wallet_id uuid NOT NULL,
    response_id text NOT NULL,
    upstream text NOT NULL,
    hold_id uuid NOT NULL,
    unsettled jsonb,
    look_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (wallet_id, response_id),
    CONSTRAINT unsettled_is_looked_at CHECK ((unsettled IS NULL) = (look_at IS NULL))
);
CREATE INDEX response_owners_by_age ON response_owners (created_at);
CREATE INDEX response_owners_unsettled ON response_owners (look_at) WHERE look_at IS NOT NULL;
