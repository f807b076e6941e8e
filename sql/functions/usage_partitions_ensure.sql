-- Make the monthly partitions of usage_events for every id that wallet_apply may accept, some months ahead of need.
-- Idempotent; returns how many were made.
CREATE OR REPLACE FUNCTION usage_partitions_ensure(p_months_ahead integer DEFAULT 3) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    -- Months of UTC, counted without a time zone: in the session's own, a month from the 31st is not a calendar month.
    v_first timestamp := date_trunc('month', (now() - interval '46 days') AT TIME ZONE 'UTC');
    v_last timestamp := (now() AT TIME ZONE 'UTC') + make_interval(months => p_months_ahead);
    v_month timestamp;
    v_name text;
    v_made integer := 0;
BEGIN
    FOR v_month IN SELECT m FROM generate_series(v_first, v_last, interval '1 month') AS m LOOP
        v_name := 'usage_events_' || to_char(v_month, 'YYYY_MM');
        CONTINUE WHEN to_regclass(v_name) IS NOT NULL;
        -- Every gateway comes here at once, on the first of a month: one makes the partition, the others find it.
        LOCK TABLE ONLY usage_events IN SHARE UPDATE EXCLUSIVE MODE;
        CONTINUE WHEN to_regclass(v_name) IS NOT NULL;
        EXECUTE format(
            'CREATE TABLE %I PARTITION OF usage_events FOR VALUES FROM (%L) TO (%L)',
            v_name,
            uuid_floor(v_month AT TIME ZONE 'UTC'),
            uuid_floor((v_month + interval '1 month') AT TIME ZONE 'UTC')
        );
        v_made := v_made + 1;
    END LOOP;
    RETURN v_made;
END;
$$;
