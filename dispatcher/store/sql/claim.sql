-- The claim and its neighbours: what is due, what may not stand in its way.

-- name: claim_due
-- The write-ahead intent: per home device the longest overdue take the offered slots, first slots first. Both epochs
-- are locked FOR SHARE (EXISTS and FOR KEY SHARE would let a stale owner commit). One statement a shard. No index has a
-- column that is written here: heap-only updates.
-- Rows are not locked before they are written: it would cost as much as the writing, and what somebody else has changed
-- meanwhile fails the conditions, which PostgreSQL then asks once more. Where somebody holds a row, the statement
-- gives up before it could be part of a deadlock, and is run again as SKIP LOCKED makes it, in the place of the comment.
-- The search of a device begins where the caller knows that nothing to claim is due earlier ($13): neither a blocked
-- backlog nor what has moved on since is read again.
-- The result is one row of columns: integers as big-endian bytes, times as microseconds since 2000.
WITH fence AS MATERIALIZED (
    SELECT count(*) AS held FROM (
        SELECT FROM epochs WHERE (name = 'coordinator' AND epoch = $7) OR (name = $8 AND epoch = $9) FOR SHARE) f
    WHERE set_config('lock_timeout', $12, true) IS NOT NULL
),
due AS MATERIALIZED (
    SELECT w.device_id, w.n AS ord, row_number() OVER (PARTITION BY w.n ORDER BY c.next_trigger_time, c.id) AS rank,
           w.first, c.tid
    FROM unnest($1::dripline_uuids, $2::dripline_int4s, $3::dripline_int4s, $13::dripline_int8s) WITH ORDINALITY
         w(device_id, slots, first, since, n)
    CROSS JOIN LATERAL (
        SELECT ctid AS tid, id, next_trigger_time FROM sequence_contacts
        WHERE home_device_id = w.device_id AND status = 'active' AND NOT held
          AND next_trigger_time >= dripline_at(w.since) AND next_trigger_time <= dripline_at($5::bigint)
          AND sequence_id = ANY (ARRAY (
              SELECT s.id FROM sequences s
              WHERE s.is_active AND NOT EXISTS (SELECT FROM sequence_problems p WHERE p.sequence_id = s.id)))
          AND lease_token IS NULL AND stop_reason IS NULL
        ORDER BY next_trigger_time, id LIMIT w.slots
        /* FOR NO KEY UPDATE SKIP LOCKED */) c
    WHERE (SELECT held FROM fence) = 2
),
leased AS (
    UPDATE sequence_contacts c
    SET processing_started_at = dripline_at(($4::dripline_int8s)[d.first + d.rank]),
        lease_deadline_at = dripline_at(($4::dripline_int8s)[d.first + d.rank] + $6::bigint),
        lease_token = $10, lease_epoch = $9, attempt = c.attempt + 1
    FROM due d
    WHERE c.ctid = d.tid
      AND CASE WHEN c.ctid = d.tid THEN  -- no index may serve these: asked of what the place holds by then
              c.home_device_id = d.device_id AND c.status = 'active' AND NOT c.held
              AND c.next_trigger_time <= dripline_at($5::bigint) AND c.lease_token IS NULL AND c.stop_reason IS NULL
          END
    RETURNING d.ord, d.rank, c.id, c.lead_id, c.visit, c.generation, c.attempt, c.retry_count, c.next_trigger_time,
              c.contact_phone, c.current_trigger, c.resend_text, c.resend_media_url
),
recorded AS (
    INSERT INTO claims (token, shard_epoch, enrolments) SELECT $10, $9, array_agg(id) FROM leased HAVING count(*) > 0
)
SELECT (SELECT held FROM fence) AS held,
       string_agg(int4send(r.ord::integer), '') AS ord,
       string_agg(int4send(r.rank::integer), '') AS rank,
       string_agg(int8send(r.id), '') AS enrolment,
       string_agg(int8send(r.lead_id), '') AS lead,
       string_agg(int4send(r.visit), '') AS visit,
       string_agg(int4send(r.generation), '') AS generation,
       string_agg(int4send(r.attempt), '') AS attempt,
       string_agg(int4send(r.retry_count), '') AS retries,
       string_agg(timestamptz_send(r.next_trigger_time), '') AS due,
       array_agg(r.contact_phone) AS phone,
       array_agg(r.current_trigger) AS step,
       CASE WHEN count(r.resend_text) > 0 THEN array_agg(r.resend_text) END AS resend_text,
       CASE WHEN count(r.resend_text) > 0 THEN array_agg(r.resend_media_url) END AS resend_media_url,
       CASE WHEN count(l.name) > 0 THEN array_agg(l.name) END AS name,
       CASE WHEN count(*) FILTER (WHERE l.attributes <> '{}') > 0
            THEN array_agg(nullif(l.attributes::text, '{}')) END AS attributes
FROM leased r LEFT JOIN leads l ON $11::boolean AND l.id = r.lead_id;

-- name: next_token
SELECT nextval('lease_tokens');

-- name: next_due
-- The earliest due of each device, as the claim would find it; one index entry a device.
SELECT array_agg(dripline_us(c.next_trigger_time) ORDER BY w.n) AS due_us
FROM unnest($1::uuid[]) WITH ORDINALITY w(device_id, n)
LEFT JOIN LATERAL (
    SELECT next_trigger_time FROM sequence_contacts
    WHERE home_device_id = w.device_id AND status = 'active' AND NOT held
      AND next_trigger_time IS NOT NULL
      AND sequence_id = ANY (ARRAY (
          SELECT s.id FROM sequences s
          WHERE s.is_active AND NOT EXISTS (SELECT FROM sequence_problems p WHERE p.sequence_id = s.id)))
      AND lease_token IS NULL
    ORDER BY next_trigger_time, id LIMIT 1) c ON true;

