-- The seed's tables with what the engine needs around them. All times are timestamptz.

-- What this database is, for good, and the clock its views read.
CREATE TABLE dripline_database (
    only_row  boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    kind      text NOT NULL CHECK (kind IN ('live', 'rehearsal')),
    hour_s    double precision NOT NULL DEFAULT 3600 CHECK (hour_s > 0),
    clock     timestamptz CHECK (clock IS NULL OR kind = 'rehearsal')
);

CREATE FUNCTION dripline_keep_kind() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'this database is stamped % for good', (SELECT kind FROM dripline_database);
END $$;

CREATE TRIGGER dripline_keep_kind BEFORE UPDATE ON dripline_database
    FOR EACH ROW WHEN (OLD.kind <> NEW.kind) EXECUTE FUNCTION dripline_keep_kind();
CREATE TRIGGER dripline_keep_stamp BEFORE DELETE ON dripline_database
    FOR EACH ROW EXECUTE FUNCTION dripline_keep_kind();
CREATE TRIGGER dripline_keep_row BEFORE TRUNCATE ON dripline_database
    FOR EACH STATEMENT EXECUTE FUNCTION dripline_keep_kind();

-- Business time: virtual in a rehearsal, else now().
CREATE FUNCTION dripline_now() RETURNS timestamptz LANGUAGE sql STABLE AS
    'SELECT coalesce((SELECT clock FROM dripline_database), now())';

CREATE FUNCTION dripline_hour() RETURNS interval LANGUAGE sql STABLE AS
    $$SELECT coalesce((SELECT hour_s FROM dripline_database), 3600) * interval '1 second'$$;

-- Business times cross the wire as microseconds since 1970. Both functions must stay inlinable (no body more volatile
-- than its declaration): a call that is not costs more than the row it stands in.
CREATE FUNCTION dripline_at(us bigint) RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
    'SELECT to_timestamp(us::double precision / 1000000)';

CREATE FUNCTION dripline_us(at timestamptz) RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE AS
    'SELECT (extract(epoch FROM at) * 1000000)::bigint';

-- The trigger list: exact tokens, trimmed, empty ones dropped, duplicates ignored (core.triggers says the same).
CREATE FUNCTION dripline_tokens(list text) RETURNS SETOF text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
    $$SELECT DISTINCT btrim(t, E' \t\r\n') FROM unnest(string_to_array(list, ',')) t WHERE btrim(t, E' \t\r\n') <> ''$$;

-- The list without one exact token; the other tokens stay as they were written; NULL when nothing is left.
CREATE FUNCTION dripline_without(list text, token text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
    $$SELECT CASE WHEN list = token THEN NULL ELSE (
        SELECT string_agg(t, ',' ORDER BY n)
        FROM unnest(string_to_array(list, ',')) WITH ORDINALITY u(t, n)
        WHERE btrim(t, E' \t\r\n') NOT IN (token, '')) END$$;

-- Devices -------------------------------------------------------------------------------------------------------

CREATE TABLE devices (
    id                 uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    number             integer GENERATED ALWAYS AS IDENTITY UNIQUE,
    name               varchar(255) NOT NULL UNIQUE,
    phone              varchar(20),
    gateway_url        text,
    gateway_token      text,
    gateway_idempotent boolean NOT NULL DEFAULT true,
    quota_per_hour     integer NOT NULL DEFAULT 80 CHECK (quota_per_hour >= 0),
    quota_per_day      integer NOT NULL DEFAULT 800 CHECK (quota_per_day >= 0),
    in_flight_max      integer NOT NULL DEFAULT 50 CHECK (in_flight_max >= 0),
    min_gap_s          double precision NOT NULL DEFAULT 5 CHECK (min_gap_s >= 0),
    shard_id           integer CHECK (shard_id >= 0),
    health             text NOT NULL DEFAULT 'available'
                       CHECK (health IN ('available', 'draining', 'quarantined', 'offline')),
    health_cause       text
);

CREATE TABLE device_quota_history (
    device_id      uuid NOT NULL,
    valid_from     timestamptz NOT NULL,
    quota_per_hour integer NOT NULL,
    quota_per_day  integer NOT NULL
);
CREATE INDEX device_quota_history_device ON device_quota_history (device_id, valid_from);

CREATE FUNCTION dripline_keep_device() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM sequence_contacts WHERE home_device_id = OLD.id AND status IN ('active', 'in_doubt')) THEN
        RAISE EXCEPTION 'device % has live enrolments: set its health to draining first', OLD.name;
    END IF;
    RETURN OLD;
