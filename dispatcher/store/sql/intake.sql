-- Lead files, sequence files and device lists.

-- name: settings
-- The table grows under a plan that was made when it was small: plan each chunk anew, by index.
SELECT set_config('enable_seqscan', 'off', true), set_config('plan_cache_mode', 'force_custom_plan', true);

-- name: find
SELECT id, phone, name, niche, trigger, time_zone, opted_in_at, attributes FROM leads WHERE phone = ANY ($1::text[]);

-- name: find_locked
SELECT id, phone, name, niche, trigger, time_zone, opted_in_at, attributes FROM leads WHERE phone = ANY ($1::text[])
ORDER BY id FOR UPDATE;

-- name: update
UPDATE leads l SET name = u.name, niche = u.niche, trigger = u.trigger, time_zone = u.time_zone,
                   opted_in_at = u.opted_in_at, attributes = u.attributes
FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::jsonb[])
     u(id, name, niche, trigger, time_zone, opted_in_at, attributes)
WHERE l.id = u.id;

-- name: make_tried_leads
-- What a dry run would have written, for the chunks after it.
CREATE TEMPORARY TABLE dripline_tried_leads (
    id integer, phone text PRIMARY KEY, name text, niche text, trigger text, time_zone text, opted_in_at timestamptz,
    attributes jsonb);

-- name: drop_tried_leads
DROP TABLE dripline_tried_leads;

-- name: forget_tried
DELETE FROM dripline_tried_leads WHERE phone = ANY ($1::text[]);

-- name: find_tried
SELECT id, phone, name, niche, trigger, time_zone, opted_in_at, attributes
FROM dripline_tried_leads WHERE phone = ANY ($1::text[])
UNION ALL
SELECT id, phone, name, niche, trigger, time_zone, opted_in_at, attributes
FROM leads l WHERE phone = ANY ($1::text[]) AND NOT EXISTS (SELECT FROM dripline_tried_leads t WHERE t.phone = l.phone);

-- name: lock_sequences
-- One apply at a time.
SELECT pg_advisory_xact_lock(hashtextextended('dripline apply', 0));

-- name: standing_at
SELECT current_trigger, count(*) AS live FROM sequence_contacts
WHERE sequence_id = $1 AND status IN ('active', 'in_doubt') AND current_trigger = ANY ($2::text[])
GROUP BY current_trigger ORDER BY current_trigger;

-- name: would_enrol
-- Leads that a newly opened entry enrols at once, by the rules of enrol. $1 its trigger, $2 the sequence (NULL: a new
-- one), $3 whether it requires an opt-in, $4 its re-entry, $5 the interval in hours. Reads every lead.
SELECT count(*) FROM leads l
WHERE strpos(l.trigger, $1) > 0 AND EXISTS (SELECT FROM dripline_tokens(l.trigger) t(token) WHERE t.token = $1)
  AND l.opted_out_at IS NULL AND NOT ($3::boolean AND l.opted_in_at IS NULL)
  AND NOT EXISTS (
      SELECT FROM sequence_contacts c WHERE c.lead_id = l.id AND c.sequence_id = $2
      AND (c.status IN ('active', 'in_doubt') OR $4::text = 'never' OR (c.trigger_kept AND c.entry_trigger = $1)
           OR ($4 = 'after_interval' AND c.finished_at > dripline_now() - $5::double precision * dripline_hour())))
  AND NOT EXISTS (
      SELECT FROM archived_enrolments c WHERE c.lead_id = l.id AND c.sequence_id = $2
      AND ($4 = 'never'
           OR ($4 = 'after_interval' AND c.finished_at > dripline_now() - $5::double precision * dripline_hour())));

-- name: delete_steps
DELETE FROM sequence_steps WHERE trigger = ANY ($1::text[]);

-- name: insert_sequence
INSERT INTO sequences (name, trigger_prefix, is_active, reentry, reentry_interval_h, sender_policy, requires_opt_in,
                       exit_on_reply, max_lateness_hours, when_late, send_from, send_until, send_days, send_time_zone,
                       goal_trigger, goal_if)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16) RETURNING id;

-- name: update_sequence
UPDATE sequences SET name = $2, trigger_prefix = $3, is_active = $4, reentry = $5, reentry_interval_h = $6,
                     sender_policy = $7, requires_opt_in = $8, exit_on_reply = $9, max_lateness_hours = $10,
                     when_late = $11, send_from = $12, send_until = $13, send_days = $14, send_time_zone = $15,
                     goal_trigger = $16, goal_if = $17
WHERE id = $1;

