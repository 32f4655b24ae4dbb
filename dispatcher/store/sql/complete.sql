-- The end of an attempt: ledger and progress in one transaction. Every statement is a compare-and-set on the lease
-- token, except that an acceptance counts as long as the visit is still that attempt's, whatever the token.

-- name: advance
-- Accepted, more steps. What the row forgets with its lease comes with the call; what it keeps, from the row.
WITH moved AS (
    UPDATE sequence_contacts c
    SET visit = c.visit + 1, attempt = 0, retry_count = 0, last_error = NULL, pinned = false,
        resend_text = NULL, resend_media_url = NULL,
        current_trigger = a.next_trigger, next_trigger_time = dripline_at(a.next_due),
        processing_device_id = NULL, processing_started_at = NULL, lease_deadline_at = NULL, lease_token = NULL,
        lease_epoch = NULL,
        status = CASE WHEN c.stop_reason IS NULL THEN 'active' ELSE 'stopped' END,
        finished_at = CASE WHEN c.stop_reason IS NOT NULL THEN dripline_at(a.at) END
    FROM unnest($1::dripline_int8s, $2::dripline_int8s, $3::dripline_int8s, $4::dripline_texts, $5::dripline_texts,
                $6::dripline_uuids, $7::dripline_int4s, $8::dripline_int8s, $9::dripline_int8s, $10::dripline_texts,
                $13::dripline_texts, $14::dripline_int8s)
         a(id, token, at, outcome, message_id, key, attempt, slot, due, step, next_trigger, next_due)
    WHERE c.id = a.id AND c.lease_token = a.token
    RETURNING c.id, c.sequence_id, c.lead_id, c.home_device_id, c.visit - 1 AS visit, c.generation, a.at, a.outcome,
              a.message_id, a.key, a.attempt, a.slot, a.due, a.step
),
written AS (
    INSERT INTO message_ledger (enrolment_id, sequence_id, lead_id, shard_epoch, due_at, reserved_at, deadline_at,
        accepted_at, device_id, idempotency_key, visit, generation, attempt, outcome, step_trigger, gateway_message_id)
    SELECT id, sequence_id, lead_id, $11::bigint, dripline_at(due), dripline_at(slot), dripline_at(slot + $12::bigint),
        dripline_at(at), home_device_id, key, visit, generation, attempt, outcome, step, message_id FROM moved
)
SELECT count(*) FROM moved;

-- name: finish
-- Accepted, last step: completed, and the entry trigger comes off the lead, together. A lead at most once a call.
-- Lead rows are locked in the order of the call and skipped where somebody holds them: finish_later takes those.
-- The lead is found by id again: it may have changed between this statement's snapshot and its lock, and the ctid of a
-- version younger than the snapshot finds nothing.
WITH accepted AS MATERIALIZED (
    SELECT a.*
    FROM unnest($1::dripline_int8s, $2::dripline_int8s, $3::dripline_int8s, $4::dripline_texts, $5::dripline_texts,
                $6::dripline_uuids, $7::dripline_int4s, $8::dripline_int8s, $9::dripline_int8s, $10::dripline_texts,
                $13::dripline_int8s)
         a(id, token, at, outcome, message_id, key, attempt, slot, due, step, lead)
    JOIN leads l ON l.id = a.lead
    FOR NO KEY UPDATE OF l SKIP LOCKED
),
moved AS (
    UPDATE sequence_contacts c
    SET visit = c.visit + 1, attempt = 0, retry_count = 0, last_error = NULL, pinned = false,
        resend_text = NULL, resend_media_url = NULL,
        processing_device_id = NULL, processing_started_at = NULL, lease_deadline_at = NULL, lease_token = NULL,
        lease_epoch = NULL, next_trigger_time = NULL, status = 'completed', finished_at = dripline_at(a.at),
        trigger_kept = false
    FROM accepted a WHERE c.id = a.id AND c.lease_token = a.token
    RETURNING c.id, c.sequence_id, c.lead_id, c.home_device_id, c.visit - 1 AS visit, c.generation, c.entry_trigger,
              a.at, a.outcome, a.message_id, a.key, a.attempt, a.slot, a.due, a.step
),
written AS (
    INSERT INTO message_ledger (enrolment_id, sequence_id, lead_id, shard_epoch, due_at, reserved_at, deadline_at,
        accepted_at, device_id, idempotency_key, visit, generation, attempt, outcome, step_trigger, gateway_message_id)
    SELECT id, sequence_id, lead_id, $11::bigint, dripline_at(due), dripline_at(slot), dripline_at(slot + $12::bigint),
        dripline_at(at), home_device_id, key, visit, generation, attempt, outcome, step, message_id FROM moved
),
taken_off AS (
    UPDATE leads l
    SET trigger = CASE WHEN l.trigger <> m.entry_trigger THEN dripline_without(l.trigger, m.entry_trigger) END
    FROM moved m WHERE l.id = m.lead_id
)
SELECT count(*) FROM moved;

