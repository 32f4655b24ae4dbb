-- Numbers that must never be messaged. The tables' triggers opt out their leads.

-- name: add_suppressions
-- What is there already stays as it is.
INSERT INTO suppressions (phone, reason, at, source)
SELECT phone, coalesce(reason, 'must not be messaged'), coalesce(at, dripline_now()), source
FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::text[]) s(phone, reason, at, source)
ON CONFLICT DO NOTHING;

-- name: remove_suppressions
WITH listed AS (DELETE FROM suppressions WHERE phone = ANY ($1::text[]) RETURNING phone),
remembered AS (
    DELETE FROM suppressed_digests d USING unnest($1::text[]) n(phone) WHERE d.digest = dripline_digest(n.phone)
    RETURNING n.phone
)
SELECT phone FROM listed UNION SELECT phone FROM remembered;

-- name: list_suppressions
SELECT phone, reason, at, source FROM suppressions ORDER BY at DESC, phone LIMIT $1;

-- name: count_suppressions
SELECT (SELECT count(*) FROM suppressions) AS listed,
       (SELECT count(*) FROM suppressed_digests) AS remembered,
       (SELECT count(*) FROM leads WHERE opted_out_at IS NOT NULL) AS opted_out;

-- name: export_suppressions
-- Everybody who must not be messaged and whose number is known. Reads every lead.
SELECT phone, reason, at, source FROM suppressions
UNION ALL
SELECT phone, 'opted out', opted_out_at, 'lead' FROM leads l
WHERE opted_out_at IS NOT NULL AND NOT EXISTS (SELECT FROM suppressions s WHERE s.phone = l.phone)
ORDER BY phone
