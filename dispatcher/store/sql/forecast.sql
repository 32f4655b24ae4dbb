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

-- name: coming
-- Leads that the engine enrols as soon as it looks, by the rules of enrol: those whose changes are queued, and where an
-- entry has not been searched for yet, all that carry it; day -1. $1: the triggers of all steps, $2: of the open entries.
WITH entry AS MATERIALIZED (
    SELECT s.place, t.sequence_id, t.trigger, q.reentry, q.requires_opt_in,
           dripline_now() - q.reentry_interval_h * dripline_hour() AS reentry_before
    FROM unnest($1::text[]) WITH ORDINALITY s(trigger, place)
    JOIN sequence_steps t ON t.trigger = s.trigger
    JOIN sequences q ON q.id = t.sequence_id
    WHERE s.trigger = ANY ($2::text[])
),
changed AS MATERIALIZED (
    SELECT unnest(leads) AS id FROM lead_changes
    UNION
    SELECT l.id FROM leads l
    WHERE l.trigger <> '' AND EXISTS (SELECT FROM entry e WHERE NOT EXISTS (
        SELECT FROM open_entries o WHERE o.trigger = e.trigger AND o.scan_done))
),
found AS (
    SELECT DISTINCT ON (l.id, e.sequence_id) l.id AS lead, e.place, coalesce(d.number, -1) AS device,
           coalesce(l.time_zone, '') AS zone
    FROM changed k
    JOIN leads l ON l.id = k.id AND l.opted_out_at IS NULL
    CROSS JOIN LATERAL dripline_tokens(l.trigger) t(token)
    JOIN entry e ON e.trigger = t.token
    LEFT JOIN devices d ON d.id = l.home_device_id AND d.health = 'available'
    WHERE NOT (e.requires_opt_in AND l.opted_in_at IS NULL)
      AND NOT EXISTS (
          SELECT FROM sequence_contacts c WHERE c.lead_id = l.id AND c.sequence_id = e.sequence_id
          AND (c.status IN ('active', 'in_doubt') OR e.reentry = 'never'
               OR (c.trigger_kept AND c.entry_trigger = e.trigger)
               OR (e.reentry = 'after_interval' AND c.finished_at > e.reentry_before)))
      AND NOT EXISTS (
          SELECT FROM archived_enrolments c WHERE c.lead_id = l.id AND c.sequence_id = e.sequence_id
          AND (e.reentry = 'never' OR (e.reentry = 'after_interval' AND c.finished_at > e.reentry_before)))
    ORDER BY l.id, e.sequence_id, t.token
)
SELECT string_agg(int8send(lead), '') AS lead, string_agg(int4send(place::integer - 1), '') AS entry,
       string_agg(int4send(place::integer - 1), '') AS step, string_agg(int4send(device), '') AS device,
       string_agg(timestamptz_send(dripline_now()), '') AS due, string_agg(int4send(-1), '') AS day,
       string_agg(zone, ',') AS zone
FROM found;

-- name: sent_since
-- Everything that counts against a quota still, by device.
SELECT d.number, string_agg(timestamptz_send(l.at), '' ORDER BY l.at) AS at
FROM devices d CROSS JOIN LATERAL (
    SELECT CASE WHEN outcome IN ('in_doubt', 'not_sent') THEN deadline_at ELSE reserved_at END AS at
    FROM message_ledger
    WHERE device_id = d.id AND reserved_at > dripline_at($1::bigint)
      AND dripline_charged(outcome)) l
GROUP BY d.number ORDER BY d.number;

-- name: left_out
-- What the forecast cannot know yet, or will not move by itself.
SELECT (SELECT count(*) FROM sequence_contacts WHERE status = 'in_doubt') AS in_doubt,
       (SELECT count(*) FROM sequence_contacts c WHERE c.status = 'active' AND NOT EXISTS (
           SELECT FROM sequence_steps s WHERE s.trigger = c.current_trigger)) AS without_step,
       (SELECT count(*) FROM paused_leads WHERE until > dripline_now()) AS paused_leads;
