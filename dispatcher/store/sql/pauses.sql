-- Operators stop and go on: everybody, a device, a lead. A sequence is switched in intake.sql.

-- name: pause_fleet
UPDATE fleet SET paused = $1, pause_reason = $2 WHERE paused <> $1;

-- name: pause_device
UPDATE devices SET paused = $2, pause_reason = $3 WHERE name = $1 AND paused <> $2;

-- name: device
SELECT name FROM devices WHERE name = $1;

-- name: devices
SELECT name FROM devices ORDER BY number;

-- name: lead
SELECT id FROM leads WHERE phone = $1;

-- name: pause_lead
-- One that is paused stays so since then; a new end and a new reason count.
INSERT INTO paused_leads AS p (lead_id, until, reason) VALUES ($1, coalesce(dripline_at($2::bigint), 'infinity'), $3)
ON CONFLICT (lead_id) DO UPDATE SET until = excluded.until, reason = excluded.reason
WHERE (p.until, p.reason) IS DISTINCT FROM (excluded.until, excluded.reason);

-- name: resume_lead
DELETE FROM paused_leads WHERE lead_id = $1;

-- name: paused
-- What is paused at present, and since when: the fleet, sequences, devices, and leads together.
SELECT 'fleet' AS what, NULL AS name, paused_since AS since, NULL::timestamptz AS until, pause_reason AS reason,
       1::bigint AS count
FROM fleet WHERE paused
UNION ALL
SELECT 'sequence', name, paused_since, NULL, NULL, 1 FROM sequences WHERE NOT is_active
UNION ALL
SELECT 'device', name, paused_since, NULL, pause_reason, 1 FROM devices WHERE paused
UNION ALL
SELECT 'leads', NULL, min(since), nullif(min(until), 'infinity'), NULL, count(*)
FROM paused_leads WHERE until > dripline_now() HAVING count(*) > 0;
