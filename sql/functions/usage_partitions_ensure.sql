-- Make the monthly partitions of usage_events for every id that wallet_apply may accept, some months ahead of need.
-- Idempotent; returns how many were made.
CREATE OR REPLACE FUNCTION usage_partitions_ensure(p_months_ahead integer DEFAULT 3) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    v_first timestamptz := date_trunc('month', now() - interval '46 days', 'UTC');
    v_month timestamptz;
    v_name text;
    v_made integer := 0;
BEGIN
    FOR v_month IN
        SELECT m FROM generate_series(v_first, now() + make_interval(months => p_months_ahead), interval '1 month') AS m
    LOOP
        v_month := date_trunc('month', v_month + interval '3 days', 'UTC');
        v_name := 'usage_events_' || to_char(v_month AT TIME ZONE 'UTC', 'YYYY_MM');
        CONTINUE WHEN to_regclass(v_name) IS NOT NULL;
        EXECUTE format(
            'CREATE TABLE %I PARTITION OF usage_events FOR VALUES FROM (%L) TO (%L)',
            v_name, uuid_floor(v_month), uuid_floor(date_trunc('month', v_month + interval '32 days', 'UTC'))
        );
        v_made := v_made + 1;
    END LOOP;
    RETURN v_made;
END;
$$;