-- name: hold
-- A sequence that may not send: its waiting enrolments leave the claim's index, a bounded number a pass.
UPDATE sequence_contacts SET held = true
WHERE ctid = ANY (ARRAY (
    SELECT c.ctid FROM sequence_contacts c
    WHERE c.status = 'active' AND NOT c.held AND c.lease_token IS NULL AND c.next_trigger_time IS NOT NULL
      AND c.sequence_id = $1
    LIMIT $2::bigint FOR NO KEY UPDATE SKIP LOCKED));

-- name: hold_step
-- A step that is paused: who waits at it leaves the claim's index, a bounded number a pass.
UPDATE sequence_contacts SET held = true
WHERE ctid = ANY (ARRAY (
    SELECT c.ctid FROM sequence_contacts c
    WHERE c.status = 'active' AND NOT c.held AND c.lease_token IS NULL AND c.next_trigger_time IS NOT NULL
      AND c.current_trigger = $1
    LIMIT $2::bigint FOR NO KEY UPDATE SKIP LOCKED));

-- name: unhold
-- May send again: back into the claim's index, longest overdue where they stood; not those of paused leads, nor at
-- paused steps.
UPDATE sequence_contacts SET held = false
WHERE ctid = ANY (ARRAY (
    SELECT c.ctid FROM sequence_contacts c
    WHERE c.held AND c.sequence_id = $1
      AND c.lead_id NOT IN (SELECT lead_id FROM paused_leads WHERE until > dripline_at($3::bigint))
      AND c.current_trigger <> ALL (ARRAY (SELECT trigger FROM sequence_steps WHERE paused_cause IS NOT NULL))
    LIMIT $2::bigint FOR NO KEY UPDATE SKIP LOCKED));

-- name: held_sequences
-- Sequences with held enrolments; a loose index scan.
WITH RECURSIVE s(id) AS (
    (SELECT sequence_id FROM sequence_contacts WHERE held ORDER BY sequence_id LIMIT 1)
    UNION ALL
    SELECT (SELECT c.sequence_id FROM sequence_contacts c WHERE c.held AND c.sequence_id > s.id
            ORDER BY c.sequence_id LIMIT 1)
    FROM s WHERE s.id IS NOT NULL)
SELECT id FROM s WHERE id IS NOT NULL;

-- name: suppress_waiting
-- Opt-outs whose lead was locked when a gateway told us of them. Where the lead is gone by then, its number is remembered
-- all the same.
WITH free AS MATERIALIZED (
    SELECT o.lead_id, o.at FROM opt_outs o JOIN leads l ON l.id = o.lead_id
    ORDER BY l.id LIMIT $1::bigint FOR NO KEY UPDATE OF l SKIP LOCKED
),
marked AS (
    UPDATE leads l SET opted_out_at = f.at FROM free f WHERE l.id = f.lead_id AND l.opted_out_at IS NULL
),
gone AS MATERIALIZED (
    SELECT o.lead_id, o.at FROM opt_outs o WHERE NOT EXISTS (SELECT FROM leads l WHERE l.id = o.lead_id)
),
remembered AS (
    INSERT INTO suppressed_digests (digest, at)
    SELECT e.digest, g.at FROM gone g JOIN erased_leads e ON e.lead_id = g.lead_id
    UNION
    SELECT dripline_digest(c.contact_phone), g.at FROM gone g CROSS JOIN LATERAL (
        SELECT contact_phone FROM sequence_contacts
        WHERE lead_id = g.lead_id AND status NOT IN ('active', 'in_doubt') AND contact_phone <> '' OFFSET 0) c
    ON CONFLICT DO NOTHING
)
DELETE FROM opt_outs o
WHERE o.lead_id IN (SELECT lead_id FROM free) OR o.lead_id IN (SELECT lead_id FROM gone);

-- name: finish_waiting
-- Last step accepted while the lead's row was locked: completion and trigger removal follow together.
WITH waiting AS MATERIALIZED (
    SELECT DISTINCT ON (c.lead_id) c.ctid AS tid, c.lead_id, c.entry_trigger
    FROM sequence_contacts c WHERE c.status = 'active' AND c.next_trigger_time IS NULL
    ORDER BY c.lead_id, c.id LIMIT $1::bigint
),
lead AS MATERIALIZED (
    SELECT w.tid, w.entry_trigger, l.id AS lead_id FROM waiting w JOIN leads l ON l.id = w.lead_id
    ORDER BY l.id FOR NO KEY UPDATE OF l SKIP LOCKED
),
taken_off AS (
    UPDATE leads l SET trigger = dripline_without(l.trigger, f.entry_trigger)
    FROM lead f WHERE l.id = f.lead_id
)
UPDATE sequence_contacts c SET status = 'completed', finished_at = dripline_at($2::bigint), trigger_kept = false
FROM waiting w
WHERE c.ctid = w.tid AND c.status = 'active' AND c.next_trigger_time IS NULL
  AND (w.tid IN (SELECT tid FROM lead) OR NOT EXISTS (SELECT FROM leads l WHERE l.id = w.lead_id));
