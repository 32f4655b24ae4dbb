-- What a shard reads: its usage at takeover, its leases, and once more what is about to leave.

-- name: load_usage
-- Ledger and leases in one snapshot: every attempt that is charged, one that is or was in doubt at its latest moment. A
-- lease counts when it was handed over, or when its owner may still do so.
SELECT u.number, string_agg(timestamptz_send(u.at), '') AS at
FROM (
    SELECT d.number, l.at
    FROM devices d CROSS JOIN LATERAL (
        SELECT CASE WHEN outcome IN ('in_doubt', 'not_sent') THEN deadline_at ELSE reserved_at END AS at
        FROM message_ledger
        WHERE device_id = d.id AND reserved_at > dripline_at($2::bigint)
          AND dripline_charged(outcome)) l
    WHERE d.shard_id = $1
    UNION ALL
    SELECT d.number, l.deadline_at FROM leases l JOIN devices d ON d.id = l.device_id
    WHERE d.shard_id = $1
      AND (EXISTS (SELECT FROM epochs e WHERE e.epoch = l.shard_epoch)
           OR EXISTS (SELECT FROM handovers h WHERE h.token = l.token AND l.enrolment_id = ANY (h.enrolments)))) u
GROUP BY u.number;

-- name: leased_tokens
-- Claims that have no outcome yet. What has been leased for a second is marked in passing, where nobody holds the row.
WITH open AS MATERIALIZED (
    SELECT l.token, l.enrolment_id, NOT l.marked AND l.claimed_at < clock_timestamp() - interval '1 second' AS lasts
    FROM leases l JOIN devices d ON d.id = l.device_id WHERE d.shard_id = $1 AND l.shard_epoch = $2
),
marked AS (
    UPDATE sequence_contacts SET processing_device_id = home_device_id
    WHERE ctid = ANY (ARRAY (
        SELECT c.tid FROM open o CROSS JOIN LATERAL (
            SELECT ctid AS tid FROM sequence_contacts WHERE id = o.enrolment_id AND lease_token = o.token
            FOR NO KEY UPDATE SKIP LOCKED) c
        WHERE o.lasts))
)
SELECT DISTINCT token FROM open;

-- name: read_lease
-- The rows of one claim as the claim returned them, for a shard the routing call did not reach.
SELECT string_agg(int4send(d.number), '') AS device,
       string_agg(timestamptz_send(c.slot_at), '') AS slot,
       string_agg(int8send(c.enrolment_id), '') AS enrolment,
       string_agg(int8send(c.lead_id), '') AS lead,
       string_agg(int4send(c.visit), '') AS visit,
       string_agg(int4send(c.generation), '') AS generation,
       string_agg(int4send(c.attempt), '') AS attempt,
       string_agg(int4send(c.retry_count), '') AS retries,
       string_agg(timestamptz_send(c.due_at), '') AS due,
       array_agg(c.contact_phone) AS phone,
       array_agg(c.current_trigger) AS step,
       array_agg(c.resend_text) AS resend_text,
       array_agg(c.resend_media_url) AS resend_media_url,
       array_agg(l.name) AS name,
       array_agg(nullif(l.attributes::text, '{}')) AS attributes
FROM leases c JOIN devices d ON d.id = c.device_id LEFT JOIN leads l ON l.id = c.lead_id
WHERE d.shard_id = $1 AND c.shard_epoch = $2 AND c.token = $3;

