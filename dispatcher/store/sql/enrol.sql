-- Queued lead changes become enrolments; a trigger taken off a lead or an opt-out ends them.

-- name: take_changes
-- A bounded batch leaves the queue in the enrolling transaction. What a change took away ends first: a leased
-- enrolment is only marked, its shard asks again before it hands over. OFFSET 0 and CASE keep the planner on a look-up
-- a lead: where it knew of few enrolments, it read all live ones for every batch, also for one that ends nothing. The
-- status is asked twice: of a row that somebody changes meanwhile only the outer conditions are asked again.
WITH taken AS MATERIALIZED (
    DELETE FROM lead_changes
    WHERE ctid = ANY (ARRAY (SELECT ctid FROM lead_changes ORDER BY id LIMIT $1::bigint FOR UPDATE SKIP LOCKED))
    RETURNING lead_id, old_trigger, new_trigger, opted_out
),
gone AS MATERIALIZED (
    SELECT t.lead_id, o.token, EXISTS (
               SELECT FROM leads l CROSS JOIN LATERAL dripline_tokens(l.trigger) n(token)
               WHERE l.id = t.lead_id AND n.token = o.token) AS back
    FROM taken t CROSS JOIN LATERAL dripline_tokens(t.old_trigger) o(token)
    WHERE t.old_trigger <> '' AND t.old_trigger IS DISTINCT FROM t.new_trigger
      AND NOT EXISTS (SELECT FROM dripline_tokens(t.new_trigger) n(token) WHERE n.token = o.token)
    UNION ALL
    SELECT lead_id, NULL, false FROM taken WHERE opted_out
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
        status = CASE WHEN c.processing_device_id IS NULL AND c.status = 'active' THEN 'stopped' ELSE c.status END,
        finished_at = CASE WHEN c.processing_device_id IS NULL AND c.status = 'active' THEN dripline_at($2::bigint) END,
        trigger_kept = c.entry_trigger <> ALL (e.tokens),
        held = false
    FROM ended e CROSS JOIN LATERAL (
        SELECT id FROM sequence_contacts WHERE lead_id = e.lead_id AND status IN ('active', 'in_doubt') OFFSET 0) live
    WHERE c.id = live.id
      AND CASE WHEN c.lead_id = e.lead_id THEN c.status IN ('active', 'in_doubt') AND c.stop_reason IS NULL END
      AND (e.opted_out OR c.entry_trigger = ANY (e.tokens_away)
           OR c.entry_trigger = ANY (e.tokens) AND c.processing_device_id IS NULL AND c.status = 'active')
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
SELECT (SELECT count(*) FROM taken) AS taken,
       (SELECT count(*) FROM stopped) AS stopped,
       (SELECT coalesce(string_agg(int8send(lead_id), '' ORDER BY lead_id), '')
        FROM (SELECT DISTINCT lead_id FROM taken) d) AS leads;

-- name: enrol
-- Exact tokens only; a lead without a device of its own or an earlier one takes the next of the plan, the same for
-- all its enrolments. Leads are read without locks: whatever commits later is queued again. LIMIT and + 0 keep
-- the planner on a look-up a lead, also before anybody has analysed the tables. Most leads have never been enrolled:
-- what depends on earlier enrolments is looked up only where there are some. Somebody else's enrolment of the same
-- moment fails the statement, which sees it when it is repeated: ON CONFLICT would cost every row a fifth more.
WITH fence AS MATERIALIZED (
    SELECT count(*) AS held FROM (SELECT FROM epochs WHERE name = 'coordinator' AND epoch = $6 FOR SHARE) f
),
entry AS MATERIALIZED (
    SELECT e.trigger, s.id AS sequence_id, s.reentry, s.requires_opt_in, e.n,
           dripline_at($5::bigint) - s.reentry_interval_h * $7::bigint * interval '1 microsecond' AS reentry_before
    FROM unnest($2::text[], $3::bigint[]) WITH ORDINALITY e(trigger, sequence_id, n)
    JOIN sequences s ON s.id = e.sequence_id AND s.is_active
),
wanted AS MATERIALIZED (
    SELECT l.id AS lead_id, l.phone, l.home_device_id, l.opted_in_at, l.live, l.finished, t.n
    FROM unnest($1::bigint[]) u(id)
    CROSS JOIN LATERAL (
        SELECT id, phone, home_device_id, opted_in_at, trigger,
               EXISTS (SELECT FROM sequence_contacts c
                       WHERE c.lead_id = u.id AND c.status IN ('active', 'in_doubt')) AS live,
               EXISTS (SELECT FROM sequence_contacts c
                       WHERE c.lead_id = u.id AND c.status NOT IN ('active', 'in_doubt')) AS finished
        FROM leads WHERE id = u.id AND opted_out_at IS NULL LIMIT 1) l
    CROSS JOIN LATERAL (
        SELECT ((SELECT jsonb_object_agg(trigger, n) FROM entry) ->> btrim(token, E' \t\r\n'))::bigint AS n
        FROM unnest(string_to_array(l.trigger, ',')) w(token) OFFSET 0) t
    WHERE t.n IS NOT NULL
),
candidate AS MATERIALIZED (
    SELECT DISTINCT ON (w.lead_id, e.sequence_id)
           w.lead_id, w.phone, e.sequence_id, e.trigger,
           CASE WHEN w.live OR w.finished OR w.home_device_id IS NOT NULL THEN
               (SELECT d.id FROM devices d WHERE d.health = 'available' AND d.id = coalesce(
                    w.home_device_id,
                    (SELECT c.home_device_id FROM sequence_contacts c
                     WHERE c.lead_id = w.lead_id AND c.status IN ('active', 'in_doubt') ORDER BY c.sequence_id LIMIT 1),
                    (SELECT c.home_device_id FROM sequence_contacts c
                     WHERE c.lead_id = w.lead_id AND c.status NOT IN ('active', 'in_doubt') ORDER BY c.id + 0 DESC
                     LIMIT 1)))
           END AS device_id
    FROM wanted w
    CROSS JOIN LATERAL (SELECT * FROM entry WHERE n = w.n LIMIT 1) e
    WHERE (NOT e.requires_opt_in OR w.opted_in_at IS NOT NULL)
      AND NOT (w.live AND EXISTS (
          SELECT FROM sequence_contacts c WHERE c.lead_id = w.lead_id AND c.sequence_id = e.sequence_id
          AND c.status IN ('active', 'in_doubt')))
      AND NOT (w.finished AND EXISTS (
          SELECT FROM sequence_contacts c WHERE c.lead_id = w.lead_id AND c.sequence_id = e.sequence_id
          AND c.status NOT IN ('active', 'in_doubt')
          AND (e.reentry = 'never' OR (c.trigger_kept AND c.entry_trigger = e.trigger)
               OR (e.reentry = 'after_interval' AND c.finished_at > e.reentry_before))))
    ORDER BY w.lead_id, e.sequence_id, e.trigger
),
placed AS (
    SELECT lead_id, phone, sequence_id, trigger,
           coalesce(device_id, ($4::uuid[])[dense_rank() OVER (PARTITION BY device_id IS NULL ORDER BY lead_id)]) AS device_id
    FROM candidate
),
-- The plan may name a device that has been deleted since it was made: such an enrolment has none yet.
homed AS (
    SELECT p.lead_id, p.phone, p.sequence_id, p.trigger, d.id AS device_id
    FROM placed p LEFT JOIN devices d ON d.id = p.device_id
),
enrolled AS (
    INSERT INTO sequence_contacts (sequence_id, lead_id, contact_phone, entry_trigger, current_trigger,
                                   next_trigger_time, enrolled_at, home_device_id)
    SELECT sequence_id, lead_id, phone, trigger, trigger, dripline_at($5::bigint), dripline_at($5::bigint), device_id
    FROM homed WHERE (SELECT held FROM fence) = 1
    ORDER BY lead_id, sequence_id
    RETURNING home_device_id
)
SELECT home_device_id, count(*) AS enrolled, (SELECT held FROM fence) AS held FROM enrolled GROUP BY home_device_id
UNION ALL
SELECT NULL, 0, held FROM fence;

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
    INSERT INTO lead_changes (lead_id, old_trigger, new_trigger)
    SELECT s.id, s.trigger, s.trigger FROM stretch s, entry e
    WHERE strpos(s.trigger, e.trigger) > 0
      AND EXISTS (SELECT FROM dripline_tokens(s.trigger) t(token) WHERE t.token = e.trigger)
    RETURNING 1
)
UPDATE open_entries o
SET scanned_to = coalesce((SELECT max(id) FROM stretch), o.scanned_to),
    scan_done = (SELECT count(*) FROM stretch) < $1::bigint
FROM entry e WHERE o.trigger = e.trigger
RETURNING o.trigger, (SELECT count(*) FROM queued) AS queued, o.scan_done;
