-- Numbers that must never be messaged, people who are forgotten, and what is left of enrolments that were archived.

CREATE TABLE suppressions (
    phone  varchar(20) PRIMARY KEY,                  -- as in leads.phone
    reason text NOT NULL DEFAULT 'must not be messaged',
    at     timestamptz NOT NULL DEFAULT dripline_now(),
    source text
);
COMMENT ON TABLE suppressions IS 'numbers that must never be messaged, whether or not they are leads';

-- Numbers of leads that had opted out and are gone: to be recognised when they come again, not to be read.
CREATE TABLE suppressed_digests (
    digest bytea PRIMARY KEY,                        -- dripline_digest of the number
    at     timestamptz NOT NULL DEFAULT dripline_now()
);
CREATE TABLE suppression_key (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    key      bytea NOT NULL
);
INSERT INTO suppression_key (key)
VALUES (sha256(convert_to(gen_random_uuid()::text || gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8')));

CREATE FUNCTION dripline_digest(phone text) RETURNS bytea LANGUAGE sql STABLE AS
    $$SELECT sha256((SELECT key FROM suppression_key) || convert_to(phone, 'UTF8'))$$;

-- A lead that comes in with such a number is opted out from the beginning. OFFSET 0 and the index make it a look-up a
-- lead, whatever the table was like when the session planned this: it keeps that plan.
CREATE FUNCTION dripline_suppress_leads() RETURNS trigger LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    secret bytea;
BEGIN
    IF NOT EXISTS (SELECT FROM suppressions) AND NOT EXISTS (SELECT FROM suppressed_digests) THEN
        RETURN NULL;
    END IF;
    secret := (SELECT key FROM suppression_key);
    UPDATE leads SET opted_out_at = dripline_now()
    WHERE id = ANY (ARRAY (
        SELECT n.id FROM new_rows n
        WHERE n.opted_out_at IS NULL
          AND (EXISTS (SELECT FROM suppressions s WHERE s.phone = n.phone OFFSET 0)
               OR EXISTS (SELECT FROM suppressed_digests s
                          WHERE s.digest = sha256(secret || convert_to(n.phone, 'UTF8')) OFFSET 0))));
    RETURN NULL;
END $$;
CREATE TRIGGER dripline_suppressed AFTER INSERT ON leads
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION dripline_suppress_leads();

-- A number that comes onto the list opts its lead out: at once, or, where somebody holds the lead, in a later pass.
CREATE FUNCTION dripline_suppress_numbers() RETURNS trigger LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
    WITH told AS MATERIALIZED (
        SELECT l.id FROM new_rows n CROSS JOIN LATERAL (
            SELECT id FROM leads WHERE phone = n.phone AND opted_out_at IS NULL LIMIT 1) l
    ),
    free AS MATERIALIZED (
        SELECT id FROM leads WHERE id = ANY (ARRAY (SELECT id FROM told)) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
    ),
    later AS (
        INSERT INTO opt_outs (lead_id, at) SELECT id, dripline_now() FROM told WHERE id NOT IN (SELECT id FROM free)
        ON CONFLICT DO NOTHING
    )
    UPDATE leads SET opted_out_at = dripline_now()
    WHERE id = ANY (ARRAY (SELECT id FROM free)) AND opted_out_at IS NULL;
    RETURN NULL;
END $$;
CREATE TRIGGER dripline_suppressed AFTER INSERT ON suppressions
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION dripline_suppress_numbers();

-- A lead that goes after it has opted out leaves its number's digest.
CREATE FUNCTION dripline_remember_opt_outs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO suppressed_digests (digest)
    SELECT dripline_digest(phone) FROM old_rows
    WHERE opted_out_at IS NOT NULL OR id = ANY (ARRAY (SELECT lead_id FROM opt_outs))
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
CREATE TRIGGER dripline_remembered AFTER DELETE ON leads
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION dripline_remember_opt_outs();

-- Leads that were deleted with all that is personal, for as long as an attempt of theirs may still write some.
CREATE TABLE erased_leads (
    lead_id bigint PRIMARY KEY,
    digest  bytea NOT NULL,                          -- of the number: an opt-out may still come
    at      timestamptz NOT NULL DEFAULT dripline_now()
);
CREATE INDEX replies_by_phone ON replies (phone);

-- The ledger also lets go of what a gateway said: it may hold the recipient's number.
CREATE OR REPLACE FUNCTION dripline_keep_ledger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        RAISE EXCEPTION 'the ledger is append-only';
    END IF;
    IF TG_OP = 'UPDATE' AND NEW.error IS NULL AND NEW.gateway_message_id IS NULL THEN
        OLD.error := NULL;
        OLD.gateway_message_id := NULL;
        IF NEW IS NOT DISTINCT FROM OLD THEN
            RETURN NEW;
        END IF;
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

-- What is left of enrolments that were archived: what the re-entry rules and the choice of a home device ask.
CREATE TABLE archived_enrolments (
    lead_id        bigint NOT NULL,
    sequence_id    bigint NOT NULL,
    enrolments     integer NOT NULL,
    finished_at    timestamptz NOT NULL,             -- of the last of them
    home_device_id uuid,                             -- of the last of them
    PRIMARY KEY (lead_id, sequence_id)
);
-- Files of the archive. A row commits together with the deletion of what the file holds; until it is published, the file
-- has ".partial" after its name.
CREATE TABLE archive_files (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind        text NOT NULL CHECK (kind IN ('enrolments', 'ledger')),
    directory   text NOT NULL,
    name        text NOT NULL UNIQUE,
    rows        bigint NOT NULL,
    first_at    timestamptz,                         -- finished, or reserved
    last_at     timestamptz,
    archived_at timestamptz NOT NULL DEFAULT now(),
    published   boolean NOT NULL DEFAULT false
);

-- A day of the ledger goes, if it still holds so many rows and none of an enrolment that lives.
CREATE FUNCTION dripline_drop_ledger_partition(day date, expected bigint) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    part text := 'message_ledger_' || to_char(day, 'YYYYMMDD');
    as_expected boolean;
BEGIN
    EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', part);
    EXECUTE format('SELECT count(*) = $1 AND count(*) FILTER (WHERE EXISTS (SELECT FROM sequence_contacts c '
                   'WHERE c.id = l.enrolment_id AND c.status IN (''active'', ''in_doubt''))) = 0 FROM %I l', part)
        INTO as_expected USING expected;
    IF as_expected THEN
        EXECUTE format('ALTER TABLE message_ledger DETACH PARTITION %I', part);
        EXECUTE format('DROP TABLE %I', part);
    END IF;
    RETURN as_expected;
END $$;