END $$;
CREATE TRIGGER dripline_keep_device BEFORE DELETE ON devices
    FOR EACH ROW EXECUTE FUNCTION dripline_keep_device();

CREATE FUNCTION dripline_keep_quota() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO device_quota_history VALUES (NEW.id, dripline_now(), NEW.quota_per_hour, NEW.quota_per_day);
    RETURN NULL;
END $$;

CREATE TRIGGER dripline_first_quota AFTER INSERT ON devices
    FOR EACH ROW EXECUTE FUNCTION dripline_keep_quota();
CREATE TRIGGER dripline_next_quota AFTER UPDATE ON devices
    FOR EACH ROW WHEN ((OLD.quota_per_hour, OLD.quota_per_day) IS DISTINCT FROM (NEW.quota_per_hour, NEW.quota_per_day))
    EXECUTE FUNCTION dripline_keep_quota();

-- Sequences -----------------------------------------------------------------------------------------------------

CREATE TABLE sequences (
    id                 bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name               varchar(255) NOT NULL,
    trigger_prefix     varchar(255),
    is_active          boolean NOT NULL DEFAULT false,
    reentry            text NOT NULL DEFAULT 'after_exit' CHECK (reentry IN ('after_exit', 'never', 'after_interval')),
    reentry_interval_h double precision CHECK (reentry_interval_h > 0),
    sender_policy      text NOT NULL DEFAULT 'prefer' CHECK (sender_policy IN ('prefer', 'strict', 'any')),
    requires_opt_in    boolean NOT NULL DEFAULT false,
    created_at         timestamptz NOT NULL DEFAULT dripline_now(),
    CHECK (reentry <> 'after_interval' OR reentry_interval_h IS NOT NULL)
);

CREATE TABLE sequence_steps (
    id                  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sequence_id         bigint NOT NULL REFERENCES sequences ON DELETE CASCADE,
    day_number          integer,
    trigger             varchar(255) NOT NULL UNIQUE,
    message_text        text NOT NULL,
    media_url           text,
    next_trigger        varchar(255),
    trigger_delay_hours integer NOT NULL DEFAULT 24,
    is_entry_point      boolean NOT NULL DEFAULT false
);
CREATE INDEX sequence_steps_sequence ON sequence_steps (sequence_id);

-- Leads ---------------------------------------------------------------------------------------------------------

CREATE TABLE leads (
    id             bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    phone          varchar(20) NOT NULL UNIQUE,
    name           text,
    niche          text,
    trigger        varchar(1000),
    attributes     jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(attributes) = 'object'),
    time_zone      text,
    home_device_id uuid,
    opted_in_at    timestamptz,
    opted_out_at   timestamptz,
    created_at     timestamptz NOT NULL DEFAULT dripline_now()
) WITH (fillfactor = 90);
CREATE INDEX idx_leads_trigger ON leads (trigger);

-- Enrolments ----------------------------------------------------------------------------------------------------

