-- One row of the queue for up to 200 leads that changed alike: a bulk statement writes a row where it wrote 200, and a
-- batch takes as many fewer. So many ids fit into a row as it is; more would be stored apart.

ALTER TABLE lead_changes ALTER lead_id TYPE bigint[] USING ARRAY[lead_id];
ALTER TABLE lead_changes RENAME lead_id TO leads;

-- The enroller reads the lead as it is by then. Only of what was taken away does it need to know what it was: where all
-- tokens stayed, the texts are left out, and the leads of a statement are alike however different their triggers are.
CREATE OR REPLACE FUNCTION dripline_leads_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO lead_changes (leads)
    SELECT array_agg(id) FROM (
        SELECT id, (row_number() OVER () - 1) / 200 AS part FROM new_rows WHERE trigger <> '') n
    GROUP BY part ORDER BY part;
    RETURN NULL;
END $$;

-- FULL JOIN is never planned as a nested loop: a session keeps the plan it made for its first statement, and a bulk
-- statement after one of a single lead would compare every lead with every other. Another id is another lead.
CREATE OR REPLACE FUNCTION dripline_leads_updated() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO lead_changes (leads, old_trigger, new_trigger, opted_out)
    SELECT array_agg(id), old_trigger, new_trigger, opted_out FROM (
        SELECT id, CASE WHEN kept IS NOT TRUE THEN old_trigger END AS old_trigger,
               CASE WHEN kept IS NOT TRUE THEN new_trigger END AS new_trigger,
               opted_out, (row_number() OVER () - 1) / 200 AS part
        FROM (
            SELECT coalesce(n.id, o.id) AS id, o.trigger AS old_trigger, n.trigger AS new_trigger,
                   coalesce(o.trigger, '') = ''
                       OR strpos(',' || n.trigger || ',', ',' || o.trigger || ',') > 0 AS kept,
                   o.opted_out_at IS NULL AND n.opted_out_at IS NOT NULL AS opted_out
            FROM new_rows n FULL JOIN old_rows o ON o.id = n.id
            WHERE n.trigger IS DISTINCT FROM o.trigger OR (o.opted_out_at IS NULL) <> (n.opted_out_at IS NULL)
               OR (o.opted_in_at IS NULL) <> (n.opted_in_at IS NULL)) changed) parts
    GROUP BY part, old_trigger, new_trigger, opted_out ORDER BY part;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION dripline_leads_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO lead_changes (leads, old_trigger)
    SELECT array_agg(id), trigger FROM (
        SELECT id, trigger, (row_number() OVER () - 1) / 200 AS part FROM old_rows) o
    GROUP BY part, trigger ORDER BY part;
    RETURN NULL;
END $$;
