-- What a person sees at a glance. Every statement is a snapshot of its own, and short.

-- name: leader
SELECT holder, expires_at > clock_timestamp() AS alive FROM heartbeats WHERE name = 'coordinator';

-- name: shards_alive
SELECT count(*) FILTER (WHERE expires_at > clock_timestamp()) AS alive FROM heartbeats WHERE name LIKE 'shard-%';

-- name: gateways
SELECT gateway_url, count(*) AS devices FROM devices GROUP BY gateway_url;

-- name: stamp
SELECT (SELECT kind FROM dripline_database) AS kind, extract(epoch FROM dripline_hour())::float AS hour_s,
       dripline_now() AS now;

-- name: enrolments
-- One scan, few groups, and the clock read once. Sequences without enrolments come too.
WITH grouped AS (
    SELECT sequence_id, status, held, status = 'active' AND lease_token IS NULL AND NOT held AS waits,
           next_trigger_time <= (SELECT dripline_now()) AS due, count(*) AS rows, min(next_trigger_time) AS next_due
    FROM sequence_contacts GROUP BY 1, 2, 3, 4, 5
),
counted AS (
    SELECT sequence_id, sum(rows)::bigint AS total,
           sum(rows) FILTER (WHERE status = 'active')::bigint AS active,
           sum(rows) FILTER (WHERE status = 'completed')::bigint AS completed,
           sum(rows) FILTER (WHERE status = 'failed')::bigint AS failed,
           sum(rows) FILTER (WHERE status = 'stopped')::bigint AS stopped,
           sum(rows) FILTER (WHERE status = 'in_doubt')::bigint AS in_doubt,
           sum(rows) FILTER (WHERE waits AND due)::bigint AS due,
           sum(rows) FILTER (WHERE held)::bigint AS held,
           min(next_due) FILTER (WHERE waits) AS next_due
    FROM grouped GROUP BY sequence_id
)
SELECT s.id, s.name, s.is_active, p.problem,
       coalesce(c.total, 0) AS total, coalesce(c.active, 0) AS active, coalesce(c.completed, 0) AS completed,
       coalesce(c.failed, 0) AS failed, coalesce(c.stopped, 0) AS stopped, coalesce(c.in_doubt, 0) AS in_doubt,
       coalesce(c.due, 0) AS due, coalesce(c.held, 0) AS held, c.next_due
FROM sequences s
LEFT JOIN counted c ON c.sequence_id = s.id
LEFT JOIN sequence_problems p ON p.sequence_id = s.id
ORDER BY s.id;

-- name: paused_steps
SELECT t.trigger, s.name AS sequence, t.paused_cause AS cause, t.paused_since AS since
FROM sequence_steps t JOIN sequences s ON s.id = t.sequence_id WHERE t.paused_cause IS NOT NULL ORDER BY t.trigger;

-- name: leases
-- The seed's "active processing" and "stuck processing"; also what was leased just now.
SELECT count(*) AS leased,
       count(*) FILTER (WHERE slot_at < dripline_now() - interval '5 minutes') AS stuck
FROM leases;

-- name: retries
-- The seed's "retry failures", those that still go on; by index.
SELECT count(*) AS retrying, max(retry_count) AS most FROM sequence_contacts
WHERE retry_count > 0 AND status = 'active';

-- name: health
SELECT health, health_cause AS cause, count(*) AS devices FROM devices
GROUP BY health, health_cause ORDER BY count(*) DESC, health;

-- name: most_loaded
SELECT d.name, d.health, b.messages_hour, d.quota_per_hour, b.messages_today,
       dripline_day_quota(d.quota_per_day, d.ramp_per_day) AS quota_per_day, b.current_processing,
       d.in_flight_max, b.is_available
FROM devices d JOIN device_load_balance b ON b.device_id = d.id
ORDER BY b.messages_hour::float / greatest(d.quota_per_hour, 1) DESC, b.messages_today DESC, d.number LIMIT $1;

-- name: queued
SELECT coalesce(sum(cardinality(leads)), 0)::bigint FROM lead_changes;

-- name: searches
-- How far the searches have come for leads that carried a trigger before its entry opened.
SELECT o.trigger, s.name AS sequence, o.scanned_to, (SELECT max(id) FROM leads) AS last
FROM open_entries o JOIN sequences s ON s.id = o.sequence_id WHERE NOT o.scan_done ORDER BY o.opened_at, o.trigger;

-- name: unmatched_replies
-- Of phones that no lead has; by index.
SELECT count(*) FROM replies WHERE lead_id IS NULL;

-- name: late_steps
SELECT count(*) FILTER (WHERE shifted_to IS NULL) AS skipped, count(shifted_to) AS shifted FROM late_steps;
