-- Leases that ended without an outcome, and enrolments whose device cannot send.

-- name: ended_leases
-- Over time, or of an incarnation that has been superseded: its epoch is nobody's. Only leased rows are read. What was
-- on record as handed over may have left; what was not, surely has not.
SELECT c.id, c.lease_token AS token, c.lease_epoch AS epoch, c.visit, c.generation, c.retry_count AS retries,
       coalesce(substr(e.name, length('shard-') + 1)::integer, -1) AS shard,
       d.gateway_idempotent AS idempotent, dripline_us(c.lease_deadline_at) AS deadline_us,
       e.epoch IS NULL AND EXISTS (
           SELECT FROM handovers h WHERE h.token = c.lease_token AND c.id = ANY (h.enrolments)) AS handed
FROM sequence_contacts c
JOIN devices d ON d.id = c.processing_device_id
LEFT JOIN epochs e ON e.epoch = c.lease_epoch
WHERE c.processing_device_id IS NOT NULL
  AND (c.processing_started_at < dripline_at($1::bigint) OR e.epoch IS NULL)
LIMIT $2::bigint;

-- name: handed_since
-- Of these leases, those whose hand-over is on record: whatever was said of them before, they may have left.
SELECT u.id FROM unnest($1::bigint[], $2::bigint[]) u(id, token)
WHERE EXISTS (SELECT FROM handovers h WHERE h.token = u.token AND u.id = ANY (h.enrolments));

-- name: handed_bodies
SELECT bodies FROM handovers WHERE token = ANY ($1::bigint[]) ORDER BY handed_at;

-- name: misplaced
-- Waiting enrolments of devices that are left, and those without a device: never pinned ones, never strict senders.
SELECT c.id
FROM unnest($1::uuid[]) d(id)
CROSS JOIN LATERAL (
    SELECT w.id FROM sequence_contacts w
    WHERE w.home_device_id = d.id AND w.status = 'active' AND NOT w.held AND NOT w.pinned
      AND w.processing_device_id IS NULL
      AND w.sequence_id = ANY (ARRAY (SELECT s.id FROM sequences s WHERE s.sender_policy <> 'strict'))
    LIMIT $2::bigint) c
UNION ALL
(SELECT id FROM sequence_contacts
 WHERE home_device_id IS NULL AND status = 'active' AND NOT held AND processing_device_id IS NULL LIMIT $2::bigint)
LIMIT $2::bigint;

-- name: rehome
UPDATE sequence_contacts c SET home_device_id = r.device_id
FROM unnest($1::bigint[], $2::uuid[]) r(id, device_id) JOIN devices d ON d.id = r.device_id
WHERE c.id = r.id AND c.status = 'active' AND NOT c.pinned AND c.processing_device_id IS NULL;
