-- What a person sees at a glance. Every statement is a snapshot of its own, and short.

-- name: leader
SELECT holder, expires_at > clock_timestamp() AS alive FROM heartbeats WHERE name = 'coordinator';

-- name: gateways
SELECT gateway_url, count(*) AS devices FROM devices GROUP BY gateway_url;
