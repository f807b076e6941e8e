-- Decide a batch of operations on one wallet: where holds are granted, settled, voided and swept, and nowhere else.
--
-- p_operations is a JSON array, decided in its order under one lock of the wallet row. A hold id stands at most once
-- in a call: the lane sees to it, and a call where it would be opened, resolved or extended twice, or extended and
-- resolved, fails whole. So does a call with an operation that is unknown or malformed; a call that fails changes
-- nothing. The four arrays returned have one element per operation; balance and held are the wallet's after the batch.
--
-- op          fields besides op, hold                       outcomes, in order of precedence
-- hold        key price endpoint ceiling minimum seconds    hold_out_of_range, already_*, (a declined id: as it was),
--                                                           wallet_suspended, insufficient_funds, held
-- extend      ceiling minimum seconds                       hold_out_of_range, already_*, hold_unknown,
--                                                           wallet_suspended, insufficient_funds, extended
-- checkpoint  cost picos usage seconds                      hold_out_of_range, already_*, hold_unknown, checkpointed
-- settle      key price endpoint upstream cost picos        hold_out_of_range, already_settled, already_voided,
--             usage basis reason                            settled_late, settled_unheld, settled_short, settled
-- void        key price endpoint upstream reason            hold_out_of_range, already_*, voided
-- expire      (none)                                        hold_out_of_range, already_*, hold_unknown, hold_not_due,
--                                                           expired
--
-- On an unknown wallet every operation answers wallet_unknown. amounts: granted by hold, charged by settle and expire
-- (for already_settled: what was charged then), held in all after extend. availables: what the operation found free to
-- use before it. A hold is granted in part, down to its minimum, where the ceiling is not covered. So is an extension,
-- whose ceiling and minimum are totals: a hold that has its minimum already is `extended` as it stands, so that asking
-- again changes nothing but its validity, and no hold is ever lowered. A refused extension leaves the hold as it was.
CREATE OR REPLACE FUNCTION wallet_apply(
    p_wallet_id uuid,
    p_operations jsonb,
    OUT outcomes wallet_outcome[],
    OUT amounts bigint[],
    OUT shortfalls bigint[],
    OUT availables bigint[],
    OUT balance_nanos bigint,
    OUT held_nanos bigint
) LANGUAGE plpgsql
-- Plans are made once per connection, when tables may still be empty: keep them on the primary keys for good.
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    w wallets;
    o record;
    v_balance bigint;
    v_held bigint;
    v_seq bigint;
    v_available bigint;
    v_outcome wallet_outcome;
    v_amount bigint;
    v_short bigint;
    v_owed bigint;
    v_late bigint;
    v_holds holds[];
    v_entries ledger_entries[];
    v_events usage_events[];
    v_closed uuid[];
    v_cleared uuid[];
    v_unheld uuid[];
    v_extended uuid[];
    v_rows bigint;
    -- Older ids may have lost their partition, newer ones come from a broken clock: both would escape the guards. Not
    -- so an id whose row is in holds, which is a guard itself: however long a gateway was away, it can be resolved.
    c_oldest CONSTANT uuid := uuid_floor(now() - interval '45 days');
    c_newest CONSTANT uuid := uuid_floor(now() + interval '1 day');
