-- What a device's gateway speaks, and what follows from what it answers.

ALTER TABLE devices
    ADD gateway_kind text NOT NULL DEFAULT 'http' CHECK (gateway_kind IN ('http', 'whatsapp')),
    ADD gateway_phone_number_id text,
    ADD gateway_account text,
    ADD account_rests_until timestamptz,
    ADD CHECK (gateway_kind <> 'whatsapp' OR gateway_phone_number_id ~ '^[0-9]+$');
COMMENT ON COLUMN devices.gateway_phone_number_id IS 'what the WhatsApp Cloud API calls the number';
COMMENT ON COLUMN devices.gateway_account IS 'devices of one account rest together when it is throttled';
COMMENT ON COLUMN devices.account_rests_until IS 'written by the engine: the account is asked to slow down until then';

-- The Cloud API knows no idempotency keys: what is in doubt there is never sent again.
CREATE FUNCTION dripline_no_keys() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.gateway_idempotent := false;
    RETURN NEW;
END $$;
CREATE TRIGGER dripline_no_keys BEFORE INSERT OR UPDATE ON devices
    FOR EACH ROW WHEN (NEW.gateway_kind = 'whatsapp' AND NEW.gateway_idempotent) EXECUTE FUNCTION dripline_no_keys();

-- The approved template that is sent outside a service window, and whether a step waits for somebody to see to it.
ALTER TABLE sequence_steps
    ADD template_name text,
    ADD template_language text,
    ADD template_parameters text[] NOT NULL DEFAULT '{}',
    ADD paused_cause text,
    ADD paused_since timestamptz,
    ADD CHECK (num_nulls(template_name, template_language) IN (0, 2)),
    ADD CHECK (template_name IS NOT NULL OR template_parameters = '{}');
COMMENT ON COLUMN sequence_steps.paused_cause IS 'a gateway refused what it says: dripline sequences resume-step';
CREATE INDEX sequence_steps_paused ON sequence_steps (trigger) WHERE paused_cause IS NOT NULL;

-- Whether an attempt with this outcome counts against its device's quota (core.outcomes.UNCHARGED says the same).
CREATE FUNCTION dripline_charged(outcome text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
    $$SELECT outcome NOT IN ('refused', 'throttled', 'expired', 'credentials', 'throttled_pair', 'throttled_account',
                             'quality', 'capped', 'service_window', 'content')$$;

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
    WHERE l.reserved_at > (SELECT day_ago FROM moment) AND dripline_charged(l.outcome) AND l.outcome <> 'not_sent'
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
