-- Is this still the database that the engine ran on last? And what to do where it is not.

-- name: lineage
-- What PostgreSQL says of itself. The timeline is the one being written now; that of the last checkpoint may be older.
SELECT (SELECT system_identifier FROM pg_control_system()) AS system_identifier,
       ('x' || substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8))::bit(32)::bigint AS timeline_id,
       (SELECT oid::bigint FROM pg_database WHERE datname = current_database()) AS database_oid,
       (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint AS wal;

-- name: remembered
SELECT d.system_identifier, d.timeline_id, d.database_oid, d.recoveries, d.recovering_since,
       (SELECT last_value FROM lease_tokens) AS token
FROM dripline_database d;

-- name: remember
UPDATE dripline_database SET system_identifier = $1, timeline_id = $2, database_oid = $3;

-- name: leading
-- As take_leadership judges it.
SELECT holder FROM heartbeats
WHERE name = 'coordinator'
  AND expires_at BETWEEN clock_timestamp() AND clock_timestamp() + 2 * $1::double precision * interval '1 second';

-- name: count_lost
SELECT count(*) AS found, count(*) FILTER (WHERE d.gateway_idempotent) AS idempotent
FROM sequence_contacts c
LEFT JOIN devices d ON d.id = c.home_device_id
WHERE c.status = 'active' AND c.next_trigger_time <= dripline_at($1::bigint)
  AND NOT (c.pinned AND c.last_error IS NOT DISTINCT FROM $2) AND EXISTS (SELECT FROM devices);

-- name: begin_recovery
UPDATE dripline_database SET recovering_since = dripline_at($1::bigint);

-- name: leave_gap
-- Keys are made of enrolment ids, and gateways remember keys of rows that are gone: no number is given out twice.
SELECT setval('lease_tokens', (SELECT last_value FROM lease_tokens) + $1::bigint),
       setval('sequence_contacts_id_seq', (SELECT last_value FROM sequence_contacts_id_seq) + $1::bigint),
       setval('leads_id_seq', (SELECT last_value FROM leads_id_seq) + $1::bigint),
       setval('sequences_id_seq', (SELECT last_value FROM sequences_id_seq) + $1::bigint);

-- name: supersede
-- Whoever acted before acts no more.
UPDATE epochs SET epoch = nextval('lease_tokens'), holder = $1, raised_at = dripline_now();

-- name: lost
-- A page by id of what may have been sent in the time that is lost: everything due by then that waits or is leased.
SELECT c.id, c.visit, c.generation, c.attempt + (c.lease_token IS NULL)::integer AS attempt, c.lease_token,
       d.id AS device_id, d.gateway_idempotent AS idempotent
FROM sequence_contacts c
JOIN devices d ON d.id = coalesce(c.home_device_id, (SELECT id FROM devices ORDER BY number LIMIT 1))
WHERE c.id > $1 AND c.status = 'active' AND c.next_trigger_time <= dripline_at($2::bigint)
  AND NOT (c.pinned AND c.last_error IS NOT DISTINCT FROM $3)
ORDER BY c.id LIMIT $4 FOR NO KEY UPDATE OF c;

-- name: hold_lost
-- In doubt, by an attempt of which nothing is known; counted against the device at the latest moment it can have left.
WITH held AS (
    UPDATE sequence_contacts c
    SET attempt = h.attempt, home_device_id = h.device_id, pinned = h.resend, last_error = $7,
        status = CASE WHEN h.resend THEN 'active' ELSE 'in_doubt' END,
        resend_text = coalesce(c.resend_text, h.text),
        resend_media_url = CASE WHEN c.resend_text IS NULL THEN h.media_url ELSE c.resend_media_url END,
        processing_device_id = NULL, processing_started_at = NULL, lease_deadline_at = NULL, lease_token = NULL,
        lease_epoch = NULL
    FROM unnest($1::bigint[], $2::integer[], $3::uuid[], $4::boolean[], $5::text[], $6::text[], $8::uuid[])
         h(id, attempt, device_id, resend, text, media_url, key)
    WHERE c.id = h.id
    RETURNING c.id, c.sequence_id, c.lead_id, c.next_trigger_time, c.visit, c.generation, c.attempt, c.current_trigger,
              h.device_id, h.key
)
INSERT INTO message_ledger (enrolment_id, sequence_id, lead_id, shard_epoch, due_at, reserved_at, deadline_at,
    device_id, idempotency_key, visit, generation, attempt, outcome, step_trigger, error)
SELECT id, sequence_id, lead_id, 0, next_trigger_time, dripline_at($9::bigint), dripline_at($9::bigint), device_id, key,
       visit, generation, attempt, 'in_doubt', current_trigger, $7
FROM held;

-- name: end_recovery
UPDATE dripline_database
SET recovering_since = NULL, recoveries = recoveries + 1, system_identifier = $1, timeline_id = $2, database_oid = $3;