CREATE TABLE sequence_contacts (
    id                    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sequence_id           bigint NOT NULL,
    lead_id               bigint NOT NULL,
    next_trigger_time     timestamptz,               -- due; NULL once the last step is accepted, until completion
    enrolled_at           timestamptz NOT NULL DEFAULT dripline_now(),
    finished_at           timestamptz,
    processing_started_at timestamptz,               -- the slot: not before, and at latest lease_deadline_at
    lease_deadline_at     timestamptz,
    lease_token           bigint,
    lease_epoch           bigint,
    home_device_id        uuid,
    processing_device_id  uuid,
    visit                 integer NOT NULL DEFAULT 1,
    generation            integer NOT NULL DEFAULT 0,
    attempt               integer NOT NULL DEFAULT 0, -- attempts of this visit so far, the leased one included
    retry_count           integer NOT NULL DEFAULT 0, -- counted failures of this visit
    pinned                boolean NOT NULL DEFAULT false, -- a resend in doubt: only from this device
    held                  boolean NOT NULL DEFAULT false, -- out of the claim's index while it may not be sent
    trigger_kept          boolean NOT NULL DEFAULT false, -- failed or stopped while the lead still carries the trigger
    status                text NOT NULL DEFAULT 'active'
                          CHECK (status IN ('active', 'completed', 'failed', 'stopped', 'in_doubt')),
    contact_phone         varchar(20) NOT NULL,
    entry_trigger         varchar(255) NOT NULL,
    current_trigger       varchar(255) NOT NULL,
    last_error            text,
    stop_reason           text,
    CHECK ((processing_device_id IS NULL) = (lease_token IS NULL)),
    CHECK (processing_device_id IS NULL OR status = 'active')
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_limit = 2000);

-- The claim: per home device the longest overdue first. No deduplication: with one due time for a whole wave,
-- entries in posting lists are not marked dead one by one, and every claim reads its predecessors' again.
-- sequence_id stands last so that a paused backlog is skipped inside the index.
CREATE INDEX idx_seq_contacts_trigger ON sequence_contacts (home_device_id, next_trigger_time, id, sequence_id)
    WITH (deduplicate_items = off) WHERE status = 'active' AND NOT held;
-- Leased rows only: few, so that the seed's monitoring reads few.
CREATE INDEX idx_seq_contacts_processing ON sequence_contacts (processing_device_id)
    WHERE processing_device_id IS NOT NULL;
CREATE UNIQUE INDEX sequence_contacts_one_live ON sequence_contacts (lead_id, sequence_id)
    WHERE status IN ('active', 'in_doubt');
CREATE INDEX sequence_contacts_finished ON sequence_contacts (lead_id, sequence_id)
    WHERE status NOT IN ('active', 'in_doubt');
CREATE INDEX sequence_contacts_retries ON sequence_contacts (retry_count) WHERE retry_count > 0;
CREATE INDEX sequence_contacts_held ON sequence_contacts (sequence_id) WHERE held;
CREATE INDEX sequence_contacts_finishing ON sequence_contacts (lead_id)
    WHERE status = 'active' AND next_trigger_time IS NULL;
-- Marked to stop once the attempt under way has ended: few.
CREATE INDEX sequence_contacts_marked ON sequence_contacts (lead_id)
    WHERE status IN ('active', 'in_doubt') AND stop_reason IS NOT NULL;
CREATE INDEX sequence_contacts_in_doubt ON sequence_contacts (home_device_id) WHERE status = 'in_doubt';

CREATE FUNCTION dripline_keep_sequence() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM sequence_contacts WHERE sequence_id = OLD.id) THEN
        RAISE EXCEPTION 'sequence % (%) has enrolments: switch it off instead of deleting it', OLD.id, OLD.name;
    END IF;
    RETURN OLD;
END $$;
CREATE TRIGGER dripline_keep_sequence BEFORE DELETE ON sequences
    FOR EACH ROW EXECUTE FUNCTION dripline_keep_sequence();

-- The ledger: one row an attempt, append-only; the one permitted update is in_doubt -> what became known. ---------

