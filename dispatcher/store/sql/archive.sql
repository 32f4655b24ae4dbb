-- Retention: finished enrolments and old days of the ledger leave the database for files.

-- name: one_archive
SELECT pg_try_advisory_lock(hashtextextended('dripline archive', 0));

-- name: end_archive
SELECT pg_advisory_unlock(hashtextextended('dripline archive', 0));

-- name: unpublished
SELECT id, directory, name FROM archive_files WHERE NOT published ORDER BY id;

-- name: publish
UPDATE archive_files SET published = true WHERE id = $1;

-- name: next_name
SELECT format('enrolments_%s.parquet', lpad((count(*) + 1)::text, 6, '0')) FROM archive_files WHERE kind = 'enrolments';

-- name: record_file
INSERT INTO archive_files (kind, directory, name, rows, first_at, last_at) VALUES ($1, $2, $3, $4, $5, $6) RETURNING id;

-- name: finished
-- A batch by id of what has finished before $2. What its lead still carries the trigger of stays: the mark keeps it from
-- entering again.
SELECT c.id AS enrolment_id, c.lead_id, c.sequence_id, s.name AS sequence, c.entry_trigger, c.current_trigger AS step,
       c.status, c.stop_reason, c.enrolled_at, c.finished_at, c.visit, c.generation, c.home_device_id::text
FROM sequence_contacts c LEFT JOIN sequences s ON s.id = c.sequence_id
WHERE c.id > $1 AND c.status NOT IN ('active', 'in_doubt') AND c.finished_at < $2
  AND NOT (c.trigger_kept AND EXISTS (SELECT FROM leads l WHERE l.id = c.lead_id))
ORDER BY c.id LIMIT $3 FOR UPDATE OF c SKIP LOCKED;

-- name: forget_finished
WITH gone AS (
    DELETE FROM sequence_contacts WHERE id = ANY ($1::bigint[])
    RETURNING id, lead_id, sequence_id, finished_at, home_device_id
),
kept AS (
    INSERT INTO archived_enrolments AS a (lead_id, sequence_id, enrolments, finished_at, home_device_id)
    SELECT lead_id, sequence_id, count(*), max(finished_at), (array_agg(home_device_id ORDER BY finished_at DESC, id DESC))[1]
    FROM gone GROUP BY lead_id, sequence_id
    ON CONFLICT (lead_id, sequence_id) DO UPDATE SET
        enrolments = a.enrolments + excluded.enrolments, finished_at = greatest(a.finished_at, excluded.finished_at),
        home_device_id = CASE WHEN excluded.finished_at >= a.finished_at THEN excluded.home_device_id
                              ELSE a.home_device_id END
)
SELECT count(*) FROM gone;

-- name: old_days
-- Days of the ledger that were over before $1, and before what is leased was to leave: the end of a lease is written
-- into the day of its slot. With how many enrolments that live still have an attempt there, and one of them.
SELECT p.day, p.day::timestamp AT TIME ZONE 'UTC' AS begins, (p.day + 1)::timestamp AT TIME ZONE 'UTC' AS ends,
       h.living, h.example
FROM (
    SELECT to_date(right(c.relname, 8), 'YYYYMMDD') AS day
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'message_ledger'::regclass AND c.relname ~ '^message_ledger_[0-9]{8}$') p
CROSS JOIN LATERAL (
    SELECT count(DISTINCT c.id) AS living, min(c.id) AS example
    FROM message_ledger l JOIN sequence_contacts c ON c.id = l.enrolment_id AND c.status IN ('active', 'in_doubt')
    WHERE l.reserved_at >= p.day::timestamp AT TIME ZONE 'UTC'
      AND l.reserved_at < (p.day + 1)::timestamp AT TIME ZONE 'UTC') h
WHERE (p.day + 1)::timestamp AT TIME ZONE 'UTC' <= least($1::timestamptz, (SELECT min(slot_at) FROM leases))
ORDER BY p.day;

-- name: attempts_of
SELECT l.enrolment_id, l.lead_id, l.sequence_id, s.name AS sequence, l.step_trigger AS step, l.visit, l.generation,
       l.attempt, l.outcome, l.due_at, l.reserved_at, l.deadline_at, l.accepted_at, l.device_id::text,
       l.idempotency_key::text
FROM message_ledger l LEFT JOIN sequences s ON s.id = l.sequence_id
WHERE l.reserved_at >= $1 AND l.reserved_at < $2;

-- name: drop_day
SELECT dripline_drop_ledger_partition($1, $2);

-- name: archived
-- What the archive holds, by kind.
SELECT kind, count(*) AS files, sum(rows)::bigint AS rows, min(first_at) AS first_at, max(last_at) AS last_at,
       max(archived_at) AS archived_at, (array_agg(directory ORDER BY id DESC))[1] AS directory
FROM archive_files GROUP BY kind ORDER BY kind;

-- name: archived_of
SELECT sequence_id, enrolments, finished_at FROM archived_enrolments WHERE lead_id = $1 ORDER BY finished_at;
