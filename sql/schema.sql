-- The present truth of the database. migrations/ must reach exactly this (tests/sql/test_migrations.py compares them).
--
-- A CHECK is parsed anew for every statement that writes its table (measured: a tenth of a hold), so the tables that
-- each call writes keep only those that guard money; invariants.sql watches the rest.
--
-- Amounts are BIGINT nanos (10^-9 of the credit currency), prices and exact costs BIGINT picos (10^-12).
-- wallet_id leads every key of a wallet's tables, so that the schema shards by wallet. Ids of calls are UUIDv7 made by
-- the gateway: they sort by time, and usage_events is partitioned by them.

CREATE TYPE wallet_status AS ENUM ('active', 'suspended');

-- The life of a hold: open -> settled | voided | expired, or declined at birth. An open or declined hold is a row of
-- holds; a resolved one is a row of usage_events, and its hold row is gone.
CREATE TYPE hold_state AS ENUM (
    'open',       -- placed -> open
    'declined'    -- refused -> declined; kept for a while so that asking again with the same id gives the same answer
);

CREATE TYPE hold_resolution AS ENUM (
    'settled',    -- open -> settled: charged what was used
    'voided',     -- open -> voided: released, nothing charged
    'expired'     -- open -> expired: swept; charged what was checkpointed
);

CREATE TYPE usage_basis AS ENUM (
    'reported',   -- the upstream said what was used
    'estimated',  -- reckoned from what was relayed; the reason says why
    'none'        -- nothing was used
);

-- What wallet_apply and wallet_post answer, one per operation, in order of precedence (see functions/).
CREATE TYPE wallet_outcome AS ENUM (
    'wallet_unknown',
    'hold_out_of_range',
    'already_settled',
    'already_voided',
    'already_expired',
    'hold_unknown',
    'hold_not_due',
    'wallet_suspended',
    'insufficient_funds',
    'held',
    'extended',
    'checkpointed',
    'settled',
    'settled_short',
    'settled_late',
    'settled_unheld',
    'voided',
    'expired',
    'already_posted',
    'posted'
);

CREATE TYPE entry_kind AS ENUM (
    'charge',     -- wallet -> revenue
    'credit',     -- a funding account -> wallet
    'adjust'      -- adjustments <-> wallet, by hand, with a reason
);

-- The only contended row. Half-empty pages keep its updates heap-only: no index covers a moving column, and nothing
-- references it.
CREATE TABLE wallets (
    wallet_id uuid PRIMARY KEY,
    name text NOT NULL,
    status wallet_status NOT NULL DEFAULT 'active',
    balance_nanos bigint NOT NULL DEFAULT 0,
    held_nanos bigint NOT NULL DEFAULT 0,
    floor_nanos bigint NOT NULL DEFAULT 0,
    entry_seq bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT held_is_not_negative CHECK (held_nanos >= 0),
    CONSTRAINT floor_is_not_negative CHECK (floor_nanos >= 0),
    CONSTRAINT wallet_is_never_overdrawn CHECK (balance_nanos - held_nanos >= -floor_nanos)
) WITH (fillfactor = 50);

-- Keys are looked up by their hash alone: the one table whose key does not start with the wallet.
CREATE TABLE api_keys (
    key_hash bytea PRIMARY KEY,
    key_id uuid NOT NULL,
    wallet_id uuid NOT NULL,
    name text NOT NULL,
    hint text NOT NULL,
    models text[],
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    CONSTRAINT key_hash_is_sha256 CHECK (octet_length(key_hash) = 32)
);
CREATE UNIQUE INDEX api_keys_by_id ON api_keys (key_id);
CREATE INDEX api_keys_by_wallet ON api_keys (wallet_id, key_id);

CREATE TABLE models (
    model text PRIMARY KEY,
    context_tokens_max bigint NOT NULL,
    output_tokens_max bigint NOT NULL,
    hidden_reasoning boolean NOT NULL DEFAULT false,
    owned_by text NOT NULL DEFAULT 'upstream',
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT limits_are_positive CHECK (context_tokens_max > 0 AND output_tokens_max > 0)
);

