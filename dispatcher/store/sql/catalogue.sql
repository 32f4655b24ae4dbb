-- Sequences, steps and devices as the services cache them.

-- name: versions
SELECT max(version) FILTER (WHERE name = 'sequences') AS sequences,
       max(version) FILTER (WHERE name = 'devices') AS devices,
       (SELECT paused FROM fleet) AS paused
FROM catalogue_versions;

-- name: sequences
SELECT id, name, trigger_prefix, is_active, reentry, reentry_interval_h, sender_policy, requires_opt_in, exit_on_reply,
       send_from, send_until, send_days, send_time_zone, max_lateness_hours AS max_lateness_h, when_late, goal_trigger,
       goal_if
FROM sequences ORDER BY id;

-- name: steps
SELECT sequence_id, trigger, message_text, media_url, next_trigger, trigger_delay_hours, trigger_delay_minutes, day_number,
       is_entry_point, send_at, template_name, template_language, template_parameters, paused_cause
FROM sequence_steps ORDER BY sequence_id, day_number NULLS LAST, id;

-- name: blackouts
SELECT sequence_id, first_day, coalesce(last_day, first_day) AS last_day FROM blackouts ORDER BY first_day, last_day;

-- name: devices
-- Available to the engine: healthy, not paused, and reachable, except in a rehearsal, whose gateway is the referee. A
-- breaker is open only as long as the device is quarantined because of it. Those of one shard, or all.
SELECT number, id, name, phone, gateway_url, gateway_token, gateway_idempotent, quota_per_hour,
       dripline_day_quota(quota_per_day, ramp_per_day) AS quota_per_day, in_flight_max, min_gap_s, shard_id, health,
       health_cause, group_name, gateway_kind, gateway_phone_number_id, gateway_account,
       coalesce(dripline_us(account_rests_until), 0) AS rest_until_us,
       health = 'available' AND NOT paused AND reachable AS available,
       CASE WHEN open THEN breaker_trips ELSE 0 END AS trips,
       CASE WHEN open THEN dripline_us(probe_at) ELSE 0 END AS probe_us
FROM devices d
CROSS JOIN LATERAL (SELECT d.gateway_url IS NOT NULL OR NOT EXISTS (
    SELECT FROM dripline_database WHERE kind = 'live') AS reachable) r
CROSS JOIN LATERAL (SELECT d.health = 'quarantined' AND d.health_cause = 'failures' AND d.breaker_trips > 0
                           AND d.probe_at IS NOT NULL AND NOT d.paused AND r.reachable AS open) b
WHERE d.shard_id = $1::integer OR $1 IS NULL
ORDER BY number;

-- name: assign_shards
UPDATE devices d SET shard_id = a.shard_id FROM unnest($1::integer[], $2::integer[]) a(number, shard_id)
WHERE d.number = a.number AND d.shard_id IS DISTINCT FROM a.shard_id;

-- name: groups
-- Groups with their limits, and the devices that count: those in a group, and those that were since $1.
WITH stays AS (
    SELECT number, group_name, lead(valid_from) OVER (PARTITION BY device_id ORDER BY id) AS left_at
    FROM device_group_history
)
SELECT g.name, g.quota_per_hour, g.quota_per_day, ARRAY (
    SELECT DISTINCT s.number FROM stays s
    WHERE s.group_name = g.name AND (s.left_at IS NULL OR s.left_at > dripline_at($1::bigint))
    ORDER BY s.number) AS members
FROM device_groups g ORDER BY g.name;

-- name: group_usage
-- Everything that devices $1, also deleted ones, have sent or may have since $2, from ledger and leases in one snapshot:
-- what ``load_usage`` counts, but at its slot.
WITH asked AS MATERIALIZED (SELECT DISTINCT number, device_id FROM device_group_history WHERE number = ANY ($1::integer[]))
SELECT u.number, string_agg(timestamptz_send(u.at), '') AS at
FROM (
    SELECT a.number, l.at
    FROM asked a CROSS JOIN LATERAL (
        SELECT reserved_at AS at FROM message_ledger
        WHERE device_id = a.device_id AND reserved_at > dripline_at($2::bigint)
          AND dripline_charged(outcome)) l
    UNION ALL
    SELECT a.number, l.slot_at FROM leases l JOIN asked a ON a.device_id = l.device_id
    WHERE EXISTS (SELECT FROM epochs e WHERE e.epoch = l.shard_epoch)
       OR EXISTS (SELECT FROM handovers h WHERE h.token = l.token AND l.enrolment_id = ANY (h.enrolments))) u
GROUP BY u.number ORDER BY u.number;

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

-- name: ramps_to_grow
SELECT EXISTS (SELECT FROM devices WHERE ramp_day < (dripline_at($1::bigint) AT TIME ZONE 'UTC')::date);

-- name: grow_ramps
-- A day's step, whatever time has gone by: on days without an engine nothing was sent. At its quota a ramp is over.
UPDATE devices
SET ramp_per_day = CASE WHEN ceil(ramp_per_day * ramp_growth) < quota_per_day THEN ceil(ramp_per_day * ramp_growth) END,
    ramp_day = CASE WHEN ceil(ramp_per_day * ramp_growth) < quota_per_day
                    THEN (dripline_at($1::bigint) AT TIME ZONE 'UTC')::date END
WHERE ramp_day < (dripline_at($1::bigint) AT TIME ZONE 'UTC')::date;

-- name: forget_handovers
-- Beyond what gateways remember of keys nothing is sent again. What is leased still has not been rescued: after a long
-- standstill, without its record, it would pass for never handed over.
DELETE FROM handovers
WHERE handed_at < dripline_at($1::bigint)
  AND token NOT IN (SELECT token FROM leases);

-- name: forget_pauses
-- Those that are over, and those of leads that are gone.
DELETE FROM paused_leads p
WHERE until <= dripline_at($1::bigint) OR NOT EXISTS (SELECT FROM leads l WHERE l.id = p.lead_id);
