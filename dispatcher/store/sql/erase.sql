-- A lead is deleted with all that is personal, wherever it stands; what is counted stays.

-- name: lock_leads
SELECT id FROM leads WHERE phone = ANY ($1::text[]) ORDER BY id FOR UPDATE;

-- name: enrolments_of
-- Those of the leads, and what was enrolled under the numbers by leads that are gone or have another one: reads every
-- enrolment, since no index on the number is kept up for this.
SELECT id, lead_id, contact_phone AS phone FROM sequence_contacts WHERE lead_id = ANY ($1::bigint[])
  AND status IN ('active', 'in_doubt')
UNION
SELECT id, lead_id, contact_phone AS phone FROM sequence_contacts WHERE lead_id = ANY ($1::bigint[])
  AND status NOT IN ('active', 'in_doubt')
UNION
SELECT id, lead_id, contact_phone AS phone FROM sequence_contacts WHERE contact_phone = ANY ($2::text[]);

-- name: remember_erased
INSERT INTO erased_leads (lead_id, digest)
SELECT id, dripline_digest(phone) FROM leads WHERE id = ANY ($1::bigint[])
UNION
SELECT lead_id, dripline_digest(max(contact_phone)) FROM sequence_contacts
WHERE id = ANY ($2::bigint[]) AND contact_phone <> '' AND lead_id <> ALL ($1::bigint[]) GROUP BY lead_id
ON CONFLICT DO NOTHING;

-- name: end_and_wipe
-- What lives ends; what is leased is marked, and ends with the attempt under way. Returns how many lived.
WITH held AS MATERIALIZED (
    SELECT id, status, lease_token IS NULL AS free FROM sequence_contacts
    WHERE id = ANY ($1::bigint[]) ORDER BY id FOR NO KEY UPDATE
),
wiped AS (
    UPDATE sequence_contacts c
    SET status = CASE WHEN h.status <> 'active' OR NOT h.free THEN c.status
                      WHEN c.next_trigger_time IS NULL THEN 'completed' ELSE 'stopped' END,
        finished_at = CASE WHEN h.status = 'active' AND h.free THEN dripline_now() ELSE c.finished_at END,
        stop_reason = CASE WHEN h.status IN ('active', 'in_doubt') AND c.next_trigger_time IS NOT NULL
                           THEN coalesce(c.stop_reason, 'lead deleted') ELSE c.stop_reason END,
        held = false, trigger_kept = false, contact_phone = '', resend_text = NULL, resend_media_url = NULL,
        last_error = NULL
    FROM held h WHERE c.id = h.id
    RETURNING h.status IN ('active', 'in_doubt') AND (c.stop_reason IS NOT NULL) AS lived
)
SELECT count(*) AS enrolments, count(*) FILTER (WHERE lived) AS stopped FROM wiped;

-- name: wipe_ledger
-- What gateways said may hold the number, and so may their names of messages.
WITH accepted AS (
    UPDATE message_ledger SET error = NULL, gateway_message_id = NULL
    WHERE enrolment_id = ANY ($1::bigint[]) AND outcome = 'accepted'
      AND (error IS NOT NULL OR gateway_message_id IS NOT NULL) RETURNING 1
),
others AS (
    UPDATE message_ledger SET error = NULL, gateway_message_id = NULL
    WHERE enrolment_id = ANY ($1::bigint[]) AND outcome <> 'accepted'
      AND (error IS NOT NULL OR gateway_message_id IS NOT NULL) RETURNING 1
)
SELECT (SELECT count(*) FROM accepted) + (SELECT count(*) FROM others);

-- name: forget_replies
WITH gone AS (DELETE FROM replies WHERE phone = ANY ($1::text[]) OR lead_id = ANY ($2::bigint[]) RETURNING phone)
SELECT phone FROM gone;

-- name: forget_number
-- The number leaves the list; that it must not be messaged does not.
WITH listed AS (DELETE FROM suppressions WHERE phone = ANY ($1::text[]) RETURNING phone),
remembered AS (
    INSERT INTO suppressed_digests (digest) SELECT dripline_digest(phone) FROM listed ON CONFLICT DO NOTHING
)
SELECT phone FROM listed;

-- name: delete_leads
DELETE FROM leads WHERE id = ANY ($1::bigint[]) RETURNING phone;

-- name: forget_marks
WITH archived AS (DELETE FROM archived_enrolments WHERE lead_id = ANY ($1::bigint[])),
paused AS (DELETE FROM paused_leads WHERE lead_id = ANY ($1::bigint[]))
DELETE FROM opt_outs WHERE lead_id = ANY ($1::bigint[]);

-- name: left_over
-- Enrolments of erased leads: an attempt or a batch that was under way may have written to them, or made them. After a
-- day nothing does any more, unless an attempt is in doubt: those leads are forgotten, once they have been looked at.
WITH forgotten AS (
    DELETE FROM erased_leads e
    WHERE at < dripline_now() - 24 * dripline_hour()
      AND NOT EXISTS (SELECT FROM sequence_contacts c WHERE c.lead_id = e.lead_id AND c.status IN ('active', 'in_doubt'))
)
SELECT c.id
FROM erased_leads e CROSS JOIN LATERAL (
    SELECT id, contact_phone FROM sequence_contacts
    WHERE lead_id = e.lead_id AND status IN ('active', 'in_doubt')
    UNION ALL
    SELECT id, contact_phone FROM sequence_contacts
    WHERE lead_id = e.lead_id AND status NOT IN ('active', 'in_doubt')) c
WHERE c.contact_phone = '' OR NOT EXISTS (SELECT FROM leads l WHERE l.id = e.lead_id);

-- name: under_way
SELECT id FROM sequence_contacts WHERE id = ANY ($1::bigint[]) AND lease_token IS NOT NULL;

-- name: said
-- Records of hand-overs to these enrolments: reads all that are kept, a day's.
SELECT h.ctid::text AS place, h.bodies FROM handovers h
WHERE EXISTS (SELECT FROM unnest(h.enrolments) e(id) WHERE e.id = ANY ($1::bigint[])) FOR UPDATE;

-- name: unsay
UPDATE handovers SET bodies = $2 WHERE ctid = $1::text::tid;
