-- Leases that ended without an outcome, and enrolments whose device cannot send.

-- name: ended_leases
-- Over time, or of an incarnation that has been superseded. Only leased rows are read.
SELECT c.id, c.lease_token AS token, c.lease_epoch AS epoch, c.visit, c.generation, c.retry_count AS retries,
       d.shard_id AS shard, d.gateway_idempotent AS idempotent, dripline_us(c.lease_deadline_at) AS deadline_us,
       e.epoch IS DISTINCT FROM c.lease_epoch AS superseded
FROM sequence_contacts c
JOIN devices d ON d.id = c.processing_device_id
LEFT JOIN epochs e ON e.name = 'shard-' || d.shard_id
WHERE c.processing_device_id IS NOT NULL
  AND (c.processing_started_at < dripline_at($1::bigint) OR e.epoch IS DISTINCT FROM c.lease_epoch)
LIMIT $2::bigint;

-- name: misplaced
-- Waiting enrolments without a device, or on one that cannot send and may be left: never pinned ones, never strict
-- senders, and never because of a quality signal.
SELECT c.id
FROM devices d JOIN sequence_contacts c ON c.home_device_id = d.id
JOIN sequences s ON s.id = c.sequence_id
WHERE (d.health IN ('draining', 'offline') OR (d.health = 'quarantined' AND d.health_cause IS DISTINCT FROM 'quality'))
  AND c.status = 'active' AND NOT c.held AND NOT c.pinned AND c.processing_device_id IS NULL
  AND s.sender_policy <> 'strict'
UNION ALL
SELECT c.id FROM sequence_contacts c WHERE c.home_device_id IS NULL AND c.status = 'active' AND NOT c.held
LIMIT $1::bigint;

-- name: rehome
UPDATE sequence_contacts c SET home_device_id = r.device_id
FROM unnest($1::bigint[], $2::uuid[]) r(id, device_id)
WHERE c.id = r.id AND c.status = 'active' AND NOT c.pinned AND c.processing_device_id IS NULL;
