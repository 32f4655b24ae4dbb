-- What gateways tell after a message has left, and what that means for attempts in doubt.

-- name: take_receipts
-- Only forward: of every kind the earliest moment counts - of not_sent the latest - in whatever order they come. By name,
-- so that two requests do not wait for each other. core.receipts merges by the same rules.
INSERT INTO message_receipts AS r
    (message, accepted_at, delivered_at, read_at, failed_at, not_sent_at, error, gateway_message_id)
SELECT message, dripline_at(accepted), dripline_at(delivered), dripline_at(read), dripline_at(failed),
       dripline_at(not_sent), error, message_id
FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::text[], $8::text[])
     t(message, accepted, delivered, read, failed, not_sent, error, message_id)
ORDER BY message
ON CONFLICT (message) DO UPDATE
SET accepted_at = least(r.accepted_at, excluded.accepted_at),
    delivered_at = least(r.delivered_at, excluded.delivered_at),
    read_at = least(r.read_at, excluded.read_at),
    error = CASE WHEN r.failed_at IS NULL OR excluded.failed_at < r.failed_at THEN excluded.error
                 WHEN excluded.failed_at = r.failed_at THEN least(r.error, excluded.error)
                 ELSE r.error END,
    failed_at = least(r.failed_at, excluded.failed_at),
    not_sent_at = greatest(r.not_sent_at, excluded.not_sent_at),
    gateway_message_id = least(r.gateway_message_id, excluded.gateway_message_id);

-- name: take_replies
INSERT INTO replies (phone, text, received_at, gateway_message_id, device_id)
SELECT phone, text, dripline_at(at), message_id, device_id
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::uuid[]) t(phone, text, at, message_id, device_id)
ORDER BY message_id
ON CONFLICT DO NOTHING;

-- name: leads_opting_out
-- An opt-in that was given since then stands: an old event that is told again takes nothing back.
SELECT l.id, t.at FROM unnest($1::text[], $2::bigint[]) t(phone, at) JOIN leads l ON l.phone = t.phone
WHERE l.opted_in_at IS NULL OR l.opted_in_at <= dripline_at(t.at);

-- name: doubtful
-- A page of enrolments with an attempt in doubt, by id. $1 after which, $2 rows.
SELECT id, visit, generation, attempt FROM sequence_contacts
WHERE (status = 'in_doubt' OR status = 'active' AND pinned) AND id > $1
ORDER BY id LIMIT $2::bigint;

-- name: told_of
-- Of these enrolments in doubt, those of which a receipt says what became of them. Whoever has a message got it, whatever
-- else was said. That it was not sent is said of what had come by then: of the only attempt at any time, of the last of
-- several once it cannot arrive any more. $1 enrolments, $2 their keys, $3 their attempts, $4 seconds of skew.
SELECT d.id, r.gateway_message_id AS message_id, dripline_us(h.at) AS at_us
FROM unnest($1::bigint[], $2::text[], $3::integer[]) d(id, key, attempt)
JOIN message_receipts r ON r.message = d.key
CROSS JOIN LATERAL (SELECT least(r.accepted_at, r.delivered_at, r.read_at) AS at) h
WHERE h.at IS NOT NULL
   OR r.not_sent_at IS NOT NULL AND (d.attempt = 1 OR r.not_sent_at > $4::double precision * interval '1 second' + (
          SELECT max(l.deadline_at) FROM sequence_contacts c
          JOIN message_ledger l ON l.enrolment_id = c.id AND l.visit = c.visit AND l.generation = c.generation
                               AND l.outcome = 'in_doubt'
          WHERE c.id = d.id));

-- name: answers
SELECT true AS alive;
