-- Pauses beside that of a sequence (is_active): of the fleet, of a device, of a lead. All are read again by every last
-- look; nothing that waits is moved or ended by one. What a sequence wants of messages that are too late, and failures
-- that an operator tries again.

CREATE TABLE fleet (
    only_row     boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    paused       boolean NOT NULL DEFAULT false,
    pause_reason text,
    paused_since timestamptz
);
INSERT INTO fleet DEFAULT VALUES;
COMMENT ON TABLE fleet IS 'one row: UPDATE fleet SET paused = true stops every hand-over';

CREATE FUNCTION dripline_keep_fleet() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the fleet is one row: set paused instead';
END $$;
CREATE TRIGGER dripline_keep_fleet BEFORE DELETE OR TRUNCATE ON fleet
    FOR EACH STATEMENT EXECUTE FUNCTION dripline_keep_fleet();

ALTER TABLE devices
    ADD paused       boolean NOT NULL DEFAULT false,
    ADD pause_reason text,
    ADD paused_since timestamptz;
CREATE INDEX devices_paused ON devices (id) WHERE paused;
ALTER TABLE sequences ADD paused_since timestamptz;

-- Few at a time: apart from the leads, so that no statement reads a column more while nobody is paused.
CREATE TABLE paused_leads (
    lead_id bigint PRIMARY KEY,
    since   timestamptz NOT NULL DEFAULT dripline_now(),
    until   timestamptz NOT NULL DEFAULT 'infinity',
    reason  text
);
COMMENT ON TABLE paused_leads IS 'a row pauses a lead until then; deleting it resumes';

CREATE FUNCTION dripline_note_pause() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.paused_since := CASE WHEN NEW.paused THEN dripline_now() END;
    IF NOT NEW.paused THEN
        NEW.pause_reason := NULL;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER dripline_paused BEFORE UPDATE ON fleet
    FOR EACH ROW WHEN (OLD.paused <> NEW.paused) EXECUTE FUNCTION dripline_note_pause();
CREATE TRIGGER dripline_paused BEFORE UPDATE ON devices
    FOR EACH ROW WHEN (OLD.paused <> NEW.paused) EXECUTE FUNCTION dripline_note_pause();

CREATE FUNCTION dripline_note_switch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.paused_since := CASE WHEN NOT NEW.is_active THEN dripline_now() END;
    RETURN NEW;
END $$;
CREATE TRIGGER dripline_paused BEFORE UPDATE ON sequences
    FOR EACH ROW WHEN (OLD.is_active <> NEW.is_active) EXECUTE FUNCTION dripline_note_switch();

-- Resuming is seen at once, as pausing is; changes of sequences and devices wake the coordinator anyway.
CREATE FUNCTION dripline_switched() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('dripline_wake', TG_TABLE_NAME);
    RETURN NULL;
END $$;
CREATE TRIGGER dripline_wake AFTER UPDATE ON fleet FOR EACH STATEMENT EXECUTE FUNCTION dripline_switched();
CREATE TRIGGER dripline_wake AFTER INSERT OR UPDATE OR DELETE ON paused_leads
    FOR EACH STATEMENT EXECUTE FUNCTION dripline_switched();

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
       d.health = 'available' AND NOT d.paused AND NOT (SELECT paused FROM fleet)
           AND coalesce(u.messages_hour, 0) + coalesce(l.leased, 0) < d.quota_per_hour
           AND coalesce(u.messages_today, 0) + coalesce(l.leased, 0) < dripline_day_quota(d.quota_per_day, d.ramp_per_day)
           AND coalesce(l.leased, 0) < d.in_flight_max AS is_available,
       coalesce(l.leased, 0)::integer AS current_processing
FROM devices d
LEFT JOIN usage u ON u.device_id = d.id
LEFT JOIN leased l ON l.device_id = d.id;

-- How late a message may leave; later, its step is skipped, or moved to the same time of a later day. NULL: however late.
ALTER TABLE sequences
    ADD max_lateness_hours double precision CHECK (max_lateness_hours > 0),
    ADD when_late text CHECK (when_late IN ('skip', 'shift')),
    ADD CHECK (num_nulls(max_lateness_hours, when_late) IN (0, 2));

-- What was not sent when it was due, and what became of it; append-only, like the ledger, which records attempts.
CREATE TABLE late_steps (
    enrolment_id bigint NOT NULL,
    sequence_id  bigint NOT NULL,
    lead_id      bigint NOT NULL,
    visit        integer NOT NULL,
    generation   integer NOT NULL,
    step_trigger varchar(255) NOT NULL,
    due_at       timestamptz NOT NULL,
    at           timestamptz NOT NULL,
    shifted_to   timestamptz                          -- NULL: skipped
);
CREATE INDEX late_steps_enrolment ON late_steps (enrolment_id);

-- Failures are looked through by pages of ids.
CREATE INDEX sequence_contacts_failed ON sequence_contacts (id) WHERE status = 'failed';
