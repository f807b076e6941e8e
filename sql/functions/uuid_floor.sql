-- The least UUIDv7-ordered id at or after a time: the bound of a time range over ids (RFC 9562, section 5.7).
CREATE OR REPLACE FUNCTION uuid_floor(p_at timestamptz) RETURNS uuid
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN (lpad(to_hex(floor(extract(EPOCH FROM p_at) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid;
