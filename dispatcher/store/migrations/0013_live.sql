-- What changes of sequences and devices wakes the coordinator too; breakers, ramps and the retirement of devices.

-- What inserts nothing wakes nobody: else a pass that finds nothing would be the reason for the next one.
CREATE OR REPLACE FUNCTION dripline_wake() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM new_rows) THEN
        PERFORM pg_notify('dripline_wake', TG_TABLE_NAME);
    END IF;
    RETURN NULL;
END $$;
DROP TRIGGER dripline_wake ON lead_changes;
CREATE TRIGGER dripline_wake AFTER INSERT ON lead_changes
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION dripline_wake();

-- One notification a transaction, however many rows: PostgreSQL folds equal ones.
CREATE OR REPLACE FUNCTION dripline_catalogue_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE catalogue_versions SET version = version + 1 WHERE name = TG_ARGV[0];
    PERFORM pg_notify('dripline_wake', TG_ARGV[0]);
    RETURN NULL;
END $$;

-- A breaker is open while a device is quarantined because of failures: how often in a row it has opened, and when the
-- next message may try. A ramp is what a new device may send in 24 hours so far; it grows once a day up to its quota.
ALTER TABLE devices
    DROP CONSTRAINT devices_health_check,
    ADD CHECK (health IN ('available', 'draining', 'quarantined', 'offline', 'retired')),
    ADD breaker_trips integer NOT NULL DEFAULT 0 CHECK (breaker_trips >= 0),
    ADD probe_at timestamptz,
    ADD ramp_per_day integer CHECK (ramp_per_day > 0),
    ADD ramp_growth double precision NOT NULL DEFAULT 1.5 CHECK (ramp_growth > 1),
    ADD ramp_day date;

CREATE FUNCTION dripline_day_quota(quota integer, ramp integer) RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
    'SELECT least(quota, ramp)';

-- The ramp's first day is the one it was set on.
CREATE FUNCTION dripline_begin_ramp() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.ramp_day = CASE WHEN NEW.ramp_per_day IS NOT NULL THEN (dripline_now() AT TIME ZONE 'UTC')::date END;
    RETURN NEW;
END $$;
CREATE TRIGGER dripline_first_ramp BEFORE INSERT ON devices
    FOR EACH ROW WHEN (NEW.ramp_per_day IS NOT NULL) EXECUTE FUNCTION dripline_begin_ramp();
CREATE TRIGGER dripline_next_ramp BEFORE UPDATE ON devices
    FOR EACH ROW WHEN (OLD.ramp_per_day IS DISTINCT FROM NEW.ramp_per_day
                       AND OLD.ramp_day IS NOT DISTINCT FROM NEW.ramp_day) EXECUTE FUNCTION dripline_begin_ramp();

CREATE OR REPLACE FUNCTION dripline_keep_quota() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO device_quota_history
    VALUES (NEW.id, dripline_now(), NEW.quota_per_hour, dripline_day_quota(NEW.quota_per_day, NEW.ramp_per_day));
    RETURN NULL;
END $$;
DROP TRIGGER dripline_next_quota ON devices;
CREATE TRIGGER dripline_next_quota AFTER UPDATE ON devices
    FOR EACH ROW WHEN ((OLD.quota_per_hour, dripline_day_quota(OLD.quota_per_day, OLD.ramp_per_day))
                       IS DISTINCT FROM (NEW.quota_per_hour, dripline_day_quota(NEW.quota_per_day, NEW.ramp_per_day)))
    EXECUTE FUNCTION dripline_keep_quota();

-- Retired is for good, and nobody may still wait for it.
CREATE FUNCTION dripline_keep_retired() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.health = 'retired' THEN
        RAISE EXCEPTION 'device % is retired, for good: add a new one', OLD.name;
    END IF;
    IF EXISTS (SELECT FROM sequence_contacts WHERE home_device_id = OLD.id AND status IN ('active', 'in_doubt')) THEN
        RAISE EXCEPTION 'device % has live enrolments: set its health to draining first', OLD.name;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER dripline_keep_retired BEFORE UPDATE ON devices
    FOR EACH ROW WHEN (OLD.health <> NEW.health AND 'retired' IN (OLD.health, NEW.health))
    EXECUTE FUNCTION dripline_keep_retired();

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
           AND coalesce(u.messages_today, 0) + coalesce(l.leased, 0) < dripline_day_quota(d.quota_per_day, d.ramp_per_day)
           AND coalesce(l.leased, 0) < d.in_flight_max AS is_available,
       coalesce(l.leased, 0)::integer AS current_processing
FROM devices d
LEFT JOIN usage u ON u.device_id = d.id
LEFT JOIN leased l ON l.device_id = d.id;
