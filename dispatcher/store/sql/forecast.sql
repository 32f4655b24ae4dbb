-- What a forecast starts from: columns in one row, in network byte order.

-- name: waiting
-- Live enrolments that wait or are claimed: which lead, by which entry, at which step, on which
-- device, from when on, in which time zone. $1: the triggers of all steps; what stands at another one goes nowhere.
WITH step AS (SELECT * FROM unnest($1::text[]) WITH ORDINALITY s(trigger, place)),
found AS (
    SELECT c.lead_id, e.place AS entry, s.place AS step, coalesce(d.number, -1) AS device,
           c.next_trigger_time AS due, coalesce(l.time_zone, '') AS zone, c.enrolled_at::date - date '2000-01-01' AS day
    FROM sequence_contacts c
    JOIN leads l ON l.id = c.lead_id
    JOIN step s ON s.trigger = c.current_trigger
    JOIN step e ON e.trigger = c.entry_trigger
    LEFT JOIN devices d ON d.id = c.home_device_id
    WHERE c.status = 'active' AND c.next_trigger_time IS NOT NULL
    ORDER BY c.lead_id, c.sequence_id
)
SELECT string_agg(int8send(lead_id), '') AS lead, string_agg(int4send(entry::integer - 1), '') AS entry,
       string_agg(int4send(step::integer - 1), '') AS step, string_agg(int4send(device), '') AS device,
       string_agg(timestamptz_send(due), '') AS due, string_agg(int4send(day), '') AS day,
       string_agg(zone, ',') AS zone
FROM found;

-- name: sent_since
-- Everything that counts against a quota still, by device.
SELECT d.number, string_agg(timestamptz_send(l.at), '' ORDER BY l.at) AS at
FROM devices d CROSS JOIN LATERAL (
    SELECT CASE WHEN outcome IN ('in_doubt', 'not_sent') THEN deadline_at ELSE reserved_at END AS at
    FROM message_ledger
    WHERE device_id = d.id AND reserved_at > dripline_at($1::bigint)
      AND outcome NOT IN ('refused', 'throttled', 'expired', 'credentials')) l
GROUP BY d.number ORDER BY d.number;

-- name: left_out
-- What the forecast cannot know yet, or will not move by itself.
SELECT (SELECT coalesce(sum(cardinality(leads)), 0) FROM lead_changes) AS queued,
       (SELECT count(*) FROM sequence_contacts WHERE status = 'in_doubt') AS in_doubt,
       (SELECT count(*) FROM sequence_contacts c WHERE c.status = 'active' AND NOT EXISTS (
           SELECT FROM sequence_steps s WHERE s.trigger = c.current_trigger)) AS without_step;
