-- What a shard reads: its usage at takeover, its leases, and once more what is about to leave.

-- name: load_usage
-- Ledger and leases in one snapshot: every attempt not proved unsent, an unknown one at its latest moment.
SELECT d.number, string_agg(timestamptz_send(u.at), '') AS at
FROM devices d CROSS JOIN LATERAL (
    SELECT CASE WHEN l.outcome = 'in_doubt' THEN l.deadline_at ELSE l.reserved_at END AS at
    FROM message_ledger l
    WHERE l.device_id = d.id AND l.reserved_at > dripline_at($2::bigint)
      AND l.outcome NOT IN ('refused', 'throttled', 'expired', 'credentials', 'not_sent')
    UNION ALL
    SELECT c.lease_deadline_at FROM sequence_contacts c WHERE c.processing_device_id = d.id) u
WHERE d.shard_id = $1
GROUP BY d.number;

-- name: leased_tokens
SELECT DISTINCT c.lease_token AS token FROM devices d
JOIN sequence_contacts c ON c.processing_device_id = d.id
WHERE d.shard_id = $1 AND c.lease_epoch = $2;

-- name: read_lease
-- The rows of one claim as the claim returned them, for a shard the routing call did not reach.
SELECT string_agg(int4send(d.number), '') AS device,
       string_agg(timestamptz_send(c.processing_started_at), '') AS slot,
       string_agg(int8send(c.id), '') AS enrolment,
       string_agg(int8send(c.lead_id), '') AS lead,
       string_agg(int4send(c.visit), '') AS visit,
       string_agg(int4send(c.generation), '') AS generation,
       string_agg(int4send(c.attempt), '') AS attempt,
       string_agg(int4send(c.retry_count), '') AS retries,
       string_agg(timestamptz_send(c.next_trigger_time), '') AS due,
       array_agg(c.contact_phone) AS phone,
       array_agg(c.current_trigger) AS step,
       array_agg(l.name) AS name,
       array_agg(nullif(l.attributes::text, '{}')) AS attributes
FROM devices d
JOIN sequence_contacts c ON c.processing_device_id = d.id
LEFT JOIN leads l ON l.id = c.lead_id
WHERE d.shard_id = $1 AND c.lease_epoch = $2 AND c.lease_token = $3;

-- name: recheck
-- What may not leave after all, and why. Begins after every opt-out and pause that has committed.
SELECT string_agg(int4send((x.n - 1)::integer), '') AS row, array_agg(x.reason) AS reason
FROM (
    SELECT u.n, CASE
        WHEN c.id IS NULL THEN 'gone'
        WHEN l.id IS NULL THEN 'trigger removed'
        WHEN l.opted_out_at IS NOT NULL THEN 'opted out'
        WHEN c.stop_reason IS NOT NULL THEN 'stopped'
        WHEN c.sequence_id = ANY (ARRAY (SELECT id FROM sequences WHERE NOT is_active)) THEN 'paused'
        WHEN c.pinned AND EXISTS (
            SELECT FROM message_ledger m WHERE m.enrolment_id = c.id AND m.visit = c.visit
            AND m.generation = c.generation AND m.outcome = 'in_doubt' AND m.reserved_at < dripline_at($3::bigint))
            THEN 'key forgotten'
        END AS reason
    FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY u(id, token, n)
    LEFT JOIN sequence_contacts c ON c.id = u.id AND c.lease_token = u.token
    LEFT JOIN leads l ON l.id = c.lead_id) x
WHERE x.reason IS NOT NULL;
