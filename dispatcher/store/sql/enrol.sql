-- Queued lead changes become enrolments; a trigger taken off a lead, an opt-out or a reply ends them.

-- name: take_changes
-- A bounded batch leaves the queue in the enrolling transaction: whole rows, the oldest first, until there are as many
-- leads as wanted. The rows are locked one by one as their leads are counted, and none after that. What a change took
-- away ends first: a leased enrolment is only marked, its shard asks again before it hands over. OFFSET 0 and CASE keep
-- the planner on a look-up a lead: where it knew of few enrolments, it read all live ones for every batch, also for one
-- that ends nothing. The status is asked twice: of a row that somebody changes meanwhile only the outer conditions are
-- asked again.
WITH taken AS MATERIALIZED (
    DELETE FROM lead_changes
    WHERE ctid = ANY (ARRAY (
        SELECT place FROM (
            SELECT q.ctid AS place, unnest(q.leads)
            FROM (SELECT ctid, leads FROM lead_changes ORDER BY id FOR UPDATE SKIP LOCKED) q
            LIMIT $1::bigint) counted))
    RETURNING leads, old_trigger, new_trigger, opted_out
),
gone AS MATERIALIZED (
    SELECT u.lead_id, o.token, EXISTS (
               SELECT FROM leads l CROSS JOIN LATERAL dripline_tokens(l.trigger) n(token)
               WHERE l.id = u.lead_id AND n.token = o.token OFFSET 0) AS back
    FROM taken t CROSS JOIN LATERAL unnest(t.leads) u(lead_id) CROSS JOIN LATERAL dripline_tokens(t.old_trigger) o(token)
    WHERE t.old_trigger <> '' AND t.old_trigger IS DISTINCT FROM t.new_trigger
      AND NOT EXISTS (SELECT FROM dripline_tokens(t.new_trigger) n(token) WHERE n.token = o.token)
    UNION ALL
    SELECT u.lead_id, NULL, false FROM taken t CROSS JOIN LATERAL unnest(t.leads) u(lead_id) WHERE t.opted_out
),
ended AS MATERIALIZED (
    SELECT lead_id, bool_or(token IS NULL) AS opted_out,
           coalesce(array_agg(token) FILTER (WHERE token IS NOT NULL), '{}') AS tokens,
           coalesce(array_agg(token) FILTER (WHERE NOT back AND token IS NOT NULL), '{}') AS tokens_away
    FROM gone GROUP BY lead_id
),
stopped AS (
    UPDATE sequence_contacts c
    SET stop_reason = CASE WHEN e.opted_out THEN 'opted out' ELSE 'trigger removed' END,
        status = CASE WHEN c.lease_token IS NULL AND c.status = 'active' THEN 'stopped' ELSE c.status END,
        finished_at = CASE WHEN c.lease_token IS NULL AND c.status = 'active' THEN dripline_at($2::bigint) END,
        trigger_kept = c.entry_trigger <> ALL (e.tokens),
        held = false
    FROM ended e CROSS JOIN LATERAL (
        SELECT id FROM sequence_contacts WHERE lead_id = e.lead_id AND status IN ('active', 'in_doubt') OFFSET 0) live
    WHERE c.id = live.id
      AND CASE WHEN c.lead_id = e.lead_id THEN c.status IN ('active', 'in_doubt') AND c.stop_reason IS NULL END
      AND (e.opted_out OR c.entry_trigger = ANY (e.tokens_away)
           OR c.entry_trigger = ANY (e.tokens) AND c.lease_token IS NULL AND c.status = 'active')
    RETURNING 1
),
resumed AS (
    -- Marked while an attempt was under way, and the trigger is back before that has ended: there never was an end.
    UPDATE sequence_contacts SET stop_reason = NULL
    WHERE id = ANY (ARRAY (
        SELECT c.id FROM sequence_contacts c JOIN leads l ON l.id = c.lead_id
        WHERE c.status IN ('active', 'in_doubt') AND c.stop_reason = 'trigger removed' AND l.opted_out_at IS NULL
          AND EXISTS (SELECT FROM dripline_tokens(l.trigger) t(token) WHERE t.token = c.entry_trigger)))
),
forgotten AS (
    UPDATE sequence_contacts c SET trigger_kept = false
    FROM ended e CROSS JOIN LATERAL (
        SELECT id FROM sequence_contacts
        WHERE lead_id = e.lead_id AND status NOT IN ('active', 'in_doubt') OFFSET 0) finished
    WHERE c.id = finished.id
      AND CASE WHEN c.lead_id = e.lead_id THEN c.status NOT IN ('active', 'in_doubt') AND c.trigger_kept END
      AND c.entry_trigger = ANY (e.tokens)
)
SELECT (SELECT coalesce(sum(cardinality(leads)), 0)::bigint FROM taken) AS taken,
       (SELECT count(*) FROM stopped) AS stopped,
       (SELECT array_agg(u.lead_id) FROM taken t CROSS JOIN LATERAL unnest(t.leads) u(lead_id))::text AS leads,
       EXISTS (SELECT FROM exits) AS exits;

