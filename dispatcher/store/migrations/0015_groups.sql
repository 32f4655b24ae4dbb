-- Limits above the device: the devices of a group share what an account or a portfolio of numbers may send.

CREATE TABLE device_groups (
    name           varchar(255) PRIMARY KEY,
    quota_per_hour integer CHECK (quota_per_hour >= 0),  -- NULL: no limit
    quota_per_day  integer CHECK (quota_per_day >= 0)
);
ALTER TABLE devices ADD COLUMN group_name varchar(255) REFERENCES device_groups;

-- What held when: limits of groups, and which group a device was in (NULL: none). What a device sent counts for its
-- group also when it has left it or is deleted, so the history names it whole.
CREATE TABLE device_group_quota_history (
    group_name     varchar(255) NOT NULL,
    valid_from     timestamptz NOT NULL,
    quota_per_hour integer,
    quota_per_day  integer
);
CREATE TABLE device_group_history (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    device_id  uuid NOT NULL,
    number     integer NOT NULL,
    valid_from timestamptz NOT NULL,
    group_name varchar(255)
);

CREATE FUNCTION dripline_keep_group_quota() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO device_group_quota_history VALUES (NEW.name, dripline_now(), NEW.quota_per_hour, NEW.quota_per_day);
    RETURN NULL;
END $$;
CREATE TRIGGER dripline_first_quota AFTER INSERT ON device_groups
    FOR EACH ROW EXECUTE FUNCTION dripline_keep_group_quota();
CREATE TRIGGER dripline_next_quota AFTER UPDATE ON device_groups
    FOR EACH ROW WHEN ((OLD.quota_per_hour, OLD.quota_per_day) IS DISTINCT FROM (NEW.quota_per_hour, NEW.quota_per_day))
    EXECUTE FUNCTION dripline_keep_group_quota();

CREATE FUNCTION dripline_keep_group() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO device_group_history (device_id, number, valid_from) VALUES (OLD.id, OLD.number, dripline_now());
    ELSE
        INSERT INTO device_group_history (device_id, number, valid_from, group_name)
        VALUES (NEW.id, NEW.number, dripline_now(), NEW.group_name);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER dripline_first_group AFTER INSERT ON devices
    FOR EACH ROW WHEN (NEW.group_name IS NOT NULL) EXECUTE FUNCTION dripline_keep_group();
CREATE TRIGGER dripline_next_group AFTER UPDATE ON devices
    FOR EACH ROW WHEN (OLD.group_name IS DISTINCT FROM NEW.group_name) EXECUTE FUNCTION dripline_keep_group();
CREATE TRIGGER dripline_last_group AFTER DELETE ON devices
    FOR EACH ROW WHEN (OLD.group_name IS NOT NULL) EXECUTE FUNCTION dripline_keep_group();

CREATE TRIGGER dripline_changed AFTER INSERT OR UPDATE OR DELETE ON device_groups
    FOR EACH STATEMENT EXECUTE FUNCTION dripline_catalogue_changed('devices');