-- name: last_look
-- What may not leave after all, and why. Begins after every opt-out, reply and pause that has committed. What does leave is on
-- record from here on, under an epoch that is in force: a takeover waits for this, and whoever comes later leaves
-- nothing. $1 enrolments, $2 whether each has something to say, $3 token, $4 seat, $5 epoch, $6 now, $7 bodies.
WITH fence AS MATERIALIZED (
    SELECT count(*) AS held FROM (SELECT FROM epochs WHERE name = $4 AND epoch = $5 FOR SHARE) f
),
looked AS MATERIALIZED (
    SELECT u.n, u.id, u.leaves, CASE
        WHEN (SELECT held FROM fence) = 0 THEN 'superseded'
        WHEN c.id IS NULL THEN 'gone'
        WHEN l.id IS NULL THEN 'trigger removed'
        WHEN l.opted_out_at IS NOT NULL OR l.id = ANY (ARRAY (SELECT lead_id FROM opt_outs)) THEN 'opted out'
        WHEN (SELECT EXISTS (SELECT FROM suppressions))
             AND EXISTS (SELECT FROM suppressions s WHERE s.phone = c.contact_phone) THEN 'opted out'
        WHEN c.stop_reason IS NOT NULL THEN 'stopped'
        WHEN c.id = ANY (ARRAY (SELECT enrolment_id FROM exits)) THEN 'replied'
        WHEN (SELECT paused FROM fleet)
             OR c.sequence_id = ANY (ARRAY (SELECT id FROM sequences WHERE NOT is_active))
             OR c.home_device_id = ANY (ARRAY (SELECT id FROM devices WHERE paused))
             OR c.lead_id IN (SELECT lead_id FROM paused_leads WHERE until > dripline_at($6::bigint)) THEN 'paused'
        WHEN c.current_trigger = ANY (ARRAY (SELECT trigger FROM sequence_steps WHERE paused_cause IS NOT NULL))
            THEN 'step paused'
        WHEN c.pinned AND EXISTS (SELECT FROM devices d WHERE d.id = c.home_device_id AND NOT d.gateway_idempotent)
            THEN 'key forgotten'
        WHEN c.pinned AND EXISTS (
            SELECT FROM message_ledger m WHERE m.enrolment_id = c.id AND m.visit = c.visit
            AND m.generation = c.generation AND m.outcome = 'in_doubt' AND m.reserved_at < dripline_at($8::bigint))
            THEN 'key forgotten'
        END AS reason
    FROM unnest($1::dripline_int8s, $2::dripline_bools) WITH ORDINALITY u(id, leaves, n)
    LEFT JOIN sequence_contacts c ON c.id = u.id AND c.lease_token = $3
    LEFT JOIN leads l ON l.id = c.lead_id
),
recorded AS (
    INSERT INTO handovers (token, shard_epoch, handed_at, enrolments, bodies)
    SELECT $3, $5, dripline_at($6::bigint), array_agg(id), $7::bytea FROM looked WHERE reason IS NULL AND leaves
    HAVING count(*) > 0
)
SELECT string_agg(int4send((n - 1)::integer), '') AS row, array_agg(reason) AS reason FROM looked WHERE reason IS NOT NULL;

-- name: open_windows
-- Whether these leads ($1) have written to these devices ($2, numbers) since $3; a message whose device is unknown counts.
SELECT array_agg(EXISTS (
    SELECT FROM replies r WHERE r.lead_id = u.lead AND r.received_at > dripline_at($3::bigint)
    AND (r.device_id IS NULL OR r.device_id = d.id)) ORDER BY u.n) AS open
FROM unnest($1::dripline_int8s, $2::dripline_int4s) WITH ORDINALITY u(lead, device, n)
LEFT JOIN devices d ON d.number = u.device;

-- name: rest_accounts
-- The accounts behind these devices are asked to slow down: all their devices rest, whoever owns them. $1 numbers, $2 until.
WITH told AS (SELECT number, max(until) AS until FROM unnest($1::integer[], $2::bigint[]) t(number, until) GROUP BY 1)
UPDATE devices d SET account_rests_until = dripline_at(a.until)
FROM (
    SELECT t.gateway_account AS account, max(told.until) AS until
    FROM told JOIN devices t ON t.number = told.number WHERE t.gateway_account IS NOT NULL GROUP BY 1) a
WHERE d.gateway_account = a.account
  AND (d.account_rests_until IS NULL OR d.account_rests_until < dripline_at(a.until) - interval '1 second');

-- name: time_zones
SELECT array_agg(l.time_zone ORDER BY u.n) AS time_zone
FROM unnest($1::dripline_int8s) WITH ORDINALITY u(id, n) LEFT JOIN leads l ON l.id = u.id;

