-- Sequences, steps and devices as the services cache them.

-- name: versions
SELECT max(version) FILTER (WHERE name = 'sequences') AS sequences,
       max(version) FILTER (WHERE name = 'devices') AS devices
FROM catalogue_versions;

-- name: sequences
SELECT id, name, trigger_prefix, is_active, reentry, reentry_interval_h, sender_policy, requires_opt_in, send_from,
       send_until, send_days, send_time_zone, goal_trigger, goal_if
FROM sequences ORDER BY id;

-- name: steps
SELECT sequence_id, trigger, message_text, media_url, next_trigger, trigger_delay_hours, trigger_delay_minutes, day_number,
       is_entry_point, send_at
FROM sequence_steps ORDER BY sequence_id, day_number NULLS LAST, id;

-- name: blackouts
SELECT sequence_id, first_day, coalesce(last_day, first_day) AS last_day FROM blackouts ORDER BY first_day, last_day;

-- name: devices
-- Available to the engine: healthy, and reachable, except in a rehearsal, whose gateway is the referee.
SELECT number, id, name, phone, gateway_url, gateway_token, gateway_idempotent, quota_per_hour, quota_per_day,
       in_flight_max, min_gap_s, shard_id, health, health_cause,
       health = 'available' AND (gateway_url IS NOT NULL OR NOT EXISTS (
           SELECT FROM dripline_database WHERE kind = 'live')) AS available
FROM devices ORDER BY number;

-- name: assign_shards
UPDATE devices d SET shard_id = a.shard_id FROM unnest($1::integer[], $2::integer[]) a(number, shard_id)
WHERE d.number = a.number AND d.shard_id IS DISTINCT FROM a.shard_id;

-- name: record_problems
-- The whole truth each time: sequences not named have no problem.
WITH found AS (SELECT * FROM unnest($1::bigint[], $2::text[]) f(sequence_id, problem)),
gone AS (DELETE FROM sequence_problems WHERE sequence_id <> ALL ($1::bigint[]))
INSERT INTO sequence_problems AS p SELECT sequence_id, problem FROM found
ON CONFLICT (sequence_id) DO UPDATE SET problem = excluded.problem WHERE p.problem <> excluded.problem;

-- name: record_entries
-- Entries that are new are searched for on leads; entries that closed are searched for again when they open.
WITH open AS (SELECT * FROM unnest($1::text[], $2::bigint[]) o(trigger, sequence_id)),
gone AS (DELETE FROM open_entries WHERE trigger <> ALL ($1::text[]))
INSERT INTO open_entries (trigger, sequence_id, opened_at) SELECT trigger, sequence_id, dripline_at($3::bigint) FROM open
ON CONFLICT (trigger) DO NOTHING;

-- name: home_load
-- Live enrolments by home device.
SELECT home_device_id, count(*) AS live FROM sequence_contacts
WHERE status = 'active' AND home_device_id IS NOT NULL GROUP BY home_device_id;

-- name: one_at_a_time
SELECT pg_advisory_xact_lock(hashtextextended('dripline ledger partitions', 0));

-- name: make_partitions
SELECT count(*) FILTER (WHERE dripline_ledger_partition(day::date)) AS made
FROM generate_series((dripline_at($1::bigint) AT TIME ZONE 'UTC')::date - 1,
                     (dripline_at($1::bigint) AT TIME ZONE 'UTC')::date + $2::integer, interval '1 day') day;

-- name: forget_handovers
-- Beyond what gateways remember of keys nothing is sent again. What is leased still has not been rescued: after a long
-- standstill, without its record, it would pass for never handed over.
DELETE FROM handovers
WHERE handed_at < dripline_at($1::bigint)
  AND token NOT IN (SELECT token FROM leases);
