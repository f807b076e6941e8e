-- name: doctor_standbys
-- Who streams from this server; state and synchrony are hidden from a role without pg_monitor.
SELECT application_name, state, sync_state FROM pg_stat_replication ORDER BY application_name;

-- name: doctor_idle_slots
-- Replication slots that nobody reads: the server keeps its log for them until the disk is full.
SELECT slot_name FROM pg_replication_slots WHERE NOT active ORDER BY slot_name;

-- name: doctor_connections
-- Connections in use now, of every role and database.
SELECT count(*) AS used FROM pg_stat_activity WHERE backend_type = 'client backend';

-- name: doctor_next_month
-- Whether the usage events of next month have a partition of their own already.
SELECT EXISTS (
    SELECT FROM pg_inherits AS i
    WHERE i.inhparent = 'usage_events'::regclass
        AND i.inhrelid = to_regclass('usage_events_' || to_char(now() + interval '1 month', 'YYYY_MM'))
) AS found;
