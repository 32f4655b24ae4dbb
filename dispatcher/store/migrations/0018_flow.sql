-- Delays to the minute, messages at a time of day, days on which nothing leaves, and goals that end a sequence.

-- The wait after a step is both together.
ALTER TABLE sequence_steps
    ADD trigger_delay_minutes integer NOT NULL DEFAULT 0 CHECK (trigger_delay_minutes BETWEEN 0 AND 59),
    ADD send_at time CHECK (send_at < '24:00');      -- due when the lead's clock reaches it

-- The clock of leads without a time zone may be known where there is no send window.
ALTER TABLE sequences
    DROP CONSTRAINT sequences_check1,
    ADD CHECK (num_nulls(send_from, send_until) IN (0, 2)),
    ADD CHECK (send_from IS NULL OR send_time_zone IS NOT NULL),
    ADD goal_trigger varchar(255) CHECK (goal_trigger <> ''),
    ADD goal_if text CHECK (goal_if <> '');

-- Whole days by the lead's clock.
CREATE TABLE blackouts (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sequence_id bigint REFERENCES sequences ON DELETE CASCADE, -- NULL: for every sequence
    first_day   date NOT NULL,
    last_day    date,                                -- NULL: one day
    CHECK (last_day BETWEEN first_day AND first_day + 365)
);
CREATE INDEX blackouts_sequence ON blackouts (sequence_id);
CREATE TRIGGER dripline_changed AFTER INSERT OR UPDATE OR DELETE ON blackouts
    FOR EACH STATEMENT EXECUTE FUNCTION dripline_catalogue_changed('sequences');

-- What a condition reads counts as a change only while some sequence has one.
CREATE OR REPLACE FUNCTION dripline_leads_updated() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    asked boolean := EXISTS (SELECT FROM sequences WHERE goal_if IS NOT NULL);
BEGIN
    INSERT INTO lead_changes (leads, old_trigger, new_trigger, opted_out)
    SELECT array_agg(id), old_trigger, new_trigger, opted_out FROM (
        SELECT id, CASE WHEN kept IS NOT TRUE THEN old_trigger END AS old_trigger,
               CASE WHEN kept IS NOT TRUE THEN new_trigger END AS new_trigger,
               opted_out, (row_number() OVER () - 1) / 200 AS part
        FROM (
            SELECT coalesce(n.id, o.id) AS id, o.trigger AS old_trigger, n.trigger AS new_trigger,
                   coalesce(o.trigger, '') = ''
                       OR strpos(',' || n.trigger || ',', ',' || o.trigger || ',') > 0 AS kept,
                   o.opted_out_at IS NULL AND n.opted_out_at IS NOT NULL AS opted_out
            FROM new_rows n FULL JOIN old_rows o ON o.id = n.id
            WHERE n.trigger IS DISTINCT FROM o.trigger OR (o.opted_out_at IS NULL) <> (n.opted_out_at IS NULL)
               OR (o.opted_in_at IS NULL) <> (n.opted_in_at IS NULL)
               OR CASE WHEN asked THEN (n.attributes, n.name) IS DISTINCT FROM (o.attributes, o.name) END) changed) parts
    GROUP BY part, old_trigger, new_trigger, opted_out ORDER BY part;
    RETURN NULL;
END $$;

-- Whoever has reached a new goal already is under way still.
CREATE FUNCTION dripline_goal_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO lead_changes (leads)
    SELECT array_agg(lead_id) FROM (
        SELECT lead_id, (row_number() OVER () - 1) / 200 AS part FROM sequence_contacts
        WHERE sequence_id = NEW.id AND status IN ('active', 'in_doubt')) l
    GROUP BY part ORDER BY part;
    RETURN NULL;
END $$;
CREATE TRIGGER dripline_goal AFTER UPDATE ON sequences FOR EACH ROW
    WHEN ((OLD.goal_trigger, OLD.goal_if) IS DISTINCT FROM (NEW.goal_trigger, NEW.goal_if))
    EXECUTE FUNCTION dripline_goal_changed();