-- name: finish_later
-- As finish, but the lead's row is locked (or gone): the lease ends now, completion follows in a later pass.
WITH moved AS (
    UPDATE sequence_contacts c
    SET visit = c.visit + 1, attempt = 0, retry_count = 0, last_error = NULL, pinned = false,
        resend_text = NULL, resend_media_url = NULL,
        processing_device_id = NULL, processing_started_at = NULL, lease_deadline_at = NULL, lease_token = NULL,
        lease_epoch = NULL, next_trigger_time = NULL
    FROM unnest($1::dripline_int8s, $2::dripline_int8s, $3::dripline_int8s, $4::dripline_texts, $5::dripline_texts,
                $6::dripline_uuids, $7::dripline_int4s, $8::dripline_int8s, $9::dripline_int8s, $10::dripline_texts)
         a(id, token, at, outcome, message_id, key, attempt, slot, due, step)
    WHERE c.id = a.id AND c.lease_token = a.token
    RETURNING c.id, c.sequence_id, c.lead_id, c.home_device_id, c.visit - 1 AS visit, c.generation, a.at, a.outcome,
              a.message_id, a.key, a.attempt, a.slot, a.due, a.step
),
written AS (
    INSERT INTO message_ledger (enrolment_id, sequence_id, lead_id, shard_epoch, due_at, reserved_at, deadline_at,
        accepted_at, device_id, idempotency_key, visit, generation, attempt, outcome, step_trigger, gateway_message_id)
    SELECT id, sequence_id, lead_id, $11::bigint, dripline_at(due), dripline_at(slot), dripline_at(slot + $12::bigint),
        dripline_at(at), home_device_id, key, visit, generation, attempt, outcome, step, message_id FROM moved
)
SELECT count(*) FROM moved;

-- name: end_attempts
-- Every other outcome. next: waiting | failed | stopped | in_doubt. A reason to stop that came meanwhile follows; but
-- while an attempt of the visit is unknown, what would fail or stop the enrolment leaves it in doubt. Returns how many
-- ended, and the leads whose gateway says that they do not want messages.
WITH ended AS MATERIALIZED (
    SELECT c.id, c.sequence_id, c.lead_id, c.lease_epoch, c.next_trigger_time, c.processing_started_at,
           c.lease_deadline_at, c.home_device_id, c.visit, c.generation, c.attempt, c.current_trigger,
           e.outcome, e.error, e.key, e.counted, dripline_at(e.due) AS due, c.pinned OR e.pinned AS pinned,
           coalesce(c.resend_text, e.text) AS text,
           CASE WHEN c.resend_text IS NULL THEN e.media_url ELSE c.resend_media_url END AS media_url,
           CASE WHEN e.next = 'stopped' THEN coalesce(c.stop_reason, 'opted out') ELSE c.stop_reason END AS stop_reason,
           CASE WHEN (c.pinned OR e.pinned) AND (e.next IN ('failed', 'stopped') OR c.stop_reason IS NOT NULL) THEN 'in_doubt'
                WHEN e.next = 'waiting' AND c.stop_reason IS NOT NULL THEN 'stopped'
                WHEN e.next = 'waiting' THEN 'active'
                ELSE e.next END AS status
    FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::uuid[], $6::text[], $7::integer[], $8::bigint[],
                $9::boolean[], $11::text[], $12::text[])
         e(id, token, outcome, error, key, next, counted, due, pinned, text, media_url)
    JOIN sequence_contacts c ON c.id = e.id AND c.lease_token = e.token
    FOR NO KEY UPDATE OF c
),
written AS (
    INSERT INTO message_ledger (enrolment_id, sequence_id, lead_id, shard_epoch, due_at, reserved_at, deadline_at,
        device_id, idempotency_key, visit, generation, attempt, outcome, step_trigger, error)
    SELECT id, sequence_id, lead_id, lease_epoch, next_trigger_time, processing_started_at, lease_deadline_at,
        home_device_id, key, visit, generation, attempt, outcome, current_trigger, error FROM ended
),
moved AS (
    UPDATE sequence_contacts c
    SET retry_count = c.retry_count + e.counted, last_error = e.error, next_trigger_time = e.due, pinned = e.pinned,
        resend_text = e.text, resend_media_url = e.media_url,
        processing_device_id = NULL, processing_started_at = NULL, lease_deadline_at = NULL, lease_token = NULL,
        lease_epoch = NULL, status = e.status, stop_reason = e.stop_reason,
        finished_at = CASE WHEN e.status IN ('failed', 'stopped') THEN dripline_at($10::bigint) END,
        trigger_kept = c.trigger_kept
                       OR e.status IN ('failed', 'stopped') AND e.stop_reason IS DISTINCT FROM 'trigger removed'
    FROM ended e WHERE c.id = e.id
)
SELECT count(*) AS ended, array_agg(lead_id) FILTER (WHERE outcome = 'opted_out') AS opted_out FROM ended;

