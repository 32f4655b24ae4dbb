-- Failures that an operator tries again.

-- name: failed
-- A page by id: what would become of each. It counts whether the lead entered the sequence anew, whose enrolment goes on.
-- $1 after which, $2 of this sequence, $3 at this step, $4 of this lead, $5 with this in the error, $6 whose last attempt
-- ended so, $7 rows.
SELECT c.id, c.generation, c.current_trigger AS step, c.last_error AS error, CASE
    WHEN EXISTS (SELECT FROM sequence_contacts o WHERE o.lead_id = c.lead_id AND o.sequence_id = c.sequence_id
                 AND o.status IN ('active', 'in_doubt'))
         OR EXISTS (SELECT FROM sequence_contacts o WHERE o.lead_id = c.lead_id AND o.sequence_id = c.sequence_id
                    AND o.status NOT IN ('active', 'in_doubt') AND o.id > c.id) THEN 'entered the sequence anew'
    WHEN l.id IS NULL THEN 'the lead is gone'
    WHEN l.opted_out_at IS NOT NULL OR l.id IN (SELECT lead_id FROM opt_outs) THEN 'opted out'
    WHEN NOT c.trigger_kept
         OR NOT EXISTS (SELECT FROM dripline_tokens(l.trigger) t(token) WHERE t.token = c.entry_trigger)
        THEN 'its trigger was taken off'
    WHEN NOT EXISTS (SELECT FROM sequence_steps s WHERE s.trigger = c.current_trigger) THEN 'its step is gone'
    END AS reason
FROM (
    SELECT * FROM sequence_contacts f
    WHERE f.status = 'failed' AND f.id > $1
      AND ($2::bigint IS NULL OR f.sequence_id = $2) AND ($3::text IS NULL OR f.current_trigger = $3)
      AND ($4::bigint IS NULL OR f.lead_id = $4) AND ($5::text IS NULL OR strpos(lower(f.last_error), lower($5)) > 0)
      AND ($6::text IS NULL OR $6 = (
          SELECT m.outcome FROM message_ledger m
          WHERE m.enrolment_id = f.id AND m.visit = f.visit AND m.generation = f.generation AND m.outcome <> 'accepted'
          ORDER BY m.attempt DESC LIMIT 1))
    ORDER BY f.id LIMIT $7) c
LEFT JOIN leads l ON l.id = c.lead_id
ORDER BY c.id;

-- name: lock_leads
-- Whoever takes a trigger off or opts out comes before or after this, not between; around what somebody holds.
SELECT c.id FROM sequence_contacts c JOIN leads l ON l.id = c.lead_id
WHERE c.id = ANY ($1::bigint[]) ORDER BY l.id FOR NO KEY UPDATE OF l SKIP LOCKED;

-- name: reopen
-- A new life of the visit under a new key, due now. Held: the next pass of the engine lets them into the claim's index, in
-- bounded portions, once their sequence may send.
UPDATE sequence_contacts c
SET status = 'active', generation = c.generation + 1, attempt = 0, retry_count = 0, last_error = NULL, pinned = false,
    resend_text = NULL, resend_media_url = NULL, stop_reason = NULL, finished_at = NULL, trigger_kept = false, held = true,
    next_trigger_time = dripline_now(),
    home_device_id = (SELECT d.id FROM devices d WHERE d.id = c.home_device_id)
WHERE c.id = ANY ($1::bigint[]) AND c.status = 'failed'
RETURNING c.id, c.visit, c.generation;

-- name: wake
SELECT pg_notify('dripline_wake', 'retry');
