-- What a shard hands over is on record before it leaves, with what it says: after a crash a lease without a record has
-- surely not left, and one with a record can be sent again byte for byte.

CREATE TABLE handovers (
    token       bigint NOT NULL,                     -- the claim's
    shard_epoch bigint NOT NULL,
    handed_at   timestamptz NOT NULL,
    enrolments  bigint[] NOT NULL,
    bodies      bytea NOT NULL                       -- zlib over JSON: [[enrolment, text, media_url], ...]
);
CREATE INDEX handovers_token ON handovers (token);
CREATE INDEX handovers_handed_at ON handovers (handed_at);

-- What the attempt in doubt said; the resend says the same.
ALTER TABLE sequence_contacts ADD COLUMN resend_text text, ADD COLUMN resend_media_url text;

-- A device that changes hands: its former owner is superseded before the new one counts what it sent.
CREATE FUNCTION dripline_fence_owner() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE epochs SET epoch = nextval('lease_tokens'), raised_at = dripline_now() WHERE name = 'shard-' || OLD.shard_id;
    RETURN NEW;
END $$;
CREATE TRIGGER dripline_fence_owner BEFORE UPDATE OF shard_id ON devices
    FOR EACH ROW WHEN (OLD.shard_id IS NOT NULL AND NEW.shard_id IS DISTINCT FROM OLD.shard_id)
    EXECUTE FUNCTION dripline_fence_owner();
