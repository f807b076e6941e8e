-- Drop the oldest month of usage_events whose calls all began more than p_days ago; what it was charged is remembered
-- in usage_dropped. The outcome: dropped, nothing (no month is that old), held (a hold of the month is still there: its
-- settle would find no place), or busy (somebody reads usage_events, or drops: try again later).
--
-- The lock on usage_events stands in every call's way, so it is asked for last and for a moment only. Nothing is added
-- to the month meanwhile: wallet_apply refuses ids older than 45 days but for those whose hold is there.
CREATE OR REPLACE FUNCTION usage_partition_drop(p_days integer, OUT outcome text, OUT month text)
LANGUAGE plpgsql
SET lock_timeout = '200ms'
AS $$
DECLARE
    v_before CONSTANT uuid := uuid_floor(now() - make_interval(days => p_days));
    v_first uuid;
    v_end uuid;
    v_events bigint;
    v_charged numeric;
BEGIN
    IF (p_days >= 62) IS NOT TRUE THEN
        RAISE EXCEPTION 'usage_partition_drop: % days; ids of the last 45 may still be charged', p_days;
    END IF;
    SELECT p.name, p.bounds[1]::uuid, p.bounds[2]::uuid INTO month, v_first, v_end
    FROM (
        SELECT
            c.relname::text AS name,
            regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''([-0-9a-f]+)''\) TO \(''([-0-9a-f]+)''\)') AS bounds
        FROM pg_inherits AS i
        JOIN pg_class AS c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'usage_events'::regclass
    ) AS p
    WHERE p.bounds[2]::uuid <= v_before
    ORDER BY p.bounds[2]::uuid
    LIMIT 1;
    IF month IS NULL THEN
        outcome := 'nothing';
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM holds AS h WHERE h.hold_id >= v_first AND h.hold_id < v_end) THEN
        outcome := 'held';
        RETURN;
    END IF;
    LOCK TABLE usage_dropped IN SHARE ROW EXCLUSIVE MODE NOWAIT; -- one gateway at a time
    EXECUTE format('SELECT count(*), coalesce(sum(charged_nanos), 0) FROM %I', month) INTO v_events, v_charged;
    LOCK TABLE ONLY usage_events IN ACCESS EXCLUSIVE MODE;
    EXECUTE format('DROP TABLE %I', month);
    INSERT INTO usage_dropped (partition, first_hold, end_hold, events, charged_nanos)
    VALUES (month, v_first, v_end, v_events, v_charged);
    outcome := 'dropped';
EXCEPTION
    WHEN lock_not_available OR undefined_table THEN -- undefined: another gateway has dropped it by now
        outcome := 'busy';
END;
$$;