CREATE TABLE message_ledger (
    enrolment_id       bigint NOT NULL,
    sequence_id        bigint NOT NULL,
    lead_id            bigint NOT NULL,
    shard_epoch        bigint NOT NULL,
    due_at             timestamptz NOT NULL,
    reserved_at        timestamptz NOT NULL,
    deadline_at        timestamptz NOT NULL,
    accepted_at        timestamptz,
    device_id          uuid NOT NULL,
    idempotency_key    uuid NOT NULL,
    visit              integer NOT NULL,
    generation         integer NOT NULL,
    attempt            integer NOT NULL,
    outcome            text NOT NULL,
    step_trigger       varchar(255) NOT NULL,
    gateway_message_id text,
    error              text
) PARTITION BY RANGE (reserved_at);

CREATE FUNCTION dripline_keep_ledger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        RAISE EXCEPTION 'the ledger is append-only';
    END IF;
    IF TG_OP = 'DELETE' OR OLD.outcome <> 'in_doubt'
       OR (OLD.enrolment_id, OLD.visit, OLD.generation, OLD.attempt, OLD.device_id, OLD.idempotency_key)
          <> (NEW.enrolment_id, NEW.visit, NEW.generation, NEW.attempt, NEW.device_id, NEW.idempotency_key)
    THEN
        RAISE EXCEPTION 'the ledger is append-only (enrolment %, visit %, attempt %)',
            OLD.enrolment_id, OLD.visit, OLD.attempt;
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER dripline_keep_all BEFORE TRUNCATE ON message_ledger
    FOR EACH STATEMENT EXECUTE FUNCTION dripline_keep_ledger();

