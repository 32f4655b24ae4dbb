-- Everything about one lead.

-- name: lead
-- By phone first: an id that is somebody else's phone number is that phone's.
SELECT id, phone, name, niche, trigger, time_zone, opted_in_at, opted_out_at, home_device_id,
       dripline_now() AS now, dripline_hour() AS hour
FROM leads WHERE phone = $1 OR id = $2 ORDER BY (phone = $1) DESC LIMIT 1;

-- name: enrolments
-- The live and the ended ones each by their own index on the lead.
SELECT c.*, h.name AS home
FROM (
    SELECT * FROM sequence_contacts WHERE lead_id = $1 AND status IN ('active', 'in_doubt')
    UNION ALL
    SELECT * FROM sequence_contacts WHERE lead_id = $1 AND status NOT IN ('active', 'in_doubt')) c
LEFT JOIN devices h ON h.id = c.home_device_id
ORDER BY c.id;

-- name: queued
SELECT EXISTS (SELECT FROM lead_changes WHERE $1 = ANY (leads));

-- name: unsearched
-- Entries whose search for leads that carried the trigger before has not come to this lead yet.
SELECT trigger FROM open_entries WHERE NOT scan_done AND scanned_to < $1;

-- name: device
-- One device at a time: with a constant the view reads that device's rows only.
SELECT d.name, d.health, d.health_cause, d.gateway_url, b.messages_hour, d.quota_per_hour, b.messages_today,
       d.quota_per_day, b.current_processing, d.in_flight_max,
       coalesce(d.account_rests_until > dripline_now(), false) AS account_rests
FROM devices d JOIN device_load_balance b ON b.device_id = d.id WHERE d.id = $1 AND b.device_id = $1;

-- name: decisions
SELECT at, actor, action, subject, detail FROM operator_log
WHERE subject = ANY ($1::text[]) ORDER BY id DESC LIMIT 20;

-- name: attempts
-- Each half by its own index on the enrolment.
SELECT l.reserved_at, l.accepted_at, l.step_trigger, l.attempt, l.outcome, l.error, d.name AS device
FROM (
    SELECT * FROM message_ledger WHERE enrolment_id = ANY ($1::bigint[]) AND outcome = 'accepted'
    UNION ALL
    SELECT * FROM message_ledger WHERE enrolment_id = ANY ($1::bigint[]) AND outcome <> 'accepted') l
LEFT JOIN devices d ON d.id = l.device_id
ORDER BY l.reserved_at DESC, l.attempt DESC LIMIT 20;
