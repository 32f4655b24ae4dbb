-- What leads wrote back. Whoever hears of a message inserts it here: a webhook, a rehearsal, or an operator by SQL.
CREATE TABLE replies (
    id                 bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    phone              varchar(32) NOT NULL,
    lead_id            bigint,
    device_id          uuid,
    text               text NOT NULL,
    received_at        timestamptz NOT NULL DEFAULT dripline_now(),
    gateway_message_id text UNIQUE
);
COMMENT ON COLUMN replies.lead_id IS 'filled from the phone when it is not given; null where no lead has that phone';
COMMENT ON COLUMN replies.device_id IS 'the device that was written to, where known';
COMMENT ON COLUMN replies.gateway_message_id IS 'the gateway''s name of the lead''s message: told twice, it counts once';
CREATE INDEX replies_by_lead ON replies (lead_id, received_at);