-- name: quarantine
-- The gateway does not take messages from these devices, and says why: nothing more goes there until somebody has seen
-- to it.
UPDATE devices SET health = 'quarantined', health_cause = $2 WHERE number = ANY ($1::integer[]) AND health = 'available';

-- name: pause_steps
-- What these steps say is refused: whoever stands at one waits, until somebody has seen to it.
UPDATE sequence_steps s SET paused_cause = t.cause, paused_since = dripline_at($3::bigint)
FROM (SELECT DISTINCT ON (step) step, cause FROM unnest($1::text[], $2::text[]) u(step, cause)) t
WHERE s.trigger = t.step AND s.paused_cause IS NULL;

-- name: set_breakers
-- Quarantined because of failures until a message has got through. What somebody else has said of a device stands.
UPDATE devices d
SET health = CASE WHEN b.trips > 0 THEN 'quarantined' ELSE 'available' END,
    health_cause = CASE WHEN b.trips > 0 THEN 'failures' END,
    breaker_trips = b.trips, probe_at = CASE WHEN b.trips > 0 THEN dripline_at(b.probe) END
FROM unnest($1::integer[], $2::integer[], $3::bigint[]) b(number, trips, probe)
WHERE d.number = b.number
  AND (d.health = 'available' AND b.trips > 0 OR d.health = 'quarantined' AND d.health_cause = 'failures');

-- name: give_back
-- Surely not handed over: waiting again, the attempt undone; an enrolment marked for its end ends here. One whose
-- earlier attempt is in doubt, under a key that gateways have forgotten by now, is in doubt for good. What waits for a
-- paused lead, or at a paused step, leaves the claim's way.
UPDATE sequence_contacts c
SET attempt = c.attempt - 1,
    held = NOT g.forgotten AND coalesce(c.stop_reason, g.stop) IS NULL
           AND (g.aside OR c.lead_id IN (SELECT lead_id FROM paused_leads WHERE until > dripline_at($5::bigint))),
    next_trigger_time = greatest(c.next_trigger_time, dripline_at(g.due)),
    processing_device_id = NULL, processing_started_at = NULL, lease_deadline_at = NULL, lease_token = NULL,
    lease_epoch = NULL,
    status = CASE WHEN g.forgotten THEN 'in_doubt'
                  WHEN coalesce(c.stop_reason, g.stop) IS NULL THEN 'active' ELSE 'stopped' END,
    stop_reason = coalesce(c.stop_reason, g.stop),
    finished_at = CASE WHEN coalesce(c.stop_reason, g.stop) IS NOT NULL THEN dripline_at($5::bigint) END,
    trigger_kept = c.trigger_kept OR coalesce(coalesce(c.stop_reason, g.stop) <> 'trigger removed', false)
FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[], $6::boolean[], $7::boolean[])
     g(id, token, due, stop, forgotten, aside)
WHERE c.id = g.id AND c.lease_token = g.token;

