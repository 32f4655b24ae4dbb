-- What operators decide, and what the engine remembers of the database it runs on.

CREATE TABLE operator_log (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at      timestamptz NOT NULL DEFAULT dripline_now(),
    actor   text NOT NULL,
    action  text NOT NULL,
    subject text NOT NULL,                           -- "enrolment <id>" or "database"
    detail  jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX operator_log_subject ON operator_log (subject);

CREATE FUNCTION dripline_keep_log() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the log of operators is append-only';
END $$;
CREATE TRIGGER dripline_keep_log BEFORE UPDATE OR DELETE OR TRUNCATE ON operator_log
    FOR EACH STATEMENT EXECUTE FUNCTION dripline_keep_log();

-- Whether this is still the database that the engine ran on last: NULL until the first run.
ALTER TABLE dripline_database
    ADD COLUMN system_identifier bigint,
    ADD COLUMN timeline_id       bigint,
    ADD COLUMN database_oid      bigint,
    ADD COLUMN recoveries        integer NOT NULL DEFAULT 0,
    ADD COLUMN recovering_since  timestamptz;        -- set while a recovery has begun and not ended

-- Enrolments with an attempt in doubt are few: found without reading the others.
CREATE INDEX sequence_contacts_doubtful ON sequence_contacts (id)
    WHERE status = 'in_doubt' OR status = 'active' AND pinned;

CREATE VIEW enrolments_in_doubt AS
SELECT c.id, c.contact_phone, c.sequence_id, c.current_trigger, c.attempt AS tries, c.resend_text AS text,
       coalesce(u.error, c.last_error) AS why, u.device_id, u.handed_at,
       CASE WHEN c.processing_device_id IS NOT NULL OR u.deadline_at > dripline_now() THEN 'under way'
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