-- name: end_replied
-- Where leads have replied, if there are any: asked for only then. What the batch has ended already keeps its reason; but
-- where an attempt is under way and its trigger may come back, the exit stays on record: then there was no other end.
WITH told AS MATERIALIZED (
    SELECT enrolment_id AS id FROM exits WHERE lead_id = ANY ($1::text::bigint[])
),
ended AS (
    UPDATE sequence_contacts c
    SET stop_reason = 'replied',
        status = CASE WHEN c.lease_token IS NULL AND c.status = 'active' THEN 'stopped' ELSE c.status END,
        finished_at = CASE WHEN c.lease_token IS NULL AND c.status = 'active' THEN dripline_at($2::bigint) END,
        trigger_kept = true, held = false
    WHERE c.id = ANY (ARRAY (SELECT id FROM told)) AND c.status IN ('active', 'in_doubt') AND c.stop_reason IS NULL
    RETURNING 1
),
forgotten AS (
    DELETE FROM exits x
    WHERE x.lead_id = ANY ($1::text::bigint[]) AND x.enrolment_id IN (SELECT id FROM told)
      AND NOT EXISTS (SELECT FROM sequence_contacts c WHERE c.id = x.enrolment_id AND c.status IN ('active', 'in_doubt')
                      AND c.stop_reason = 'trigger removed')
)
SELECT count(*) FROM ended;