-- One partition a day of business time; made ahead by the coordinator.
-- Every row stands in exactly one of the two unique indexes: one accepted attempt a visit, one row an attempt.
CREATE FUNCTION dripline_ledger_partition(day date) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    part text := 'message_ledger_' || to_char(day, 'YYYYMMDD');
BEGIN
    IF to_regclass(part) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE message_ledger INCLUDING DEFAULTS)', part);
    EXECUTE format('CREATE UNIQUE INDEX ON %I (enrolment_id, visit, generation) WHERE outcome = ''accepted''', part);
    EXECUTE format('CREATE UNIQUE INDEX ON %I (enrolment_id, visit, generation, attempt) WHERE outcome <> ''accepted''', part);
    EXECUTE format('CREATE INDEX ON %I (device_id, reserved_at)', part);
    EXECUTE format('CREATE TRIGGER dripline_keep_ledger BEFORE UPDATE OR DELETE ON %I '
                   'FOR EACH ROW EXECUTE FUNCTION dripline_keep_ledger()', part);
    EXECUTE format('CREATE TRIGGER dripline_keep_all BEFORE TRUNCATE ON %I '
                   'FOR EACH STATEMENT EXECUTE FUNCTION dripline_keep_ledger()', part);
    EXECUTE format('ALTER TABLE message_ledger ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', part,
                   day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC');
    RETURN true;
END $$;

-- Who may act ---------------------------------------------------------------------------------------------------

CREATE TABLE epochs (
    name      text PRIMARY KEY,                     -- coordinator, shard-<n>
    epoch     bigint NOT NULL,
    holder    text NOT NULL,
    raised_at timestamptz NOT NULL
) WITH (fillfactor = 50);
-- Apart from the epochs: renewals must not wait behind claims, which lock the epoch.
CREATE TABLE heartbeats (
    name       text PRIMARY KEY,
    holder     text NOT NULL,
    expires_at timestamptz NOT NULL                  -- wall time of the database
) WITH (fillfactor = 50);
CREATE SEQUENCE lease_tokens;

-- What changed and waits for the enroller -----------------------------------------------------------------------

CREATE TABLE lead_changes (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    lead_id     bigint NOT NULL,
    old_trigger text,
    new_trigger text,
    opted_out   boolean NOT NULL DEFAULT false
);

CREATE FUNCTION dripline_leads_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO lead_changes (lead_id, new_trigger)
    SELECT id, trigger FROM new_rows WHERE trigger <> '';
    RETURN NULL;
END $$;

CREATE FUNCTION dripline_leads_updated() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO lead_changes (lead_id, old_trigger, new_trigger, opted_out)
    SELECT n.id, o.trigger, n.trigger, o.opted_out_at IS NULL AND n.opted_out_at IS NOT NULL
    FROM new_rows n JOIN old_rows o ON o.id = n.id
    WHERE n.trigger IS DISTINCT FROM o.trigger OR (o.opted_out_at IS NULL) <> (n.opted_out_at IS NULL)
       OR (o.opted_in_at IS NULL) <> (n.opted_in_at IS NULL);
    RETURN NULL;
END $$;

CREATE FUNCTION dripline_leads_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO lead_changes (lead_id, old_trigger) SELECT id, trigger FROM old_rows;
    RETURN NULL;
END $$;

CREATE TRIGGER dripline_inserted AFTER INSERT ON leads
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION dripline_leads_inserted();
-- Wakes the coordinator; whoever misses it looks again after a cycle.
CREATE FUNCTION dripline_wake() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('dripline_wake', TG_TABLE_NAME);
    RETURN NULL;
END $$;
CREATE TRIGGER dripline_wake AFTER INSERT ON lead_changes FOR EACH STATEMENT EXECUTE FUNCTION dripline_wake();

-- The completer takes finished triggers off itself and says so; there is nothing to enrol.
CREATE TRIGGER dripline_updated AFTER UPDATE ON leads
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT
    WHEN (current_setting('dripline.completing', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION dripline_leads_updated();
CREATE TRIGGER dripline_deleted AFTER DELETE ON leads
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION dripline_leads_deleted();

-- Raised by every change of sequences, steps or devices, so that caches know.
CREATE TABLE catalogue_versions (
    name    text PRIMARY KEY CHECK (name IN ('sequences', 'devices')),
    version bigint NOT NULL
) WITH (fillfactor = 50);
INSERT INTO catalogue_versions VALUES ('sequences', 1), ('devices', 1);

CREATE FUNCTION dripline_catalogue_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE catalogue_versions SET version = version + 1 WHERE name = TG_ARGV[0];
    RETURN NULL;
END $$;
CREATE TRIGGER dripline_changed AFTER INSERT OR UPDATE OR DELETE ON sequences
    FOR EACH STATEMENT EXECUTE FUNCTION dripline_catalogue_changed('sequences');
CREATE TRIGGER dripline_changed AFTER INSERT OR UPDATE OR DELETE ON sequence_steps
    FOR EACH STATEMENT EXECUTE FUNCTION dripline_catalogue_changed('sequences');
CREATE TRIGGER dripline_changed AFTER INSERT OR UPDATE OR DELETE ON devices
    FOR EACH STATEMENT EXECUTE FUNCTION dripline_catalogue_changed('devices');

-- Entry steps that are open: a new one sets off a bounded search for leads that carry its trigger already.
CREATE TABLE open_entries (
    trigger     varchar(255) PRIMARY KEY,
    sequence_id bigint NOT NULL,
    opened_at   timestamptz NOT NULL,
    scanned_to  bigint NOT NULL DEFAULT 0,           -- lead id
    scan_done   boolean NOT NULL DEFAULT false
);
-- Sequences nobody is enrolled into, because their steps cannot be followed.
CREATE TABLE sequence_problems (
    sequence_id bigint PRIMARY KEY,
    problem     text NOT NULL
);

-- The seed's view: counts every attempt not proved unsent, and leases that may still leave. -----------------------

CREATE VIEW device_load_balance AS
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
leases AS (
    SELECT processing_device_id AS device_id, count(*) AS leased
    FROM sequence_contacts WHERE processing_device_id IS NOT NULL GROUP BY 1
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
LEFT JOIN leases l ON l.device_id = d.id;