-- name: forget_blackouts
DELETE FROM blackouts WHERE sequence_id = $1;

-- name: write_blackouts
INSERT INTO blackouts (sequence_id, first_day, last_day)
SELECT $1, first_day, nullif(last_day, first_day) FROM unnest($2::date[], $3::date[]) b(first_day, last_day);

-- name: write_steps
INSERT INTO sequence_steps (sequence_id, trigger, message_text, next_trigger, trigger_delay_hours,
                            trigger_delay_minutes, day_number, is_entry_point, media_url, send_at, template_name,
                            template_language, template_parameters)
SELECT $1, trigger, message_text, next_trigger, delay_h, delay_min, day_number, is_entry, media_url, at, template,
       template_language, ARRAY (SELECT jsonb_array_elements_text(parameters))
FROM unnest($2::text[], $3::text[], $4::text[], $5::integer[], $6::integer[], $7::integer[], $8::boolean[], $9::text[],
            $10::time[], $11::text[], $12::text[], $13::jsonb[]) WITH ORDINALITY
     s(trigger, message_text, next_trigger, delay_h, delay_min, day_number, is_entry, media_url, at, template,
       template_language, parameters, place)
ORDER BY place
ON CONFLICT (trigger) DO UPDATE SET message_text = excluded.message_text, next_trigger = excluded.next_trigger,
    trigger_delay_hours = excluded.trigger_delay_hours, trigger_delay_minutes = excluded.trigger_delay_minutes,
    day_number = excluded.day_number, is_entry_point = excluded.is_entry_point, media_url = excluded.media_url,
    send_at = excluded.send_at, template_name = excluded.template_name, template_language = excluded.template_language,
    template_parameters = excluded.template_parameters;

-- name: lock_step
SELECT paused_cause FROM sequence_steps WHERE trigger = $1 FOR NO KEY UPDATE;

-- name: resume_step
UPDATE sequence_steps SET paused_cause = NULL, paused_since = NULL WHERE trigger = $1;

-- name: lead_attributes
-- Leads by what a message may print of them; all leads stand under NULL. Reads every lead.
SELECT key, count(*) AS leads
FROM leads l CROSS JOIN LATERAL (
    SELECT NULL AS key
    UNION ALL
    SELECT 'name' WHERE l.name <> ''
    UNION ALL
    SELECT a.key FROM jsonb_each_text(l.attributes) a WHERE a.value <> '' AND a.key NOT IN ('name', 'phone')) k
GROUP BY key;

-- name: switch_sequence
UPDATE sequences SET is_active = $2 WHERE id = $1 AND is_active <> $2;

-- name: sequence_counts
SELECT sequence_id, count(*) FILTER (WHERE status IN ('active', 'in_doubt')) AS live,
       count(*) FILTER (WHERE status = 'completed') AS completed
FROM sequence_contacts GROUP BY sequence_id;

-- name: tagged
-- Leads by token; grouped by the whole list first, so that few lists are taken apart however many leads there are.
WITH lists AS (
    SELECT trigger, count(*) AS leads, count(opted_out_at) AS opted_out,
           count(*) FILTER (WHERE opted_out_at IS NULL AND opted_in_at IS NULL) AS not_opted_in
    FROM leads WHERE trigger <> '' GROUP BY trigger
)
SELECT token, sum(leads)::bigint AS leads, sum(opted_out)::bigint AS opted_out,
       sum(not_opted_in)::bigint AS not_opted_in
FROM lists, dripline_tokens(trigger) token GROUP BY token ORDER BY leads DESC, token;

-- name: device_list
SELECT d.name, d.phone, d.health, d.health_cause, d.paused, d.pause_reason, d.quota_per_hour, d.quota_per_day,
       d.in_flight_max, d.min_gap_s, d.ramp_per_day, b.messages_hour, b.messages_today, b.current_processing, d.gateway_url,
       d.group_name, d.gateway_kind
FROM devices d JOIN device_load_balance b ON b.device_id = d.id ORDER BY d.number;

-- name: group_list
SELECT g.name, g.quota_per_hour, g.quota_per_day, count(d.id) AS devices,
       coalesce(sum(b.messages_hour), 0) AS messages_hour, coalesce(sum(b.messages_today), 0) AS messages_today
FROM device_groups g LEFT JOIN (devices d JOIN device_load_balance b ON b.device_id = d.id) ON d.group_name = g.name
GROUP BY g.name ORDER BY g.name;

-- name: is_group
SELECT EXISTS (SELECT FROM device_groups WHERE name = $1);

