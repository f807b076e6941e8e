-- Seals over ledger entries, what retention dropped, and the floors that wallets had before. New tables only: the
-- release before goes on working.

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
