-- Fewer index entries a send.

-- A leased enrolment is not claimed again: while it is leased it stands in no due index. The claim writes one index
-- entry less, and never steps over what is under way.
DROP INDEX idx_seq_contacts_trigger;
CREATE INDEX idx_seq_contacts_trigger ON sequence_contacts (home_device_id, next_trigger_time, id, sequence_id)
    WITH (deduplicate_items = off) WHERE status = 'active' AND NOT held AND processing_device_id IS NULL;

-- No statement looks leads up by their whole list of triggers. A summarizing index lets a completion, which takes its
-- trigger off, be a heap-only update (PostgreSQL 16 and later) instead of one with an entry in every index of leads.
DROP INDEX idx_leads_trigger;
CREATE INDEX idx_leads_trigger ON leads USING brin (trigger);

-- A row changes twice a send: at a twentieth of the table vacuum never rests, and takes a tenth of PostgreSQL's time.
ALTER TABLE sequence_contacts SET (autovacuum_vacuum_scale_factor = 0.2);
