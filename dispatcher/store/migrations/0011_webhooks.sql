-- What gateways tell of messages after they have taken them. It stands by itself: a gateway may be quicker than the
-- transaction that writes the attempt, and is never asked to wait for it.

CREATE TABLE message_receipts (
    message            text PRIMARY KEY,
    accepted_at        timestamptz,
    delivered_at       timestamptz,
    read_at            timestamptz,
    failed_at          timestamptz,
    not_sent_at        timestamptz,
    error              text,
    gateway_message_id text,
    first_told_at      timestamptz NOT NULL DEFAULT dripline_now()
) WITH (fillfactor = 70);
COMMENT ON COLUMN message_receipts.message IS
    'the idempotency key as text where the gateway named it, else the gateway''s id of the message: as in message_ledger';
COMMENT ON COLUMN message_receipts.not_sent_at IS 'surely neither sent then nor ever of what had come by then; the latest';
COMMENT ON COLUMN message_receipts.error IS 'of the earliest failure';
COMMENT ON COLUMN message_receipts.gateway_message_id IS 'told together with the key';
CREATE INDEX message_receipts_by_age ON message_receipts USING brin (first_told_at);