-- Versions, never changed once written: a hold pins price_id, and its charge uses that row whatever came after.
CREATE TABLE prices (
    price_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model text NOT NULL,
    effective_from timestamptz NOT NULL,
    rates jsonb NOT NULL,
    tiers jsonb NOT NULL DEFAULT '[]',
    source text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    multipliers jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX prices_by_model ON prices (model, effective_from, price_id);

-- Open holds, and declined ones for a while. Small, whatever the traffic.
CREATE TABLE holds (
    wallet_id uuid NOT NULL,
    hold_id uuid NOT NULL,
    state hold_state NOT NULL,
    key_id uuid NOT NULL,
    price_id bigint NOT NULL,
    endpoint text NOT NULL,
    held_nanos bigint NOT NULL,
    decline wallet_outcome,
    valid_seconds integer NOT NULL,
    renewed_at timestamptz NOT NULL,
    checkpoint_nanos bigint NOT NULL DEFAULT 0,
    checkpoint_picos bigint NOT NULL DEFAULT 0,
    checkpoint_usage jsonb,
    PRIMARY KEY (wallet_id, hold_id),
    CONSTRAINT hold_is_not_negative CHECK (held_nanos >= 0)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 20000);

-- Append-only. amount_nanos moves from the contra account into the wallet (negative: out of it), so both sides are
-- named and the sum over all accounts is zero by construction.
CREATE TABLE ledger_entries (
    wallet_id uuid NOT NULL,
    seq bigint NOT NULL,
    kind entry_kind NOT NULL,
    contra text NOT NULL,
    amount_nanos bigint NOT NULL,
    balance_after_nanos bigint NOT NULL,
    hold_id uuid,
    posting_id uuid,
    actor text,
    reason text,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (wallet_id, seq),
    CONSTRAINT charge_takes_from_the_wallet CHECK (kind <> 'charge' OR amount_nanos < 0)
);
-- Money in and corrections are posted once, whoever retries.
CREATE UNIQUE INDEX ledger_entries_posted_once ON ledger_entries (wallet_id, posting_id) WHERE posting_id IS NOT NULL;

-- One row per resolved hold: the second guard, beside the removal of the hold row, that a call is charged once.
-- A late settle of a swept hold adds one row marked late, whose prior_nanos is what the sweep had charged.
CREATE TABLE usage_events (
    wallet_id uuid NOT NULL,
    hold_id uuid NOT NULL,
    late boolean NOT NULL DEFAULT false,
    resolution hold_resolution NOT NULL,
    basis usage_basis NOT NULL,
    reason text,
    key_id uuid NOT NULL,
    price_id bigint NOT NULL,
    endpoint text NOT NULL,
    upstream text,
    usage jsonb,
    held_nanos bigint NOT NULL,
    cost_picos bigint NOT NULL,
    cost_nanos bigint NOT NULL,
    prior_nanos bigint NOT NULL DEFAULT 0,
    charged_nanos bigint NOT NULL,
    shortfall_nanos bigint NOT NULL DEFAULT 0,
    entry_seq bigint,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (wallet_id, hold_id, late),
    CONSTRAINT cost_is_charged_or_short
    CHECK (charged_nanos + shortfall_nanos = greatest(cost_nanos - prior_nanos, 0))
) PARTITION BY RANGE (hold_id);

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

-- Sealed blocks of ledger_entries: each hash covers the entries first_seq to last_seq of a wallet and the hash of its
-- block before (gateway/core/seal.py has the rule). Written after the fact by the seal service, never by a call.
CREATE TABLE ledger_seals (
    wallet_id uuid NOT NULL,
    block bigint NOT NULL,
    first_seq bigint NOT NULL,
    last_seq bigint NOT NULL,
    fingerprints bytea NOT NULL,
    hash bytea NOT NULL,
    PRIMARY KEY (wallet_id, block),
    CONSTRAINT block_is_bounded CHECK (block > 0 AND first_seq > 0 AND last_seq - first_seq BETWEEN 0 AND 4095),
    CONSTRAINT fingerprints_are_of_each_entry CHECK (octet_length(fingerprints) = 4 * (last_seq - first_seq + 1)),
    CONSTRAINT seal_is_sha256 CHECK (octet_length(hash) = 32)
);

-- The seals of one step, chained over all wallets: wallets and blocks name them, in their order. The newest hash
-- stands for every seal before it. Whoever writes a head holds the row of the one before: the chain cannot fork.
CREATE TABLE ledger_heads (
    head bigint PRIMARY KEY,
    wallets uuid[] NOT NULL,
    blocks bigint[] NOT NULL,
    hash bytea NOT NULL,
    sealed_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT head_names_its_seals CHECK (cardinality(wallets) = cardinality(blocks)),
    CONSTRAINT head_is_sha256 CHECK (octet_length(hash) = 32)
);
-- What the first head follows.
INSERT INTO ledger_heads (head, wallets, blocks, hash) VALUES (0, '{}', '{}', decode(repeat('00', 32), 'hex'));

-- Months of usage_events that retention has dropped: the calls from first_hold up to end_hold, and what they were
-- charged, so that the entries of those charges can still be accounted for.
CREATE TABLE usage_dropped (
    partition text PRIMARY KEY,
    first_hold uuid NOT NULL,
    end_hold uuid NOT NULL,
    events bigint NOT NULL,
    charged_nanos numeric NOT NULL,
    dropped_at timestamptz NOT NULL DEFAULT now()
);

-- Floors that wallets had before: floor_nanos was in force up to the entry last_seq. Changes of a wallet count from 1.
CREATE TABLE wallet_floors (
    wallet_id uuid NOT NULL,
    change bigint NOT NULL,
    last_seq bigint NOT NULL,
    floor_nanos bigint NOT NULL,
    actor text NOT NULL,
    reason text NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (wallet_id, change)
);

-- Which migrations this database has had.
CREATE TABLE IF NOT EXISTS schema_migrations (
    version integer PRIMARY KEY,
    name text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);
