-- name: database_settings
-- What decides whether a commit survives, and which server this is.
SELECT name, setting
FROM pg_settings
WHERE name IN ('server_version_num', 'fsync', 'full_page_writes', 'synchronous_commit', 'synchronous_standby_names',
    'max_connections', 'server_version', 'client_min_messages', 'wal_level', 'superuser_reserved_connections',
    'statement_timeout', 'lock_timeout', 'idle_session_timeout', 'transaction_timeout');

-- name: database_writable
-- Whether this server takes writes.
SELECT NOT pg_is_in_recovery() AND current_setting('default_transaction_read_only') = 'off' AS writable;

-- name: database_backend
-- Which process of the server answers.
SELECT pg_backend_pid() AS pid;

-- name: migrations_table
-- The record of migrations, made before the first of them.
DO $$
BEGIN
    CREATE TABLE IF NOT EXISTS schema_migrations (
        version integer PRIMARY KEY,
        name text NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT now()
    );
EXCEPTION
    -- IF NOT EXISTS does not see what another migrator has not committed yet; it has by now.
    WHEN unique_violation OR duplicate_table OR duplicate_object THEN NULL;
END
$$;

-- name: migrations_lock
-- One migrator at a time.
LOCK TABLE schema_migrations IN EXCLUSIVE MODE;

-- name: migrations_applied
-- Which migrations this database has had.
SELECT version FROM schema_migrations ORDER BY version;

-- name: migrations_known
-- Whether this database has been migrated at all.
SELECT to_regclass('schema_migrations') IS NOT NULL AS known;

-- name: migration_record
-- Note one migration as applied.
INSERT INTO schema_migrations (version, name) VALUES ($1, $2);

-- name: database_now
-- The database's clock, which decides what is in force and what has expired.
SELECT now() AS now;

-- name: audit_session
-- Give an audit the time it takes, whatever the role's limits, and room in memory for its joins.
SELECT set_config(name, CASE name WHEN 'work_mem' THEN '64MB' ELSE '0' END, true)
FROM pg_settings
WHERE name IN ('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout', 'work_mem');
