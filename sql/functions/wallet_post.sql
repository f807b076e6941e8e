-- Move money by hand or from a payment: the one door for credits and adjustments, posted once per posting id.
--
-- Outcomes, in order of precedence: wallet_unknown, already_posted (the same id: nothing happens),
-- insufficient_funds (an adjustment would overdraw what is free), posted. A posting that nobody could explain later
-- (a charge, no amount, no id, actor or reason) raises, and changes nothing.
CREATE OR REPLACE FUNCTION wallet_post(
    p_wallet_id uuid,
    p_posting_id uuid,
    p_kind entry_kind,
    p_contra text,
    p_amount_nanos bigint,
    p_actor text,
    p_reason text,
    OUT outcome wallet_outcome,
    OUT balance_nanos bigint,
    OUT held_nanos bigint
) LANGUAGE plpgsql AS $$
DECLARE
    w wallets;
BEGIN
    IF p_kind = 'charge' OR p_amount_nanos = 0
        OR num_nulls(p_posting_id, p_kind, p_contra, p_amount_nanos, p_actor, p_reason) > 0 THEN
        RAISE EXCEPTION 'wallet_post: % of % is not a posting', p_kind, p_amount_nanos;
    END IF;
    SELECT * INTO w FROM wallets WHERE wallets.wallet_id = p_wallet_id FOR UPDATE;
    IF NOT found THEN
        outcome := 'wallet_unknown';
        RETURN;
    END IF;
    balance_nanos := w.balance_nanos;
    held_nanos := w.held_nanos;
    IF EXISTS (SELECT FROM ledger_entries AS e WHERE e.wallet_id = p_wallet_id AND e.posting_id = p_posting_id) THEN
        outcome := 'already_posted';
        UPDATE wallets SET entry_seq = w.entry_seq WHERE wallets.wallet_id = p_wallet_id;
        RETURN;
    END IF;
    IF p_amount_nanos < 0 AND w.balance_nanos - w.held_nanos + w.floor_nanos + p_amount_nanos < 0 THEN
        outcome := 'insufficient_funds';
        RETURN;
    END IF;
    balance_nanos := w.balance_nanos + p_amount_nanos;
    INSERT INTO ledger_entries (
        wallet_id, seq, kind, contra, amount_nanos, balance_after_nanos, posting_id, actor, reason
    ) VALUES (
        p_wallet_id, w.entry_seq + 1, p_kind, p_contra, p_amount_nanos, balance_nanos, p_posting_id, p_actor, p_reason
    );
    UPDATE wallets SET balance_nanos = wallet_post.balance_nanos, entry_seq = w.entry_seq + 1
    WHERE wallets.wallet_id = p_wallet_id;
    outcome := 'posted';
END;
$$;
