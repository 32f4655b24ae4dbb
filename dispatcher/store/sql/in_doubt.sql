-- Attempts in doubt, and an operator's word about them.

-- name: in_doubt
-- A page by id. $1 after which, $2 of these only, $3 of this sequence, $4 hours since the last hand-over, $5 rows.
SELECT i.id, i.contact_phone AS phone, s.name AS sequence, i.current_trigger AS step, d.name AS device, i.handed_at,
       i.tries, i.text, i.why, i.state
FROM enrolments_in_doubt i
LEFT JOIN sequences s ON s.id = i.sequence_id
LEFT JOIN devices d ON d.id = i.device_id
WHERE i.id > $1 AND ($2::bigint[] IS NULL OR i.id = ANY ($2::bigint[]))
  AND ($3::bigint IS NULL OR i.sequence_id = $3)
  AND ($4::double precision IS NULL OR i.handed_at < dripline_now() - $4::double precision * dripline_hour())
ORDER BY i.id LIMIT $5;

-- name: count_in_doubt
SELECT count(*) AS found, count(*) FILTER (WHERE i.state = 'under way') AS under_way
FROM enrolments_in_doubt i
WHERE ($1::bigint[] IS NULL OR i.id = ANY ($1::bigint[]))
  AND ($2::bigint IS NULL OR i.sequence_id = $2)
  AND ($3::double precision IS NULL OR i.handed_at < dripline_now() - $3::double precision * dripline_hour());

-- name: lock_in_doubt
-- Those of a page whose end can be written now: a resend that is leased, or about to be, is left to its own end.
SELECT c.id FROM sequence_contacts c
WHERE c.id = ANY ($1::bigint[]) AND (c.status = 'in_doubt' OR c.status = 'active' AND c.pinned)
  AND c.lease_token IS NULL
ORDER BY c.id FOR NO KEY UPDATE SKIP LOCKED;

-- name: unknown_attempts
SELECT c.id AS enrolment, c.lead_id AS lead, l.visit, l.generation, l.attempt, coalesce(d.number, 0) AS device,
       dripline_us(l.reserved_at) AS slot_us, dripline_us(l.deadline_at) AS deadline_us,
       dripline_us(l.due_at) AS due_us, l.step_trigger AS step,
       l.idempotency_key AS key, l.error, (SELECT time_zone FROM leads WHERE id = c.lead_id) AS time_zone
FROM sequence_contacts c
JOIN message_ledger l ON l.enrolment_id = c.id AND l.visit = c.visit AND l.generation = c.generation
                     AND l.outcome = 'in_doubt'
LEFT JOIN devices d ON d.id = l.device_id
WHERE c.id = ANY ($1::bigint[])
ORDER BY c.id, l.attempt;

-- name: clock
SELECT dripline_us(dripline_now()) AS now_us, (extract(epoch FROM dripline_hour()) * 1000000)::bigint AS hour_us;

-- name: log
INSERT INTO operator_log (actor, action, subject, detail)
SELECT $1, $2, e.subject, e.detail::jsonb FROM unnest($3::text[], $4::text[]) e(subject, detail);
