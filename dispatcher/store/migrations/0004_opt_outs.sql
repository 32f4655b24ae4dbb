-- Opt-outs that a gateway told us of while somebody held the lead's row: marked on the lead in a later pass. Until then
-- nothing leaves to it.
CREATE TABLE opt_outs (
    lead_id bigint PRIMARY KEY,
    at      timestamptz NOT NULL
);