BEGIN
    SELECT * INTO w FROM wallets WHERE wallets.wallet_id = p_wallet_id FOR UPDATE;
    IF NOT found THEN
        outcomes := array_fill('wallet_unknown'::wallet_outcome, ARRAY[jsonb_array_length(p_operations)]);
        amounts := array_fill(0::bigint, ARRAY[jsonb_array_length(p_operations)]);
        shortfalls := amounts;
        availables := amounts;
        RETURN;
    END IF;
    v_balance := w.balance_nanos;
    v_held := w.held_nanos;
    v_seq := w.entry_seq;

    FOR o IN
        SELECT
            x.*,
            h.state AS hold_state, h.held_nanos AS hold_nanos, h.decline, h.key_id AS hold_key,
            h.price_id AS hold_price, h.endpoint AS hold_endpoint,
            h.checkpoint_nanos, h.checkpoint_picos, h.checkpoint_usage,
            now() >= h.renewed_at + make_interval(secs => 2 * h.valid_seconds) AS due,
            u.resolution, u.charged_nanos AS already_nanos
        FROM ROWS FROM (
            jsonb_to_recordset(p_operations) AS (
                op text, hold uuid, key uuid, price bigint, endpoint text, upstream text, ceiling bigint,
                minimum bigint, seconds integer, cost bigint, picos bigint, usage jsonb, basis usage_basis, reason text
            )
        ) WITH ORDINALITY AS x (
            op, hold, key, price, endpoint, upstream, ceiling, minimum, seconds, cost, picos, usage, basis, reason, n
        )
        -- OFFSET 0 keeps each look-up a look-up: one probe of the primary key per operation, whatever the statistics.
        LEFT JOIN LATERAL (
            SELECT * FROM holds WHERE holds.wallet_id = p_wallet_id AND holds.hold_id = x.hold OFFSET 0
        ) AS h ON true
        LEFT JOIN LATERAL (
            SELECT * FROM usage_events AS e
            WHERE e.wallet_id = p_wallet_id AND e.hold_id = x.hold AND NOT e.late
                AND e.hold_id BETWEEN c_oldest AND c_newest -- opens only the partitions that can have it
            OFFSET 0
        ) AS u ON true
        ORDER BY x.n
    LOOP
        v_available := v_balance - v_held + w.floor_nanos;
        v_amount := 0;
        v_short := 0;
        v_late := NULL;
        IF o.resolution = 'expired' AND o.op = 'settle' THEN
            SELECT u.charged_nanos INTO v_late FROM usage_events AS u
            WHERE u.wallet_id = p_wallet_id AND u.hold_id = o.hold AND u.late
                AND u.hold_id BETWEEN c_oldest AND c_newest;
        END IF;

        IF o.hold_state IS NULL AND o.hold NOT BETWEEN c_oldest AND c_newest THEN
            v_outcome := 'hold_out_of_range';

        ELSIF o.op = 'hold' THEN
            IF o.resolution IS NOT NULL THEN
                v_outcome := ('already_' || o.resolution)::wallet_outcome;
            ELSIF o.hold_state = 'open' THEN
                v_outcome := 'held';
                v_amount := o.hold_nanos;
            ELSIF o.hold_state = 'declined' THEN
                v_outcome := o.decline;
            ELSE
                IF (o.minimum BETWEEN 0 AND o.ceiling) IS NOT TRUE THEN
                    RAISE EXCEPTION 'wallet_apply: a hold of % to %', o.minimum, o.ceiling;
                END IF;
                v_outcome := CASE
                    WHEN w.status = 'suspended' THEN 'wallet_suspended'::wallet_outcome
                    WHEN o.minimum > greatest(v_available, 0) THEN 'insufficient_funds'
                    ELSE 'held'
                END;
                IF v_outcome = 'held' THEN
                    v_amount := least(o.ceiling, greatest(v_available, o.minimum));
                    v_held := v_held + v_amount;
                END IF;
                v_holds[coalesce(cardinality(v_holds), 0) + 1] := ROW(
                    p_wallet_id, o.hold, CASE v_outcome WHEN 'held' THEN 'open'::hold_state ELSE 'declined' END,
                    o.key, o.price, o.endpoint, v_amount, nullif(v_outcome, 'held'), o.seconds, now(), 0, 0, NULL
                )::holds;
            END IF;

        ELSIF o.op = 'settle' AND (o.resolution IS NULL OR (o.resolution = 'expired' AND v_late IS NULL)) THEN
            IF (o.cost >= 0) IS NOT TRUE THEN
                RAISE EXCEPTION 'wallet_apply: a cost of %', o.cost;
            END IF;
            -- The hold's own money is spent first; what it does not cover comes from free funds only.
            v_owed := greatest(o.cost - coalesce(o.already_nanos, 0), 0);
            v_amount := least(v_owed, coalesce(o.hold_nanos, 0) + greatest(v_available, 0));
            v_short := v_owed - v_amount;
            v_outcome := CASE
                WHEN o.resolution = 'expired' THEN 'settled_late'::wallet_outcome
                WHEN o.hold_state IS DISTINCT FROM 'open' THEN 'settled_unheld'
                WHEN v_short > 0 THEN 'settled_short'
                ELSE 'settled'
            END;
            v_events[coalesce(cardinality(v_events), 0) + 1] := ROW(
                p_wallet_id, o.hold, o.resolution IS NOT NULL, 'settled', o.basis, o.reason, o.key, o.price,
                o.endpoint, o.upstream, o.usage, coalesce(o.hold_nanos, 0), o.picos, o.cost,
                coalesce(o.already_nanos, 0), v_amount, v_short,
                CASE WHEN v_amount > 0 THEN v_seq + 1 END, now()
            )::usage_events;

        ELSIF (o.op IN ('settle', 'void', 'checkpoint', 'extend', 'expire')) IS NOT TRUE THEN
            RAISE EXCEPTION 'wallet_apply: unknown operation %', o.op;

        ELSIF o.resolution IS NOT NULL THEN
            v_outcome := CASE o.resolution
                WHEN 'settled' THEN 'already_settled'::wallet_outcome
                WHEN 'voided' THEN 'already_voided'
                ELSE 'already_expired'
            END;
            IF o.op = 'settle' AND o.resolution = 'expired' THEN
                v_outcome := 'already_settled';
            END IF;
            v_amount := o.already_nanos + coalesce(v_late, 0);

        ELSIF o.op = 'void' THEN
            -- A void of an id never seen is recorded too: a hold that arrives after it must not open.
            v_outcome := 'voided';
            v_events[coalesce(cardinality(v_events), 0) + 1] := ROW(
                p_wallet_id, o.hold, false, 'voided', 'none', o.reason, o.key, o.price,
                o.endpoint, o.upstream, NULL, coalesce(o.hold_nanos, 0), 0, 0, 0, 0, 0, NULL, now()
            )::usage_events;

        ELSIF o.hold_state IS NULL OR (o.op IN ('checkpoint', 'extend') AND o.hold_state <> 'open') THEN
            v_outcome := 'hold_unknown';

        ELSIF o.op = 'checkpoint' THEN
            IF (o.cost >= 0) IS NOT TRUE THEN
                RAISE EXCEPTION 'wallet_apply: a checkpoint of %', o.cost; -- the sweep could never charge it
            END IF;
            v_outcome := 'checkpointed';
            UPDATE holds AS h
            SET renewed_at = now(), valid_seconds = o.seconds, checkpoint_nanos = o.cost,
                checkpoint_picos = o.picos, checkpoint_usage = o.usage
            WHERE h.wallet_id = p_wallet_id AND h.hold_id = o.hold AND h.state = 'open';

        ELSIF o.op = 'extend' THEN
            IF (o.minimum BETWEEN 0 AND o.ceiling AND o.seconds > 0) IS NOT TRUE THEN
                RAISE EXCEPTION 'wallet_apply: an extension to % to %', o.minimum, o.ceiling;
            END IF;
            v_amount := o.hold_nanos;
            v_outcome := CASE
                WHEN o.minimum <= o.hold_nanos THEN 'extended'::wallet_outcome
                WHEN w.status = 'suspended' THEN 'wallet_suspended'
                WHEN o.minimum > o.hold_nanos + greatest(v_available, 0) THEN 'insufficient_funds'
                ELSE 'extended'
            END;
            IF v_outcome = 'extended' THEN
                IF o.minimum > o.hold_nanos THEN
                    v_amount := least(o.ceiling, o.hold_nanos + v_available);
                    v_held := v_held + v_amount - o.hold_nanos;
                    v_extended := v_extended || o.hold;
                END IF;
                -- A compare-and-set: the same hold extended twice in a call would count its growth twice.
                UPDATE holds AS h
                SET renewed_at = now(), valid_seconds = o.seconds, held_nanos = v_amount
                WHERE h.wallet_id = p_wallet_id AND h.hold_id = o.hold AND h.state = 'open'
                    AND h.held_nanos = o.hold_nanos;
                IF NOT found THEN
                    RAISE EXCEPTION 'wallet_apply: a hold id stands twice in a call';
                END IF;
            END IF;

        ELSIF NOT o.due THEN
            v_outcome := 'hold_not_due';

        ELSE
            v_outcome := 'expired';
            IF o.hold_state = 'open' THEN
                v_amount := least(o.checkpoint_nanos, o.hold_nanos + greatest(v_available, 0));
                v_short := o.checkpoint_nanos - v_amount;
                v_events[coalesce(cardinality(v_events), 0) + 1] := ROW(
                    p_wallet_id, o.hold, false, 'expired', 'estimated', 'swept', o.hold_key, o.hold_price,
                    o.hold_endpoint, NULL, o.checkpoint_usage, o.hold_nanos, o.checkpoint_picos, o.checkpoint_nanos,
                    0, v_amount, v_short, CASE WHEN v_amount > 0 THEN v_seq + 1 END, now()
                )::usage_events;
            END IF;
        END IF;

        IF v_outcome IN ('settled', 'settled_short', 'settled_late', 'settled_unheld', 'voided', 'expired') THEN
            IF o.hold_state = 'open' THEN
                v_held := v_held - o.hold_nanos;
                v_closed := v_closed || o.hold;
            ELSIF o.hold_state = 'declined' THEN
                v_cleared := v_cleared || o.hold;
            ELSE
                v_unheld := v_unheld || o.hold;
            END IF;
            IF v_amount > 0 THEN
                v_seq := v_seq + 1;
                v_balance := v_balance - v_amount;
                v_entries[coalesce(cardinality(v_entries), 0) + 1] := ROW(
                    p_wallet_id, v_seq, 'charge', 'revenue', -v_amount, v_balance, o.hold, NULL, NULL, NULL, now()
                )::ledger_entries;
            END IF;
        END IF;

        outcomes[o.n] := v_outcome;
        amounts[o.n] := v_amount;
        shortfalls[o.n] := v_short;
        availables[o.n] := v_available;
    END LOOP;

    IF v_extended IS NOT NULL AND v_extended && v_closed THEN
        -- Resolved as it was before it grew: what it grew by would stay held for good.
        RAISE EXCEPTION 'wallet_apply: a hold id stands twice in a call';
    END IF;
    IF v_closed IS NOT NULL THEN
        -- The compare-and-set from open: each hold that this call resolves must still be there.
        DELETE FROM holds AS h
        WHERE h.wallet_id = p_wallet_id AND h.hold_id = ANY(v_closed) AND h.state = 'open';
        GET DIAGNOSTICS v_rows = ROW_COUNT;
        IF v_rows <> cardinality(v_closed) THEN
            RAISE EXCEPTION 'wallet_apply: % of % holds were open', v_rows, cardinality(v_closed);
        END IF;
    END IF;
    IF v_cleared IS NOT NULL THEN
        DELETE FROM holds AS h
        WHERE h.wallet_id = p_wallet_id AND h.hold_id = ANY(v_cleared) AND h.state = 'declined';
    END IF;
    IF v_holds IS NOT NULL THEN
        -- Opened and resolved in one call: neither would see the other, and the hold would stay open for good.
        IF v_unheld IS NOT NULL AND EXISTS (SELECT FROM unnest(v_holds) AS e WHERE e.hold_id = ANY(v_unheld)) THEN
            RAISE EXCEPTION 'wallet_apply: a hold id stands twice in a call';
        END IF;
        INSERT INTO holds SELECT e.* FROM unnest(v_holds) AS e;
    END IF;
    IF v_entries IS NOT NULL THEN
        INSERT INTO ledger_entries SELECT e.* FROM unnest(v_entries) AS e;
    END IF;
    IF v_events IS NOT NULL THEN
        INSERT INTO usage_events SELECT e.* FROM unnest(v_events) AS e;
    END IF;
    -- Always written, even where nothing changed: an answer is only given by a commit that reached the log (and the
    -- standby, where there is one), so an operation asked again is confirmed by a write.
    UPDATE wallets SET balance_nanos = v_balance, held_nanos = v_held, entry_seq = v_seq
    WHERE wallets.wallet_id = p_wallet_id;
    balance_nanos := v_balance;
    held_nanos := v_held;
END;
$$;
