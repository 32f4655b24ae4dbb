-- Leases that ended without an outcome, and enrolments whose device cannot send.

-- name: ended_leases
-- Over time, or of an incarnation that has been superseded: its epoch is nobody's. Only leased rows are read. What was
-- on record as handed over may have left; what was not, surely has not. Claims that have ended are forgotten in passing.
WITH forgotten AS (
    DELETE FROM claims k
    WHERE (k.claimed_at < clock_timestamp() - interval '10 seconds'
           OR NOT EXISTS (SELECT FROM epochs e WHERE e.epoch = k.shard_epoch))
      AND NOT EXISTS (SELECT FROM leases l WHERE l.token = k.token)
)
SELECT l.enrolment_id AS id, l.token, l.shard_epoch AS epoch, l.visit, l.generation, l.retry_count AS retries,
       coalesce(substr(e.name, length('shard-') + 1)::integer, -1) AS shard,
       d.gateway_idempotent AS idempotent, dripline_us(l.deadline_at) AS deadline_us,
       e.epoch IS NULL AND EXISTS (
           SELECT FROM handovers h WHERE h.token = l.token AND l.enrolment_id = ANY (h.enrolments)) AS handed
FROM leases l
JOIN devices d ON d.id = l.device_id
LEFT JOIN epochs e ON e.epoch = l.shard_epoch
WHERE l.slot_at < dripline_at($1::bigint) OR e.epoch IS NULL
LIMIT $2::bigint;

-- name: handed_since
-- Of these leases, those whose hand-over is on record: whatever was said of them before, they may have left.
SELECT u.id FROM unnest($1::bigint[], $2::bigint[]) u(id, token)
WHERE EXISTS (SELECT FROM handovers h WHERE h.token = u.token AND u.id = ANY (h.enrolments));

-- name: handed_bodies
SELECT bodies FROM handovers WHERE token = ANY ($1::bigint[]) ORDER BY handed_at;

-- name: misplaced
-- Waiting enrolments of devices that are left, and those without a device: never pinned ones, never strict senders. In
-- an order that does not depend on where rows lie: it decides who goes where.
SELECT c.id
FROM unnest($1::uuid[]) d(id)
CROSS JOIN LATERAL (
    SELECT w.id FROM sequence_contacts w
    WHERE w.home_device_id = d.id AND w.status = 'active' AND NOT w.held AND NOT w.pinned
      AND w.lease_token IS NULL
      AND w.sequence_id = ANY (ARRAY (SELECT s.id FROM sequences s WHERE s.sender_policy <> 'strict'))
    ORDER BY w.next_trigger_time, w.id LIMIT $2::bigint) c
UNION ALL
(SELECT id FROM sequence_contacts
 WHERE home_device_id IS NULL AND status = 'active' AND NOT held AND lease_token IS NULL
 ORDER BY next_trigger_time, id LIMIT $2::bigint)
LIMIT $2::bigint;

-- name: rehome
UPDATE sequence_contacts c SET home_device_id = r.device_id
FROM unnest($1::bigint[], $2::uuid[]) r(id, device_id) JOIN devices d ON d.id = r.device_id
WHERE c.id = r.id AND c.status = 'active' AND NOT c.pinned AND c.lease_token IS NULL;