-- name: credit_doubt
-- "Accepted before": the earliest attempt in doubt counts as the one; whether later ones arrived as repetitions
-- stays unknown. The attempt that got this answer is not its own predecessor, and a visit that has its accepted attempt
-- (a commit whose answer was lost is repeated) gets no second one. Returns the visits it is now known for.
WITH first AS (
    SELECT l.enrolment_id, l.visit, l.generation, min(l.attempt) AS attempt, v.at, v.message_id
    FROM unnest($1::bigint[], $2::integer[], $3::integer[], $4::bigint[], $5::text[], $6::integer[])
         v(enrolment_id, visit, generation, at, message_id, attempt)
    JOIN message_ledger l ON l.enrolment_id = v.enrolment_id AND l.visit = v.visit AND l.generation = v.generation
                         AND l.attempt < v.attempt AND l.outcome = 'in_doubt'
    WHERE NOT EXISTS (SELECT FROM message_ledger a WHERE a.enrolment_id = v.enrolment_id AND a.visit = v.visit
                      AND a.generation = v.generation AND a.outcome = 'accepted')
    GROUP BY 1, 2, 3, 5, 6
)
UPDATE message_ledger l
SET outcome = 'accepted', accepted_at = dripline_at(f.at), gateway_message_id = f.message_id
FROM first f
WHERE l.enrolment_id = f.enrolment_id AND l.visit = f.visit AND l.generation = f.generation
  AND l.attempt = f.attempt AND l.outcome = 'in_doubt'
RETURNING l.enrolment_id, l.visit, l.generation;

-- name: clear_doubt
-- A fresh acceptance under a key that gateways remember: the attempts in doubt before it never arrived.
UPDATE message_ledger l SET outcome = 'not_sent'
FROM unnest($1::bigint[], $2::integer[], $3::integer[], $4::integer[]) v(enrolment_id, visit, generation, attempt)
WHERE l.enrolment_id = v.enrolment_id AND l.visit = v.visit AND l.generation = v.generation
  AND l.attempt < v.attempt AND l.outcome = 'in_doubt';

-- name: known_attempts
-- Which of these attempts the ledger has an end for already (a commit whose answer was lost).
SELECT v.n - 1 AS row, l.outcome
FROM unnest($1::bigint[], $2::integer[], $3::integer[], $4::integer[]) WITH ORDINALITY
     v(enrolment_id, visit, generation, attempt, n)
CROSS JOIN LATERAL (
    SELECT outcome FROM message_ledger l
    WHERE l.enrolment_id = v.enrolment_id AND l.visit = v.visit AND l.generation = v.generation
      AND l.attempt = v.attempt AND l.outcome = 'accepted'
    UNION ALL
    SELECT outcome FROM message_ledger l
    WHERE l.enrolment_id = v.enrolment_id AND l.visit = v.visit AND l.generation = v.generation
      AND l.attempt = v.attempt AND l.outcome <> 'accepted') l;

-- name: accepted_visits
-- Which of these visits have an accepted attempt.
SELECT v.n - 1 AS row
FROM unnest($1::bigint[], $2::integer[], $3::integer[]) WITH ORDINALITY v(enrolment_id, visit, generation, n)
WHERE EXISTS (SELECT FROM message_ledger l WHERE l.enrolment_id = v.enrolment_id AND l.visit = v.visit
              AND l.generation = v.generation AND l.outcome = 'accepted');

-- name: learn
-- What was in doubt became known.
UPDATE message_ledger l
SET outcome = k.outcome, accepted_at = CASE WHEN k.outcome IN ('accepted', 'repeat') THEN dripline_at(k.at) END,
    gateway_message_id = k.message_id, error = k.error
FROM unnest($1::bigint[], $2::integer[], $3::integer[], $4::integer[], $5::text[], $6::bigint[], $7::text[], $8::text[])
     k(enrolment_id, visit, generation, attempt, outcome, at, message_id, error)
WHERE l.enrolment_id = k.enrolment_id AND l.visit = k.visit AND l.generation = k.generation
  AND l.attempt = k.attempt AND l.outcome = 'in_doubt';

-- name: record
-- An attempt whose lease had already ended, from the shard's own memory.
INSERT INTO message_ledger (enrolment_id, sequence_id, lead_id, shard_epoch, due_at, reserved_at, deadline_at,
    accepted_at, device_id, idempotency_key, visit, generation, attempt, outcome, step_trigger, gateway_message_id, error)
SELECT r.enrolment_id, c.sequence_id, c.lead_id, $14::bigint, dripline_at(r.due), dripline_at(r.slot),
       dripline_at(r.slot + $15::bigint), CASE WHEN r.outcome IN ('accepted', 'repeat') THEN dripline_at(r.at) END,
       d.id, r.key, r.visit, r.generation, r.attempt, r.outcome, r.step, r.message_id, r.error
FROM unnest($1::bigint[], $2::integer[], $3::integer[], $4::integer[], $5::text[], $6::bigint[], $7::text[], $8::text[],
            $9::integer[], $10::bigint[], $11::bigint[], $12::uuid[], $13::text[])
     r(enrolment_id, visit, generation, attempt, outcome, at, message_id, error, device, slot, due, key, step)