-- name: postpone
-- What else is due of sequences whose send windows are shut for its leads: to the next opening, out of the claim's way. A
-- bounded number a call, and around what somebody holds: claims wait for these rows, and not for long. OFFSET 0 keeps
-- the planner on a look-up a lead. $1 shard, $2 now, $3 when it opens by sequence, step ('' for most) and time zone, $4
-- how many.
WITH shut AS MATERIALIZED (
    SELECT c.ctid AS tid, l.opens
    FROM sequence_contacts c CROSS JOIN LATERAL (
        SELECT coalesce($3::jsonb #>> ARRAY[c.sequence_id::text, c.current_trigger, coalesce(time_zone, '')],
                        $3::jsonb #>> ARRAY[c.sequence_id::text, '', coalesce(time_zone, '')])::bigint AS opens
        FROM leads WHERE id = c.lead_id OFFSET 0) l
    WHERE c.home_device_id = ANY (ARRAY (SELECT id FROM devices WHERE shard_id = $1))
      AND c.status = 'active' AND NOT c.held AND c.next_trigger_time <= dripline_at($2::bigint)
      AND c.sequence_id = ANY (ARRAY (SELECT k::bigint FROM jsonb_object_keys($3::jsonb) k))
      AND c.lease_token IS NULL AND c.stop_reason IS NULL
      AND l.opens IS NOT NULL
    LIMIT $4::bigint FOR NO KEY UPDATE OF c SKIP LOCKED
)
UPDATE sequence_contacts c SET next_trigger_time = dripline_at(s.opens) FROM shut s WHERE c.ctid = s.tid;

-- name: late
-- What waits too late to be sent, on the shard's devices, the longest overdue first; what may have been sent is none of it.
-- $1 shard, $2 due before which moment is too late, by sequence, $3 the latest of these, $4 how many.
SELECT c.id, c.visit, c.generation, d.number AS device, dripline_us(c.next_trigger_time) AS due_us, c.current_trigger AS step,
       (SELECT l.time_zone FROM leads l WHERE l.id = c.lead_id) AS time_zone
FROM (SELECT id, number FROM devices WHERE shard_id = $1 ORDER BY number) d
CROSS JOIN LATERAL (
    SELECT * FROM sequence_contacts
    WHERE home_device_id = d.id AND status = 'active' AND NOT held AND next_trigger_time < dripline_at($3::bigint)
      AND sequence_id = ANY (ARRAY (SELECT k::bigint FROM jsonb_object_keys($2::jsonb) k))
      AND next_trigger_time < dripline_at(($2::jsonb ->> sequence_id::text)::bigint)
      AND lease_token IS NULL AND stop_reason IS NULL AND NOT pinned
    ORDER BY next_trigger_time, id LIMIT $4::bigint) c
LIMIT $4::bigint;

-- name: move_late
-- A step skipped or moved, and written down, where the enrolment still waits as it was read. Skipping the last one leaves
-- nothing to send: the next pass completes it. $1 enrolments, $2 visits, $3 generations, $4 due, $5 whether it is skipped,
-- $6 the step that it stands at then, $7 when that is due, $8 now.
WITH free AS MATERIALIZED (
    SELECT c.ctid AS tid, c.current_trigger AS step, m.*
    FROM unnest($1::bigint[], $2::integer[], $3::integer[], $4::bigint[], $5::boolean[], $6::text[], $7::bigint[])
         m(id, visit, generation, due, skipped, next_trigger, next_due)
    JOIN sequence_contacts c ON c.id = m.id AND c.visit = m.visit AND c.generation = m.generation
    WHERE c.status = 'active' AND NOT c.held AND dripline_us(c.next_trigger_time) = m.due
      AND c.lease_token IS NULL AND c.stop_reason IS NULL AND NOT c.pinned
    FOR NO KEY UPDATE OF c SKIP LOCKED
),
moved AS (
    UPDATE sequence_contacts c
    SET visit = c.visit + f.skipped::integer,
        attempt = CASE WHEN f.skipped THEN 0 ELSE c.attempt END,
        retry_count = CASE WHEN f.skipped THEN 0 ELSE c.retry_count END,
        last_error = CASE WHEN NOT f.skipped THEN c.last_error END,
        current_trigger = coalesce(f.next_trigger, c.current_trigger),
        next_trigger_time = CASE WHEN f.next_trigger IS NOT NULL THEN dripline_at(f.next_due) END
    FROM free f WHERE c.ctid = f.tid
    RETURNING c.id, c.sequence_id, c.lead_id, f.visit, f.generation, f.step, f.due, f.skipped, c.next_trigger_time
),
told AS (
    INSERT INTO late_steps (enrolment_id, sequence_id, lead_id, visit, generation, step_trigger, due_at, at, shifted_to)
    SELECT id, sequence_id, lead_id, visit, generation, step, dripline_at(due), dripline_at($8::bigint),
           CASE WHEN NOT skipped THEN next_trigger_time END FROM moved
)
SELECT count(*) FROM moved;
