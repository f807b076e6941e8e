-- Change how far below zero a wallet may go, and remember the floor that its entries so far were judged by.
-- Outcomes, in order of precedence: wallet_unknown, insufficient_funds (it is further below already), posted.
CREATE OR REPLACE FUNCTION wallet_set_floor(
    p_wallet_id uuid, p_floor_nanos bigint, p_actor text, p_reason text
) RETURNS wallet_outcome
LANGUAGE plpgsql AS $$
DECLARE
    w wallets;
BEGIN
    SELECT * INTO w FROM wallets WHERE wallets.wallet_id = p_wallet_id FOR UPDATE;
    IF NOT found THEN
        RETURN 'wallet_unknown';
    END IF;
    IF w.balance_nanos - w.held_nanos < -p_floor_nanos THEN
        RETURN 'insufficient_funds';
    END IF;
    INSERT INTO wallet_floors (wallet_id, change, last_seq, floor_nanos, actor, reason)
    SELECT p_wallet_id, count(*) + 1, w.entry_seq, w.floor_nanos, p_actor, p_reason
    FROM wallet_floors AS f
    WHERE f.wallet_id = p_wallet_id;
    UPDATE wallets SET floor_nanos = p_floor_nanos WHERE wallets.wallet_id = p_wallet_id;
    RETURN 'posted';
END;
$$;