-- name: enrol
-- Exact tokens only; a lead without a device of its own or an earlier one takes the next of the plan, the same for
-- all its enrolments. Leads are read without locks: whatever commits later is queued again. One scan of an index looks
-- the whole batch up: the planner takes a list it cannot see for ten ids, whatever the statistics say. Most leads have
-- never been enrolled and carry one token: what depends on earlier enrolments or on a list of tokens is worked out only
-- where there is one; OFFSET 0 keeps that a look-up a lead, where the planner would rather read everybody's.
-- $9 says which entries' messages are due later, and when, by trigger and time zone; NULL where no clock has a say.
-- Somebody else's enrolment of the same moment fails the statement, which sees it when it is repeated: ON CONFLICT
-- would cost every row a fifth more.
WITH given AS MATERIALIZED (
    SELECT $1::text::bigint[] AS leads, $4::text::integer[] AS plan
),
fence AS MATERIALIZED (
    SELECT count(*) AS held FROM (SELECT FROM epochs WHERE name = 'coordinator' AND epoch = $6 FOR SHARE) f
),
entry AS MATERIALIZED (
    SELECT e.trigger, s.id AS sequence_id, s.reentry, s.requires_opt_in,
           dripline_at($5::bigint) - s.reentry_interval_h * $7::bigint * interval '1 microsecond' AS reentry_before
    FROM unnest($2::text[], $3::bigint[]) e(trigger, sequence_id)
    JOIN sequences s ON s.id = e.sequence_id AND s.is_active
),
doors AS MATERIALIZED (
    SELECT jsonb_object_agg(trigger, sequence_id) AS opted_in,
           jsonb_object_agg(trigger, sequence_id) FILTER (WHERE NOT requires_opt_in) AS everybody
    FROM entry
),
live AS MATERIALIZED (
    SELECT lead_id FROM sequence_contacts
    WHERE lead_id = ANY ((SELECT leads FROM given)::bigint[]) AND status IN ('active', 'in_doubt')
),
finished AS MATERIALIZED (
    SELECT lead_id FROM sequence_contacts
    WHERE lead_id = ANY ((SELECT leads FROM given)::bigint[]) AND status NOT IN ('active', 'in_doubt')
),
archived AS MATERIALIZED (
    SELECT lead_id FROM archived_enrolments
    WHERE (SELECT EXISTS (SELECT FROM archived_enrolments))
      AND lead_id = ANY ((SELECT leads FROM given)::bigint[])
),
lead AS NOT MATERIALIZED (
    SELECT id, phone, trigger, home_device_id, opted_in_at, time_zone,
           id IN (SELECT lead_id FROM live) AS live, id IN (SELECT lead_id FROM finished) AS finished,
           id IN (SELECT lead_id FROM archived) AS archived
    FROM leads WHERE id = ANY ((SELECT leads FROM given)::bigint[]) AND opted_out_at IS NULL
),
tagged AS (
    SELECT l.*, btrim(l.trigger, E' \t\r\n') AS token FROM lead l WHERE strpos(l.trigger, ',') = 0
    UNION ALL
    SELECT l.*, btrim(w.token, E' \t\r\n')
    FROM lead l CROSS JOIN LATERAL unnest(string_to_array(l.trigger, ',')) w(token) WHERE strpos(l.trigger, ',') > 0
),
wanted AS (
    SELECT t.*, (CASE WHEN opted_in_at IS NULL THEN (SELECT everybody FROM doors) ELSE (SELECT opted_in FROM doors) END
                 ->> token)::bigint AS sequence_id
    FROM tagged t OFFSET 0
),
homed AS (
    SELECT w.id AS lead_id, w.phone, w.token, w.sequence_id, w.live, w.finished, w.archived, w.time_zone,
           CASE WHEN w.live OR w.finished OR w.archived OR w.home_device_id IS NOT NULL THEN
               (SELECT d.id FROM devices d WHERE d.health = 'available' AND d.id = coalesce(
                    w.home_device_id,
                    (SELECT c.home_device_id FROM sequence_contacts c
                     WHERE c.lead_id = w.id AND c.status IN ('active', 'in_doubt') ORDER BY c.sequence_id LIMIT 1),
                    (SELECT c.home_device_id FROM sequence_contacts c
                     WHERE c.lead_id = w.id AND c.status NOT IN ('active', 'in_doubt') ORDER BY c.id + 0 DESC
                     LIMIT 1),
                    CASE WHEN w.archived THEN
                        (SELECT a.home_device_id FROM archived_enrolments a
                         WHERE a.lead_id = w.id ORDER BY a.finished_at DESC LIMIT 1) END))
           END AS device_id
    FROM wanted w
    WHERE w.sequence_id IS NOT NULL OFFSET 0
),
candidate AS (
    SELECT DISTINCT ON (h.device_id IS NULL, h.lead_id, h.sequence_id)
           h.device_id IS NULL AS homeless, h.lead_id, h.sequence_id, h.phone, h.token, h.device_id, h.time_zone
    FROM homed h
    WHERE NOT (h.live AND EXISTS (
              SELECT FROM sequence_contacts c WHERE c.lead_id = h.lead_id AND c.sequence_id = h.sequence_id
              AND c.status IN ('active', 'in_doubt') OFFSET 0))
      AND NOT (h.finished AND EXISTS (
              SELECT FROM sequence_contacts c JOIN entry e ON e.trigger = h.token
              WHERE c.lead_id = h.lead_id AND c.sequence_id = h.sequence_id AND c.status NOT IN ('active', 'in_doubt')
              AND (e.reentry = 'never' OR (c.trigger_kept AND c.entry_trigger = e.trigger)
                   OR (e.reentry = 'after_interval' AND c.finished_at > e.reentry_before)) OFFSET 0))
      AND NOT (h.archived AND EXISTS (
              SELECT FROM archived_enrolments c JOIN entry e ON e.trigger = h.token
              WHERE c.lead_id = h.lead_id AND c.sequence_id = h.sequence_id
              AND (e.reentry = 'never'
                   OR (e.reentry = 'after_interval' AND c.finished_at > e.reentry_before)) OFFSET 0))
    ORDER BY h.device_id IS NULL, h.lead_id, h.sequence_id, h.token
),
-- The plan may name a device that has been deleted since it was made: such an enrolment has none yet.
homes AS MATERIALIZED (
    SELECT array_agg(d.id ORDER BY h.n) AS id
    FROM unnest($8::uuid[]) WITH ORDINALITY h(id, n) LEFT JOIN devices d ON d.id = h.id
),
placed AS (
    SELECT lead_id, phone, sequence_id, token, time_zone,
           CASE WHEN homeless THEN ((SELECT id FROM homes))[
               ((SELECT plan FROM given))[dense_rank() OVER (PARTITION BY homeless ORDER BY lead_id)]]
           ELSE device_id END AS device_id
    FROM candidate
),
enrolled AS (
    INSERT INTO sequence_contacts (sequence_id, lead_id, contact_phone, entry_trigger, current_trigger,
                                   next_trigger_time, enrolled_at, home_device_id)
    SELECT sequence_id, lead_id, phone, token, token,
           CASE WHEN $9::jsonb IS NULL THEN dripline_at($5::bigint)
           ELSE dripline_at(coalesce(
               ($9::jsonb #>> ARRAY[token, coalesce(time_zone, '')])::bigint, $5::bigint)) END,
           dripline_at($5::bigint), device_id
    FROM placed WHERE (SELECT held FROM fence) = 1
    ORDER BY lead_id, sequence_id
    RETURNING home_device_id
)
SELECT home_device_id, count(*) AS enrolled, (SELECT held FROM fence) AS held FROM enrolled GROUP BY home_device_id
UNION ALL
SELECT NULL, 0, held FROM fence;

-- name: towards_goals
-- Live enrolments of the leads in the batch in sequences with a goal, and what their goals read. OFFSET 0 keeps the
-- planner on a look-up a lead.
SELECT c.id, c.sequence_id, l.trigger, l.phone, l.name, nullif(l.attributes::text, '{}') AS attributes
FROM leads l CROSS JOIN LATERAL (
    SELECT id, sequence_id FROM sequence_contacts
    WHERE lead_id = l.id AND status IN ('active', 'in_doubt') AND stop_reason IS NULL OFFSET 0) c
WHERE l.id = ANY ($1::text::bigint[]) AND c.sequence_id = ANY ($2::bigint[])
ORDER BY c.id;

-- name: leave_at_goals
-- A leased enrolment is only marked, as where its trigger is removed.
UPDATE sequence_contacts
SET stop_reason = 'goal reached', held = false, trigger_kept = true,
    status = CASE WHEN lease_token IS NULL AND status = 'active' THEN 'stopped' ELSE status END,
    finished_at = CASE WHEN lease_token IS NULL AND status = 'active' THEN dripline_at($2::bigint) END
WHERE id = ANY ($1::bigint[]) AND status IN ('active', 'in_doubt') AND stop_reason IS NULL;

-- name: time_zones
-- Those of the leads in the batch, where clocks have a say.
WITH given AS MATERIALIZED (SELECT $1::text::bigint[] AS leads)
SELECT DISTINCT coalesce(time_zone, '') AS time_zone FROM leads WHERE id = ANY ((SELECT leads FROM given)::bigint[]);

-- name: searching
-- Asked first: search_entries fires the queue's statement triggers, and so wakes the coordinator, even when it finds
-- nothing.
SELECT EXISTS (SELECT FROM open_entries WHERE NOT scan_done);

-- name: search_entries
-- Leads that carried a trigger before its entry opened: a bounded stretch of lead ids, queued for the enroller.
WITH entry AS (
    SELECT trigger, scanned_to FROM open_entries WHERE NOT scan_done ORDER BY opened_at, trigger LIMIT 1 FOR UPDATE
),
stretch AS MATERIALIZED (
    SELECT l.id, l.trigger FROM entry e CROSS JOIN LATERAL (
        SELECT id, trigger FROM leads WHERE id > e.scanned_to ORDER BY id LIMIT $1::bigint) l
),
queued AS (
    INSERT INTO lead_changes (leads)
    SELECT array_agg(id) FROM (
        SELECT s.id, (row_number() OVER (ORDER BY s.id) - 1) / 200 AS part FROM stretch s, entry e
        WHERE strpos(s.trigger, e.trigger) > 0
          AND EXISTS (SELECT FROM dripline_tokens(s.trigger) t(token) WHERE t.token = e.trigger)) found
    GROUP BY part ORDER BY part
    RETURNING leads
)
UPDATE open_entries o
SET scanned_to = coalesce((SELECT max(id) FROM stretch), o.scanned_to),
    scan_done = (SELECT count(*) FROM stretch) < $1::bigint
FROM entry e WHERE o.trigger = e.trigger
RETURNING o.trigger, (SELECT coalesce(sum(cardinality(leads)), 0)::bigint FROM queued) AS queued, o.scan_done;