-- name: write_group
-- No row comes back when nothing changes.
INSERT INTO device_groups AS g (name, quota_per_hour, quota_per_day) VALUES ($1, $2, $3)
ON CONFLICT (name) DO UPDATE SET quota_per_hour = excluded.quota_per_hour, quota_per_day = excluded.quota_per_day
WHERE (g.quota_per_hour, g.quota_per_day) IS DISTINCT FROM (excluded.quota_per_hour, excluded.quota_per_day)
RETURNING xmax = 0 AS created;

-- name: device_of_phone
-- Another device with this phone; one that is retired has given it back.
SELECT name FROM devices WHERE phone = $1 AND name <> $2 AND health <> 'retired' LIMIT 1;

-- name: device_gateway
SELECT gateway_kind, gateway_phone_number_id FROM devices WHERE name = $1;

-- name: write_device
-- NULL keeps what the device has; a new one gets the default. No row comes back when nothing changes. Group '-' is none.
INSERT INTO devices AS d (name, phone, gateway_url, gateway_token, gateway_idempotent, quota_per_hour, quota_per_day,
                          in_flight_max, min_gap_s, health, health_cause, ramp_per_day, ramp_growth, group_name,
                          gateway_kind, gateway_phone_number_id, gateway_account)
VALUES ($1, $2, $3, $4, coalesce($5, true), coalesce($6, 80), coalesce($7, 800), coalesce($8, 50),
        coalesce($9::double precision, 5), coalesce($10, 'available'), $11, nullif($12::integer, 0),
        coalesce($13::double precision, 1.5), nullif($14, '-'), coalesce($15, 'http'), $16, $17)
ON CONFLICT (name) DO UPDATE SET
    phone = coalesce($2, d.phone), gateway_url = coalesce($3, d.gateway_url),
    gateway_token = coalesce($4, d.gateway_token), gateway_idempotent = coalesce($5, d.gateway_idempotent),
    quota_per_hour = coalesce($6, d.quota_per_hour), quota_per_day = coalesce($7, d.quota_per_day),
    in_flight_max = coalesce($8, d.in_flight_max), min_gap_s = coalesce($9, d.min_gap_s),
    health = coalesce($10, d.health), health_cause = CASE WHEN $10::text IS NULL THEN d.health_cause ELSE $11 END,
    ramp_per_day = nullif(coalesce($12, d.ramp_per_day), 0), ramp_growth = coalesce($13, d.ramp_growth),
    group_name = nullif(coalesce($14, d.group_name), '-'), gateway_kind = coalesce($15, d.gateway_kind),
    gateway_phone_number_id = coalesce($16, d.gateway_phone_number_id),
    gateway_account = coalesce($17, d.gateway_account)
WHERE (d.phone, d.gateway_url, d.gateway_token, d.gateway_idempotent, d.quota_per_hour, d.quota_per_day, d.in_flight_max,
       d.min_gap_s, d.health, d.health_cause, d.ramp_per_day, d.ramp_growth, d.group_name, d.gateway_kind,
       d.gateway_phone_number_id, d.gateway_account)
   IS DISTINCT FROM (coalesce($2, d.phone), coalesce($3, d.gateway_url), coalesce($4, d.gateway_token),
                     coalesce($5, d.gateway_idempotent), coalesce($6, d.quota_per_hour), coalesce($7, d.quota_per_day),
                     coalesce($8, d.in_flight_max), coalesce($9, d.min_gap_s), coalesce($10, d.health),
                     CASE WHEN $10::text IS NULL THEN d.health_cause ELSE $11 END,
                     nullif(coalesce($12, d.ramp_per_day), 0), coalesce($13, d.ramp_growth),
                     nullif(coalesce($14, d.group_name), '-'), coalesce($15, d.gateway_kind),
                     coalesce($16, d.gateway_phone_number_id), coalesce($17, d.gateway_account))
RETURNING xmax = 0 AS created;

-- name: remaining
-- A device's health, and what has not left it yet.
SELECT d.health, count(c.id) FILTER (WHERE c.status = 'active') AS active,
       count(c.id) FILTER (WHERE c.status = 'in_doubt') AS in_doubt
FROM devices d LEFT JOIN sequence_contacts c ON c.home_device_id = d.id AND c.status IN ('active', 'in_doubt')
WHERE d.name = $1 GROUP BY d.id;

-- name: drain
UPDATE devices SET health = 'draining', health_cause = $2 WHERE name = $1 AND health NOT IN ('draining', 'retired');

-- name: retire
UPDATE devices SET health = 'retired' WHERE name = $1 AND health <> 'retired';
