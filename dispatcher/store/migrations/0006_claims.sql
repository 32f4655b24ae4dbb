-- A claim touches no index of the enrolments it leases: a heap-only update. One row a claim says which those are.

CREATE TABLE claims (
    token       bigint PRIMARY KEY,
    shard_epoch bigint NOT NULL,
    claimed_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    enrolments  bigint[] NOT NULL                    -- all that were claimed; some may have ended
);
ALTER TABLE claims ALTER enrolments SET STORAGE EXTERNAL;

INSERT INTO claims (token, shard_epoch, enrolments)
SELECT lease_token, min(lease_epoch), array_agg(id) FROM sequence_contacts WHERE lease_token IS NOT NULL GROUP BY lease_token;

-- What is leased now. A claim whose enrolments have all ended may still have its row. LIMIT keeps the planner on a
-- look-up by id: otherwise it may start with every enrolment there is.
CREATE VIEW leases AS
SELECT k.token, k.shard_epoch, k.claimed_at, c.*
FROM claims k CROSS JOIN LATERAL unnest(k.enrolments) e(id)
CROSS JOIN LATERAL (
    SELECT id AS enrolment_id, lead_id, home_device_id AS device_id, processing_started_at AS slot_at,
           lease_deadline_at AS deadline_at, processing_device_id IS NOT NULL AS marked, next_trigger_time AS due_at,
           visit, generation, attempt, retry_count, contact_phone, current_trigger, resend_text, resend_media_url
    FROM sequence_contacts WHERE id = e.id AND lease_token = k.token LIMIT 1) c;

-- The token makes the lease. processing_device_id follows within a second or two, for people: its index would cost every
-- claim an entry in every index of the row.
ALTER TABLE sequence_contacts DROP CONSTRAINT sequence_contacts_check, DROP CONSTRAINT sequence_contacts_check1,
    ADD CHECK (lease_token IS NULL OR status = 'active'),
    ADD CHECK (processing_device_id IS NULL OR lease_token IS NOT NULL);

-- No column that a claim writes stands here. What is leased and overdue is stepped over: as many as a device has in flight.
DROP INDEX idx_seq_contacts_trigger;
CREATE INDEX idx_seq_contacts_trigger ON sequence_contacts (home_device_id, next_trigger_time, id, sequence_id)
    WITH (deduplicate_items = off) WHERE status = 'active' AND NOT held;
-- Room for the version that a claim writes and for the one that ends it.
ALTER TABLE sequence_contacts SET (fillfactor = 60);

CREATE OR REPLACE VIEW device_load_balance AS
-- Materialized and asked for by subquery: the clock is read once, not for every row of the ledger.
WITH moment AS MATERIALIZED (
    SELECT dripline_now() - dripline_hour() AS hour_ago, dripline_now() - 24 * dripline_hour() AS day_ago
),
usage AS (
    SELECT l.device_id,
           count(*) FILTER (WHERE l.reserved_at > (SELECT hour_ago FROM moment)) AS messages_hour,
           count(*) AS messages_today
    FROM message_ledger l
    WHERE l.reserved_at > (SELECT day_ago FROM moment)
      AND l.outcome NOT IN ('refused', 'throttled', 'expired', 'credentials', 'not_sent')
    GROUP BY l.device_id
),
leased AS (
    SELECT device_id, count(*) AS leased FROM leases GROUP BY 1
)
SELECT d.id AS device_id,
       coalesce(u.messages_hour, 0)::integer AS messages_hour,
       coalesce(u.messages_today, 0)::integer AS messages_today,
       d.health = 'available'
           AND coalesce(u.messages_hour, 0) + coalesce(l.leased, 0) < d.quota_per_hour
           AND coalesce(u.messages_today, 0) + coalesce(l.leased, 0) < d.quota_per_day
           AND coalesce(l.leased, 0) < d.in_flight_max AS is_available,
       coalesce(l.leased, 0)::integer AS current_processing
FROM devices d
LEFT JOIN usage u ON u.device_id = d.id
LEFT JOIN leased l ON l.device_id = d.id;

CREATE OR REPLACE VIEW enrolments_in_doubt AS
SELECT c.id, c.contact_phone, c.sequence_id, c.current_trigger, c.attempt AS tries, c.resend_text AS text,
       coalesce(u.error, c.last_error) AS why, u.device_id, u.handed_at,
       CASE WHEN c.lease_token IS NOT NULL OR u.deadline_at > dripline_now() THEN 'under way'
            WHEN c.status = 'in_doubt' THEN 'held'
            ELSE 'resend' END AS state
FROM sequence_contacts c
CROSS JOIN LATERAL (
    SELECT max(l.reserved_at) AS handed_at, max(l.deadline_at) AS deadline_at,
           (array_agg(l.device_id ORDER BY l.attempt DESC))[1] AS device_id,
           (array_agg(l.error ORDER BY l.attempt DESC))[1] AS error
    FROM message_ledger l
    WHERE l.enrolment_id = c.id AND l.visit = c.visit AND l.generation = c.generation AND l.outcome = 'in_doubt') u
WHERE c.status = 'in_doubt' OR c.status = 'active' AND c.pinned;
