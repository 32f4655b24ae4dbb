-- Everything about one lead.

-- name: lead
-- By phone first: an id that is somebody else's phone number is that phone's.
SELECT id, phone, name, niche, trigger, time_zone, opted_in_at, opted_out_at, home_device_id,
       (SELECT s.reason FROM suppressions s WHERE s.phone = leads.phone) AS suppressed, dripline_now() AS now, dripline_hour() AS hour
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
SELECT d.name, d.health, d.health_cause, d.paused, d.pause_reason, d.paused_since, d.gateway_url, b.messages_hour,
       d.quota_per_hour, b.messages_today, dripline_day_quota(d.quota_per_day, d.ramp_per_day) AS quota_per_day, b.current_processing, d.in_flight_max,
       d.group_name, coalesce(d.account_rests_until > dripline_now(), false) AS account_rests
FROM devices d JOIN device_load_balance b ON b.device_id = d.id WHERE d.id = $1 AND b.device_id = $1;

-- name: group
-- A group of devices, with what all of them have sent.
SELECT g.name, g.quota_per_hour, g.quota_per_day, sum(b.messages_hour + b.current_processing) AS messages_hour,
       sum(b.messages_today + b.current_processing) AS messages_today
FROM device_groups g JOIN devices d ON d.group_name = g.name JOIN device_load_balance b ON b.device_id = d.id
WHERE g.name = $1 GROUP BY g.name;

-- name: suppressed
-- A number that is nobody's lead: why it must not be messaged; NULL where only its digest is known.
SELECT reason FROM suppressions WHERE phone = $1
UNION ALL
SELECT NULL FROM suppressed_digests WHERE digest = dripline_digest($1);

-- name: paused_since
-- When everything was paused.
SELECT paused_since FROM fleet WHERE paused;

-- name: pause
SELECT since, nullif(until, 'infinity') AS until, reason FROM paused_leads WHERE lead_id = $1 AND until > dripline_now();

-- name: late_steps
SELECT step_trigger, due_at, at, shifted_to FROM late_steps WHERE enrolment_id = ANY ($1::bigint[]) ORDER BY at DESC LIMIT 20;

-- name: decisions
SELECT at, actor, action, subject, detail FROM operator_log
WHERE subject = ANY ($1::text[]) ORDER BY id DESC LIMIT 20;

-- name: attempts
-- Each half by its own index on the enrolment. Receipts by the key tell of the message: they are shown with
-- whichever of its attempts has, or may have, arrived.
SELECT l.reserved_at, l.accepted_at, l.step_trigger, l.attempt, l.outcome, l.error, d.name AS device,
       r.delivered_at, r.read_at, r.failed_at, r.failure
FROM (
    SELECT * FROM message_ledger WHERE enrolment_id = ANY ($1::bigint[]) AND outcome = 'accepted'
    UNION ALL
    SELECT * FROM message_ledger WHERE enrolment_id = ANY ($1::bigint[]) AND outcome <> 'accepted') l
LEFT JOIN devices d ON d.id = l.device_id
LEFT JOIN LATERAL (
    SELECT min(delivered_at) AS delivered_at, min(read_at) AS read_at, min(failed_at) AS failed_at,
           (array_agg(error ORDER BY failed_at))[1] AS failure
    FROM message_receipts
    WHERE message IN (l.idempotency_key::text, l.gateway_message_id)) r ON l.outcome IN ('accepted', 'in_doubt')
ORDER BY l.reserved_at DESC, l.attempt DESC LIMIT 20;