JOIN sequence_contacts c ON c.id = r.enrolment_id
JOIN devices d ON d.number = r.device
ON CONFLICT DO NOTHING;

-- name: release_doubt
-- The last unknown attempt of a visit turned out unsent: waiting again, from any device - or failed or stopped, if that
-- is what it turned out to be. A resend under way is left to its own end.
UPDATE sequence_contacts c
SET pinned = false, resend_text = NULL, resend_media_url = NULL,
    status = r.status, stop_reason = r.stop_reason, last_error = coalesce(r.error, c.last_error),
    finished_at = CASE WHEN r.status IN ('failed', 'stopped') THEN dripline_at(r.at) END,
    trigger_kept = c.trigger_kept
                   OR r.status IN ('failed', 'stopped') AND r.stop_reason IS DISTINCT FROM 'trigger removed'
FROM (
    SELECT c.id, v.at, v.error,
           CASE WHEN c.lease_token IS NOT NULL THEN c.status
                WHEN v.next = 'stopped' OR v.next = 'waiting' AND c.stop_reason IS NOT NULL THEN 'stopped'
                WHEN v.next = 'failed' THEN 'failed'
                ELSE 'active' END AS status,
           CASE WHEN v.next = 'stopped' THEN coalesce(c.stop_reason, 'opted out') ELSE c.stop_reason END AS stop_reason
    FROM unnest($1::bigint[], $2::integer[], $3::integer[], $4::text[], $5::text[], $6::bigint[])
         v(id, visit, generation, next, error, at)
    JOIN sequence_contacts c ON c.id = v.id AND c.visit = v.visit AND c.generation = v.generation
    WHERE (c.status = 'in_doubt' OR c.status = 'active' AND c.pinned)
      AND NOT EXISTS (SELECT FROM message_ledger l WHERE l.enrolment_id = v.id AND l.visit = v.visit
                      AND l.generation = v.generation AND l.outcome = 'in_doubt')) r
WHERE c.id = r.id;

-- name: suppress
-- The gateway says that these recipients do not want messages.
SELECT dripline_opt_out($1::bigint[], $2::bigint[]);

-- name: lock_enrolments
-- One at a time decides which attempt of a visit was the accepted one.
SELECT count(*) FROM (
    SELECT FROM sequence_contacts WHERE id = ANY ($1::bigint[]) ORDER BY id FOR NO KEY UPDATE) l;

-- name: advance_late
-- Accepted after the lease had ended: the row moves on if the visit is still that attempt's. What had failed by then
-- comes back to life, unless the lead has entered the sequence anew.
UPDATE sequence_contacts c
SET visit = c.visit + 1, attempt = 0, retry_count = 0, last_error = NULL, pinned = false,
        resend_text = NULL, resend_media_url = NULL, held = false,
    home_device_id = (SELECT d.id FROM devices d WHERE d.id = c.home_device_id),
    current_trigger = coalesce(a.next_trigger, c.current_trigger), next_trigger_time = dripline_at(a.due),
    processing_device_id = NULL, processing_started_at = NULL, lease_deadline_at = NULL, lease_token = NULL,
    lease_epoch = NULL,
    status = CASE WHEN c.stop_reason IS NOT NULL AND a.next_trigger IS NOT NULL THEN 'stopped' ELSE 'active' END,
    finished_at = CASE WHEN c.stop_reason IS NOT NULL AND a.next_trigger IS NOT NULL THEN dripline_at(a.at) END,
    trigger_kept = c.trigger_kept AND c.stop_reason IS NOT NULL AND a.next_trigger IS NOT NULL
FROM unnest($1::bigint[], $2::integer[], $3::integer[], $4::bigint[], $5::text[], $6::bigint[])
     a(id, visit, generation, at, next_trigger, due)
WHERE c.id = a.id AND c.visit = a.visit AND c.generation = a.generation AND c.next_trigger_time IS NOT NULL
  AND (c.status IN ('active', 'in_doubt')
       OR c.status = 'failed' AND NOT EXISTS (
           SELECT FROM sequence_contacts o WHERE o.lead_id = c.lead_id AND o.sequence_id = c.sequence_id
           AND o.status IN ('active', 'in_doubt')));

-- name: close_claims
-- Claims all of whose enrolments ended in this transaction; where some ended before, the rescue forgets the claim.
DELETE FROM claims k USING unnest($1::bigint[], $2::bigint[]) e(token, ended)
WHERE k.token = e.token AND cardinality(k.enrolments) = e.ended;
